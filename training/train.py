"""Runs a recipe: data, tokenizer, model, TRL training, saved model.

    gen-vla train mini_openvla_plus --work-dir outputs                  # the command line of this file
    gen-vla train mini_openvla_plus --work-dir outputs --resume         # continues from the last checkpoint
    gen-vla train mini_openvla_plus --processes 2                       # several processes, gradients averaged

Decides: the order of these steps and what lies where in the work folder:

    WORK_DIR/<data sets>            as the recipe names them; recorded from the simulator where it says so
    WORK_DIR/<recipe name>/         model, processor, recipe.yaml, dataset_statistics.json, training_log.json
    WORK_DIR/<recipe name>/checkpoints/checkpoint-<step>/, and recipe.yaml, what a resumed run must agree with

Refuses to know: what the loss is, how rows are mixed, how a repository is published.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback
from trl.trainer.sft_config import SFTConfig

from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.processors import (
    PROMPT_TEMPLATE,
    ActionBins,
    ActionGrammar,
    ActionStringProcessor,
    OpenVLAPlusImageProcessor,
    OpenVLAPlusProcessor,
    make_action_config,
)
from gen_vla.training.checkpoints import check_folder, load_model, load_processor
from gen_vla.training.co_trainer import CoTrainer, SourceProgress
from gen_vla.training.collator import CoTrainingCollator
from gen_vla.training.mixture import (
    ROBOT_COLUMNS,
    HalfAndHalfSampler,
    build_mixture,
    load_columns,
    robot_statistics,
)
from gen_vla.training.recipe import ActionRecipe, Recipe, RobotSource, as_settings
from gen_vla.training.token_weights import ActionTokenWeights, BinTokenWeights
from gen_vla.training.tokenizer import train_tokenizer


FREE_TO_CHANGE = ("description", "training.save_steps", "training.logging_steps")  # in a resumed run
RECORDING_SETTINGS = "recording_settings.json"  # what a recorded data set was asked for, beside it


def run_recipe(
    recipe: Recipe,
    work_dir: str | Path,
    resume: bool = False,
    callbacks: list[TrainerCallback] | None = None,
    progress: bool = True,
) -> Path:
    """Trains a recipe and saves the model.

    Args:
        recipe: what to run.
        work_dir: where data sets lie and results go.
        resume: continue from the newest checkpoint of this recipe, if there is one.
        callbacks: further callbacks of the trainer.

    Returns:
        The folder of the saved model, loadable with `trust_remote_code=True`.

    Raises:
        FileExistsError: if there are checkpoints and `resume` is false.
        FileNotFoundError: if the model to start from or a data set is missing.
        ValueError: if there are checkpoints of another recipe.
    """
    work_dir = Path(work_dir)
    output_dir = work_dir / recipe.name
    checkpoints = output_dir / "checkpoints"
    if recipe.model.initial_model:
        check_folder(work_dir / recipe.model.initial_model)
    last = claim_checkpoints(recipe, checkpoints, resume)
    record_missing_data(recipe, work_dir)
    model, processor = build_model(recipe, work_dir)
    rows, report = build_mixture(recipe, work_dir, processor, model.config.norm_stats)
    trainer = build_trainer(recipe, model, processor, rows, report, checkpoints, callbacks, progress)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.is_world_process_zero():
        save_run(recipe, trainer, model, processor, report, output_dir)
    trainer.accelerator.wait_for_everyone()
    return output_dir


def claim_checkpoints(recipe: Recipe, checkpoints: Path, resume: bool) -> Path | None:
    """The checkpoint to continue from, or `None`; raises where another run's checkpoints are in the way.

    A run that starts anew must not find any: its own, of fewer steps, would be overlooked when it is resumed.
    """
    last, record = last_checkpoint(checkpoints), checkpoints / "recipe.yaml"
    if last and not resume:
        raise FileExistsError(
            f"got {last} of an earlier run, expected none; resume it (--resume) or delete {checkpoints}"
        )
    if last and record.is_file():
        earlier = flat(yaml.safe_load(record.read_text(encoding="utf-8")))
        now = flat(as_settings(recipe))
        changed = sorted(name for name in earlier.keys() | now.keys() if earlier.get(name) != now.get(name))
        changed = [name for name in changed if name not in FREE_TO_CHANGE]
        if changed:
            settings = "; ".join(f"{name} was {earlier.get(name)!r} and is {now.get(name)!r}" for name in changed)
            raise ValueError(
                f"got another recipe than that of {last}: {settings}; a resumed run keeps its recipe: restore these "
                f"settings, or start anew without {checkpoints}"
            )
    elif int(os.environ.get("RANK", "0")) == 0:
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_recipe(record, recipe)
    return last


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def record_missing_data(recipe: Recipe, work_dir: Path) -> None:
    """Records the data sets that are missing and that the recipe says how to record (main process only).

    Raises:
        ValueError: if a data set is there that was recorded with other settings.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return
    for source in [*recipe.data.robot, *recipe.data.vision_language]:
        if source.record is None:
            continue
        folder = work_dir / source.path
        settings = {**dataclasses.asdict(source.record), "image_size": recipe.data.image_size}
        if folder.exists():
            check_recording(folder, settings)
            continue
        from gen_vla.training import metaworld_recording as recording

        robot = isinstance(source, RobotSource)
        (recording.record_demonstrations if robot else recording.record_questions)(folder, **settings)
        write_json(folder / RECORDING_SETTINGS, settings)


def check_recording(folder: Path, settings: dict[str, Any]) -> None:
    """Raises `ValueError` if a folder says that it was recorded with other settings."""
    path = folder / RECORDING_SETTINGS
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8"))) != settings:
        raise ValueError(
            f"got {folder} recorded with {found}, expected {settings}; delete the folder or use another work folder"
        )


def build_model(recipe: Recipe, work_dir: Path) -> tuple[OpenVLAPlusForVision2Seq, OpenVLAPlusProcessor]:
    """The model at the start of training, and its processor."""
    norm_stats: dict[str, Any] = {}
    for source in recipe.data.robot:
        dataset = load_columns(work_dir / source.path, ROBOT_COLUMNS, "record or convert it first")
        norm_stats |= robot_statistics(dataset, source.key)
    torch.manual_seed(recipe.training.seed)
    if recipe.model.initial_model:
        return _continue_from(work_dir / recipe.model.initial_model, recipe, norm_stats)
    tokenizer = train_tokenizer(recipe_texts(recipe, work_dir), recipe.tokenizer.vocab_size)
    size = {"image_size": recipe.data.image_size}
    config = OpenVLAPlusConfig(
        dino_config={"model_type": "dinov2_with_registers", **size, **recipe.model.dino},
        siglip_config={"model_type": "siglip_vision_model", "vision_use_head": False, **size, **recipe.model.siglip},
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            **recipe.model.text,
        },
        frozen=recipe.model.frozen,
        initializer_range=recipe.model.initializer_range,
        image_token_id=tokenizer.get_vocab()["<image>"],
        action_config=make_recipe_action_config(recipe.actions, tokenizer),
        norm_stats=norm_stats,
        prompt_template=PROMPT_TEMPLATE,
    )
    processor = OpenVLAPlusProcessor(
        OpenVLAPlusImageProcessor(image_size=recipe.data.image_size),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        action_config=config.action_config,
        prompt_template=PROMPT_TEMPLATE,
    )
    return OpenVLAPlusForVision2Seq(config), processor


def _continue_from(
    folder: Path, recipe: Recipe, norm_stats: dict[str, Any]
) -> tuple[OpenVLAPlusForVision2Seq, OpenVLAPlusProcessor]:
    """Another model's weights under this recipe's settings: which tower is frozen, what an action looks like."""
    processor = load_processor(folder)
    config = OpenVLAPlusConfig.from_pretrained(folder)
    config.frozen = recipe.model.frozen
    config.norm_stats = norm_stats
    config.action_config = make_recipe_action_config(recipe.actions, processor.tokenizer)
    processor.action_config = config.action_config
    return load_model(folder, config), processor


def make_recipe_action_config(actions: ActionRecipe, tokenizer: Any) -> dict[str, Any]:
    """The action format of a recipe, for this tokenizer."""
    if actions.representation == "bins":
        end = None
        if actions.bin_tokens == "bytes":
            first, last = (tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in (0, 255))
            if first is None or last is None or last - first != 255:
                raise ValueError(
                    "got a tokenizer without 256 byte pieces in a row, expected them; set bin_tokens: last"
                )
            end = last + 1
        return make_action_config(ActionBins(actions.action_dim, actions.horizon), tokenizer, end)
    strings = ActionStringProcessor(
        action_dim=actions.action_dim,
        horizon=actions.horizon,
        decimals=actions.decimals,
        style=actions.style,
        binary_dims=actions.binary_dims,
    )
    return make_action_config(strings, tokenizer)


def recipe_texts(recipe: Recipe, work_dir: Path) -> list[str]:
    """What the recipe's models will read and write, for training a tokenizer: every different prompt and answer."""
    texts = {PROMPT_TEMPLATE["action"].format(instruction=text) for text in recipe.tokenizer.instructions}
    for name in recipe.tokenizer.texts_from:
        dataset = load_columns(work_dir / name, ("image",), "record or convert it first")
        if "instruction" in dataset.column_names:
            texts |= {PROMPT_TEMPLATE["action"].format(instruction=i.lower()) for i in set(dataset["instruction"])}
        if "question" in dataset.column_names:
            texts |= {PROMPT_TEMPLATE["question"].format(question=q) for q in set(dataset["question"])}
            texts |= {PROMPT_TEMPLATE["answer"].format(answer=a) for a in set(dataset["answer"])}
    if not recipe.tokenizer.texts_from:
        raise ValueError("got no texts to train a tokenizer on, expected data sets in tokenizer.texts_from")
    return sorted(texts)


def build_trainer(
    recipe: Recipe,
    model: OpenVLAPlusForVision2Seq,
    processor: OpenVLAPlusProcessor,
    rows: Any,
    report: dict[str, Any],
    checkpoints: Path,
    callbacks: list[TrainerCallback] | None = None,
    progress: bool = True,
) -> CoTrainer:
    """The TRL trainer of a recipe."""
    settings = recipe.training
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    run_rows = settings.steps * settings.batch_size * settings.gradient_accumulation_steps * processes
    sampler = HalfAndHalfSampler(report["robot"], report["vision_language"], run_rows, settings.seed)
    arguments = SFTConfig(
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
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=settings.logging_steps,
        disable_tqdm=not progress,
        max_length=None,
        use_cache=True,  # written into the saved configuration; the loss itself never asks for a cache
        report_to="none",
        seed=settings.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    pieces = (model.config.action_config or {}).get("pieces", {})
    trainer = CoTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=processor,
        data_collator=CoTrainingCollator(
            processor, action_weights(recipe, model.config), model.config.text_config.max_position_embeddings
        ),
        callbacks=callbacks,
        sampler=sampler,
        balance=recipe.loss.balance,
        sign_ids=[pieces[sign] for sign in "+-" if sign in pieces],
    )
    if progress:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(SourceProgress())
    return trainer


def action_weights(recipe: Recipe, config: OpenVLAPlusConfig) -> ActionTokenWeights | BinTokenWeights | None:
    """The loss weights of action tokens, or `None` without robot data."""
    if not recipe.data.robot or not config.action_config:
        return None
    statistics = [entry["action"] for entry in config.norm_stats.values()]
    constant = [
        dim
        for dim in range(recipe.actions.action_dim)
        if all(entry["min"][dim] == entry["max"][dim] for entry in statistics)
    ]
    if recipe.actions.representation == "bins":
        return BinTokenWeights(recipe.actions.action_dim, constant, recipe.loss.constant_dimension_weight)
    return ActionTokenWeights(
        ActionGrammar.from_action_config(config.action_config),
        recipe.loss.decimal_weights,
        constant,
        recipe.loss.constant_dimension_weight,
    )


def save_run(
    recipe: Recipe, trainer: CoTrainer, model: Any, processor: Any, report: dict[str, Any], output_dir: Path
) -> None:
    """Writes the model, the processor, and what is needed to know where they came from."""
    output_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    write_json(output_dir / "dataset_statistics.json", model.config.norm_stats)
    write_json(output_dir / "training_log.json", {"data": report, "history": trainer.state.log_history})
    write_recipe(output_dir / "recipe.yaml", recipe)


def write_recipe(path: Path, recipe: Recipe) -> None:
    """The complete recipe, defaults filled in, as `load_recipe` reads it."""
    path.write_text(yaml.safe_dump(as_settings(recipe), sort_keys=False), encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: the trainer's state is what it writes last."""
    states = {
        path: re.fullmatch(r"checkpoint-(\d+)", path.parent.name) for path in folder.glob("*/trainer_state.json")
    }
    complete = {int(match[1]): path.parent for path, match in states.items() if match and path.stat().st_size}
    return complete[max(complete)] if complete else None


def run_in_processes(arguments: list[str], processes: int) -> int:
    """Runs `gen-vla train` with these arguments in several processes of this machine; returns the exit code."""
    threads = max((os.cpu_count() or 1) // processes, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.call([*command, "-m", "gen_vla.training.cli", "train", *arguments], env=environment)
