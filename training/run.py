"""Runs a recipe: data, tokenizer, model, TRL training, saved model.

    gen-vla train mini_openvla_plus --work-dir outputs                  # `commands/train.py` calls this
    gen-vla train mini_openvla_plus --work-dir outputs --resume         # continues from the last checkpoint
    gen-vla train mini_openvla_plus --processes 2                       # several processes, gradients averaged

`run_folder.py` says what lies where in a run's folder.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_callback import ProgressCallback
from trl.trainer.sft_config import SFTConfig

from gen_vla.processors.processing_vla_plus import ActionInputs
from gen_vla.training.collator import CoTrainingCollator
from gen_vla.training.flow.rows import FlowCollator, FlowRowPreparer, draw_noise
from gen_vla.training.flow.trainer import FlowMetrics, FlowTrainer
from gen_vla.training.held_out import HeldOutRows
from gen_vla.training.learning_rates import rates
from gen_vla.training.lora import lora_config
from gen_vla.training.metrics import SourceMetrics
from gen_vla.training.mixing.buffer_sizes import GIGA, buffer_sizes
from gen_vla.training.mixing.encoded_pictures import HeldPictures
from gen_vla.training.mixing.image_augmentation import augment_image
from gen_vla.training.mixing.instruction_augmentation import paraphrased
from gen_vla.training.mixing.mixture import HalfAndHalfSampler, MixedTables
from gen_vla.training.mixing.prepared_rows import ROBOT, VISION_LANGUAGE, RowPreparer, augment_resized
from gen_vla.training.mixing.row_stream import BufferSize, row_length
from gen_vla.training.mixing.skipped_rows import collate_with_counts, sum_over_processes
from gen_vla.training.mixing.streaming_mixture import RunShape, StreamingMixture
from gen_vla.training.model_building import (
    action_weights,
    build_model,
    check_initial_model,
    square_side,
    without_center_crop,
)
from gen_vla.training.planning.data_check import check_data, show_data
from gen_vla.training.provenance.origin import with_other_runs, with_provenance
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import OpenedData, open_data
from gen_vla.training.resume_record import record_buffers, record_data, recorded_commits, run_shape
from gen_vla.training.run_folder import begin_record, claim_checkpoints, is_first_process, save_run, steps_taken
from gen_vla.training.trainer import HELD_OUT_PREFIX, CoTrainer, SourceProgress


# What transformers calls gradient checkpointing; the older name warns in newer versions.
CHECKPOINTING = "activation_checkpointing"
DATA_TIMEOUT = timedelta(days=2)
if CHECKPOINTING not in SFTConfig.__dataclass_fields__:
    CHECKPOINTING = "gradient_checkpointing"


def run_recipe(
    recipe: Recipe,
    work_dir: str | Path,
    resume: bool = False,
    callbacks: list[TrainerCallback] | None = None,
    progress: bool = True,
    show: bool = False,
    rollouts: Callable[[Recipe, CoTrainer], TrainerCallback] | None = None,
) -> Path:
    """Trains a recipe and saves the model; returns its folder.

    Args:
        resume: continue from the newest checkpoint of this recipe, if there is one.
        show: print what was read and draw the first rows, before the first step.
        rollouts: makes what runs `training.rollouts`, such as `evaluation/tabletop/training_rollouts.py`.

    Raises:
        FileExistsError: if there are checkpoints and `resume` is false.
        FileNotFoundError: if the model to start from or a data set is missing.
        ValueError: if there are checkpoints of another recipe, of another number of rows a step, or of other data.
    """
    if recipe.training.rollouts is not None and rollouts is None:
        raise ValueError(
            "got a recipe with training.rollouts and nothing to run them, expected a simulator; use gen-vla train, "
            "which has one, or set training.rollouts to null"
        )
    work_dir = Path(work_dir)
    output_dir = work_dir / recipe.name
    checkpoints = output_dir / "checkpoints"
    last = prepare_run(recipe, work_dir, resume)
    with local_main_first():  # it may have statistics to compute, and tables to write
        opened = open_data(recipe, work_dir, commits=recorded_commits(checkpoints) if last else None)
    shape = record_data(recipe, opened, checkpoints, begins=last is None)
    model, processor = build_model(recipe, work_dir, opened)
    collator = build_collator(recipe, model.config, processor, opened.names)
    prepare = build_preparer(recipe, processor, opened.norm_stats, collator, model.config)
    if show and is_first_process():
        show_data(check_data(opened, prepare, collator), output_dir, recipe.name)
    buffers = None
    if recipe.data.streaming:
        buffers = record_buffers(checkpoints, last is None, partial(stream_buffers, recipe, opened, processor))
    mixture, sampler = build_mixture(recipe, opened, prepare, steps_taken(last), shape, buffers)
    held_out = build_held_out(recipe, opened, prepare, model.config, processor)
    trainer = build_trainer(
        recipe, model, processor, collator, mixture, sampler, checkpoints, callbacks, progress, held_out
    )
    if recipe.training.rollouts is not None and rollouts is not None:
        trainer.add_callback(rollouts(recipe, trainer))
    record = begin_record(recipe, work_dir, checkpoints, opened.origins) if is_first_process() else {}
    if recipe.data.streaming and steps_taken(last) >= recipe.training.steps:
        trainer.load_finished(str(last))
    else:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    state = None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # weights are spread over processes: all have to ask
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    report = data_report(opened, mixture)
    if trainer.is_world_process_zero():
        log = {"data": report, "history": trainer.state.log_history}
        if (best := trainer.state.best_global_step) is not None:
            log["best"] = {"checkpoint": f"checkpoint-{best}", "held_out_loss": trainer.state.best_metric}
        log = with_provenance(log, with_other_runs(record, checkpoints))
        save_run(recipe, trainer, state, processor, log, output_dir)
    trainer.accelerator.wait_for_everyone()
    return output_dir


@contextmanager
def local_main_first() -> Iterator[None]:
    """Within the `with` block the first process of a machine comes before its others, and all leave together.

    They wait in a group of their own, for `DATA_TIMEOUT`: that of the run's collective operations is minutes, and a
    pass over the actions of a large data set takes hours.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    group: Any = None
    if state.num_processes > 1:
        group = torch.distributed.new_group(backend="gloo", timeout=DATA_TIMEOUT)
    distributed: Any = torch.distributed  # groups are typed as numbers, too
    if group and not state.is_local_main_process:
        distributed.barrier(group)
    yield
    if group and state.is_local_main_process:
        distributed.barrier(group)
    if group:
        distributed.barrier(group)
        distributed.destroy_process_group(group)


def prepare_run(recipe: Recipe, work_dir: Path, resume: bool = False) -> Path | None:
    """Checks what can be checked before data are there, claims the run's folder -> the checkpoint to continue from."""
    service = recipe.training.report_to
    if service != "none" and service not in get_available_reporting_integrations():
        raise ValueError(
            f"got report_to={service!r}, whose package is missing; pip install {service}, or set it to none"
        )
    check_initial_model(recipe, work_dir)
    return claim_checkpoints(recipe, work_dir / recipe.name / "checkpoints", resume)


def build_mixture(
    recipe: Recipe,
    opened: OpenedData,
    prepare: RowPreparer,
    steps_taken: int = 0,
    began: RunShape | None = None,
    buffers: dict[str, BufferSize] | None = None,
) -> tuple[MixedTables | StreamingMixture, HalfAndHalfSampler | None]:
    """The rows of this process, and for tables the order of them over the whole run.

    Args:
        steps_taken: by an earlier run that is resumed; a stream begins behind their rows.
        began: the shape of the run when it began; by default this one's.
        buffers: of a stream, as when the run began; by default measured.
    """
    settings, data, shape, turns = recipe.training, recipe.data, run_shape(recipe), opened.turns(recipe)
    if data.streaming:
        mixture = StreamingMixture(
            opened.streams,
            turns,
            prepare,
            settings.batch_size,
            seed=settings.seed,
            buffers=stream_buffers(recipe, opened, prepare.processor) if buffers is None else buffers,
            holds=held_pictures(recipe, opened, prepare.processor),
            rank=int(os.environ.get("RANK", "0")),
            processes=shape.processes,
            workers=data.num_workers,
            start=steps_taken * settings.gradient_accumulation_steps,
            max_bad_share=data.max_bad_share,
            began=began,
        )
        return mixture, None
    sizes = [len(table) for table in opened.tables.values()]
    robots, rows = len(data.robot), settings.steps * shape.rows_per_step
    lengths: list[int] = []
    if data.group_by_length:
        questions = list(opened.tables.values())[robots:]
        lengths = [row_length(table[number]) for table in questions for number in range(len(table))]
    order = HalfAndHalfSampler(
        sizes[:robots], sizes[robots:], rows, settings.seed, turns, lengths, shape.rows_per_step
    )
    return MixedTables(opened.tables, prepare, data.max_bad_share), order


def stream_buffers(recipe: Recipe, opened: OpenedData, processor: Any) -> dict[str, BufferSize]:
    data, holds = recipe.data, held_pictures(recipe, opened, processor)
    memory = data.shuffle_memory * GIGA
    return buffer_sizes(opened.streams, opened.turns(recipe), holds, memory, data.num_workers, data.shuffle_buffer)


def held_pictures(recipe: Recipe, opened: OpenedData, processor: Any) -> dict[str, HeldPictures]:
    """How a stream's buffers hold pictures, by data set: of the size the model sees, where it sees one alone."""
    image_processor = processor.image_processor
    strategy = getattr(image_processor, "resize_strategy", "resize-naive")
    size: int | None = getattr(image_processor, "image_size", None)
    sizes: dict[str, int | None] = {ROBOT: size, VISION_LANGUAGE: size}
    if recipe.data.image_augmentation:
        sizes[ROBOT] = augmented_size(recipe, processor)
    return {name: HeldPictures(sizes[name.partition("/")[0]], strategy) for name in opened.streams}


def augmented_size(recipe: Recipe, processor: Any) -> int | None:
    """Side of the square that is made of a robot's picture before it is changed; `None` where the model sees more of
    its shape than a square keeps.
    """
    return square_side(processor) if isinstance(processor, ActionInputs) else recipe.data.image_size


def build_held_out(
    recipe: Recipe, opened: OpenedData, prepare: RowPreparer, config: Any, processor: Any
) -> HeldOutRows | None:
    """The held-out rows that this process scores: without augmentation, cropped as in acting; `None` for none."""
    if recipe.data.validation is None:
        return None
    return HeldOutRows(
        opened.held_out,
        replace(prepare, augment_instruction=None, augment_picture=None),
        build_collator(recipe, config, processor, opened.names, training=False),
        recipe.data.validation.rows,
        rank=int(os.environ.get("RANK", "0")),
        processes=run_shape(recipe).processes,
    )


def build_collator(
    recipe: Recipe, config: Any, processor: Any, sources: list[str], training: bool = True
) -> CoTrainingCollator | FlowCollator:
    processor = without_center_crop(processor) if training else processor
    if recipe.is_flow:
        return FlowCollator(processor, sources)
    context = config.text_config.max_position_embeddings
    return CoTrainingCollator(
        processor,
        action_weights(recipe, config),
        context,
        sources,
        most_tokens=recipe.data.max_tokens,
        longer_rows=recipe.data.longer_rows,
    )


def build_preparer(
    recipe: Recipe,
    processor: Any,
    norm_stats: dict[str, Any],
    collator: CoTrainingCollator | FlowCollator,
    config: Any,
) -> RowPreparer:
    data, seed = recipe.data, recipe.training.seed
    augment_picture = augment_instruction = None
    if data.image_augmentation:
        augment = partial(augment_image, settings=data.image_augmentation, seed=seed)
        strategy = getattr(processor.image_processor, "resize_strategy", "resize-naive")
        size = augmented_size(recipe, processor)
        augment_picture = partial(augment_resized, size=size, augment=augment, resize_strategy=strategy)
    if data.instruction_augmentation:
        probability = data.instruction_augmentation.probability
        augment_instruction = partial(paraphrased, probability=probability, seed=seed)
    shared: dict[str, Any] = {"augment_instruction": augment_instruction, "augment_picture": augment_picture}
    if isinstance(collator, FlowCollator):
        return FlowRowPreparer(
            processor, norm_stats, draw_noise=partial(draw_noise, config=config, seed=seed), **shared
        )
    return RowPreparer(processor, norm_stats, recipe.actions.label_decimals, fit=collator.fit, **shared)


def build_trainer(
    recipe: Recipe,
    model: Any,
    processor: Any,
    collator: CoTrainingCollator | FlowCollator,
    mixture: MixedTables | StreamingMixture,
    sampler: HalfAndHalfSampler | None,
    checkpoints: Path,
    callbacks: list[TrainerCallback] | None = None,
    progress: bool = True,
    held_out: HeldOutRows | None = None,
) -> CoTrainer:
    statistics = model.config.norm_stats
    if recipe.is_flow:
        kind, metrics = FlowTrainer, FlowMetrics(mixture.names, statistics)
    else:
        kind, metrics = CoTrainer, SourceMetrics(mixture.names, model.config.action_config, statistics)
    trainer = kind(
        model=model,
        args=training_arguments(recipe, checkpoints, progress),
        peft_config=lora_config(recipe, model),
        processing_class=processor,
        data_collator=partial(collate_with_counts, collate=collator),
        callbacks=callbacks,
        mixture=mixture,
        sampler=sampler,
        balance=recipe.loss.balance,
        vision_language_weight=recipe.loss.vision_language_weight,
        rates=rates(recipe.training),
        metrics=metrics,
        held_out=held_out,
    )
    if progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(SourceProgress())
    return trainer


def training_arguments(recipe: Recipe, checkpoints: Path, progress: bool = True) -> SFTConfig:
    settings = recipe.training
    given: dict[str, Any] = {CHECKPOINTING: settings.gradient_checkpointing}  # what differs between versions
    if recipe.model.family == "vla_plus":  # LLaVA's features are those before the last layers, which get no gradient
        given["ddp_find_unused_parameters"] = True
    if (validation := recipe.data.validation) is not None:
        kind = ROBOT if recipe.data.robot and validation.episodes else VISION_LANGUAGE
        given |= {
            "eval_strategy": "steps",
            "eval_steps": settings.eval_steps or settings.save_steps,
            "per_device_eval_batch_size": settings.batch_size,
            "metric_for_best_model": f"{HELD_OUT_PREFIX}{kind}/loss",
            "greater_is_better": False,
        }
    return SFTConfig(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.min_learning_rate_rate},
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        adam_beta2=settings.adam_beta2,
        **given,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_steps=settings.save_steps,
        save_total_limit=settings.save_total_limit,
        logging_steps=settings.logging_steps,
        disable_tqdm=not progress,
        max_length=None,
        use_cache=True,  # written into the saved configuration; the loss itself never asks for a cache
        report_to=settings.report_to,
        run_name=recipe.name,
        seed=settings.seed,
        remove_unused_columns=False,
        ignore_data_skip=recipe.data.streaming,  # a stream skips by itself, without decoding
        dataloader_num_workers=recipe.data.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def data_report(opened: OpenedData, mixture: MixedTables | StreamingMixture) -> dict[str, Any]:
    sizes: dict[str, int | None] = {name: len(table) for name, table in opened.tables.items()}
    sizes |= {name: stream.count_rows() for name, stream in opened.streams.items()}
    report: dict[str, Any] = {"clipping": opened.clipping}
    for kind in (ROBOT, VISION_LANGUAGE):
        report[kind] = [size for name, size in sizes.items() if name.partition("/")[0] == kind]
    problems = {name: counter.report() for name, counter in opened.problems.items()}
    undecodable = {name: counter.report() for name, counter in mixture.problems.items()}
    # A stream is read by all processes, a table written by one of them.
    report["problems"] = sum_over_processes(problems) if opened.streams else problems
    report["undecodable"] = sum_over_processes(undecodable)
    return report
