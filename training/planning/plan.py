"""What a recipe's run will need: memory per GPU and hours on 1, 8 and 64 of them, before anything is rented.

    gen-vla train openvla_plus_bridge --plan

Weights, gradients and optimizer state are counted exactly, from the model's parameters on the meta device. Activations
and times are estimates:

    activations   with gradient checkpointing one residual per layer and one layer at work, else every layer's
    work          2 operations per weight and token forwards, 2 more backwards where it or something below it trains,
                  2 more for the weights that train, 2 more where checkpointing computes it again
    time          work / (peak x utilisation); no network, no starving loader
    rows          of the language model all as long as the longer kind, to which a batch is padded, in the median that
                  `--check` measured; of the encoders as many pictures as a row has on average
    memory        that of the longest batch that the recipe allows (`data.max_tokens`)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from PIL import Image
from rich.table import Table

from gen_vla import modeling
from gen_vla.modeling.base_configuration import image_tokens
from gen_vla.training.checkpoints import family_named, has_processor, read_config, read_processor
from gen_vla.training.converting.foreign_layouts import LLAMA2
from gen_vla.training.lora import lora_config
from gen_vla.training.mixing.prepared_rows import ROBOT, VISION_LANGUAGE
from gen_vla.training.model_building import local_start, model_sizes, set_picture_options
from gen_vla.training.planning.row_lengths import RowLengths, read_lengths
from gen_vla.training.recipes.loading import load_recipe, recipe_names
from gen_vla.training.recipes.schema import PACKAGE_PREFIX, Recipe


UTILISATION = 0.4  # of the peak; what well-tuned runs of this size reach
PROMPT_TOKENS = 25  # of an instruction or a question, the picture's apart
ANSWER_TOKENS = 60  # of a vision-language row, on average
USUAL_TOKENS = 256  # of a picture in a stock vision-language model
PALIGEMMA = "paligemma-3b-pt-224"  # how names of folders with it begin in shipped recipes
SMOL = "smol-"  # the same of SmolLM2's
PI0_PLUS = Path(modeling.__file__).parent / "full_size" / "pi0-plus.json"
GPU_COUNTS = (1, 8, 64)
FLOAT32, BFLOAT16 = 4, 2
ADAM_BYTES = 8  # two float32 moments
LOADER_BYTES = 0.45e9  # of a loader process besides its buffers; this and the next by `rehearsal.py`
BUFFER_OVERHEAD = 1.3  # memory of buffers over what is held in them


class Gpu(NamedTuple):
    """Memory, and dense bf16 operations per second (accumulated in float32), from the maker's data sheets."""

    bytes: float
    peak: float


GPUS = {
    "a100": Gpu(80e9, 312e12),
    "h100": Gpu(80e9, 989e12),  # SXM, as is the next
    "h200": Gpu(141e9, 989e12),
    "l40s": Gpu(48e9, 362e12),
    "rtx4090": Gpu(24e9, 165e12),
}


@dataclass(frozen=True)
class PartSize:
    """One part of the model, and the tokens of one row that pass through it, padding included."""

    name: str
    trainable: int  # parameters
    frozen: int
    layers: int  # 0 where there are no blocks, as are the widths of their residual and inside their MLP
    width: int
    inner: int
    tokens: int
    largest_block: int  # parameters, which a sharded run gathers whole
    longest: int = 0  # tokens of a row in the longest batch; 0 where all rows are alike
    checkpointed: bool = True  # whether gradient checkpointing reaches it, where a recipe asks for that

    @property
    def parameters(self) -> int:
        return self.trainable + self.frozen


@dataclass(frozen=True)
class Plan:
    """One way to run a recipe: how many GPUs and how state is spread over them, bytes per GPU, and times."""

    gpu: str  # of `GPUS`
    gpus: int
    strategy: str
    weights: float
    gradients: float
    optimizer: float
    activations: float
    seconds_per_step: float
    rows_per_second: float  # over all GPUs
    hours: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def fits(self) -> bool:
        return self.total < 0.95 * GPUS[self.gpu].bytes


def plan_recipe(recipe: Recipe, work_dir: Path, gpu: str = "h100") -> tuple[list[PartSize], list[Plan]]:
    config = planned_config(recipe, work_dir)
    parts = part_sizes(recipe, config, read_lengths(work_dir / recipe.name))
    several = ["DDP"] if recipe.training.lora else ["DDP", "FSDP2"]
    ways = [(gpus, strategy) for gpus in GPU_COUNTS for strategy in (several if gpus > 1 else ["whole"])]
    return parts, [plan(recipe, parts, gpus, strategy, gpu) for gpus, strategy in ways]


def planned_config(recipe: Recipe, work_dir: Path) -> Any:
    """The configuration of the model to start from, where it is known, else the family's full size."""
    family, start = family_named(recipe.model.family), recipe.model.initial_model
    if start is not None and (saved := local_start(start, work_dir) / "config.json").is_file():
        config = family.config(**json.loads(saved.read_text(encoding="utf-8")))
        if recipe.model.family == "vla_plus":
            config.num_image_tokens = picture_tokens(saved.parent, recipe)
    elif recipe.model.family == "vla_plus" and str(start).startswith(PALIGEMMA):  # as shipped recipes name it
        config = family.config(**json.loads(PI0_PLUS.read_text(encoding="utf-8")))
        config.num_image_tokens = image_tokens(config.vlm_config.vision_config)
    elif (maker := maker_of_start(recipe)) and maker.model.initial_model:
        config = planned_config(maker, work_dir)
    elif start is not None and (recipe.model.family == "vla_plus" or start.startswith(SMOL)):
        raise FileNotFoundError(
            f"got model.initial_model={start!r} and no {work_dir / start}, expected the folder of a model that "
            "gen-vla convert made there: its sizes are in its config.json"
        )
    else:
        settings = maker and model_sizes(maker.model, maker.data.image_size, maker.tokenizer.vocab_size)
        config = family.config(**(settings or {}))
        if settings is None and recipe.model.family == "openvla_plus":  # what a converted Prismatic has
            config.text_config.max_position_embeddings = LLAMA2["max_position_embeddings"]
        if recipe.model.family == "vla_plus":
            config.num_image_tokens = image_tokens(config.vlm_config.vision_config)
    if not recipe.is_flow:
        config.frozen = recipe.model.frozen
    return config


def maker_of_start(recipe: Recipe) -> Recipe | None:
    """The shipped recipe whose run is what a recipe starts from; itself where that is random weights."""
    if recipe.model.initial_model is None:
        return recipe
    named = recipe.model.initial_model.removeprefix(PACKAGE_PREFIX)
    return next((each for each in map(load_recipe, recipe_names()) if each.name == named), None)


def part_sizes(recipe: Recipe, config: Any, measured: Mapping[str, RowLengths] | None = None) -> list[PartSize]:
    """The parts of the model, counted on the meta device; rows as long as `measured` by `--check`, if they were."""
    with torch.device("meta"):
        model: Any = family_named(recipe.model.family).model(config)
        adapters = lora_config(recipe, model)
        if adapters is not None:
            model = get_peft_model(model, adapters).get_base_model()
    model.train()
    row = max(row_lengths(recipe, config, measured).values())  # a batch is padded to its longest kind
    if recipe.is_flow:
        return flow_part_sizes(recipe, model, row)
    longest = longest_row(recipe, config, measured)
    if recipe.model.family == "vla_plus":
        parts = vlm_part_sizes(recipe, model, row)
    else:
        parts = plus_part_sizes(recipe, model, config, row)
    return [replace(part, longest=longest) if part.name == "language_model" else part for part in parts]


def plus_part_sizes(recipe: Recipe, model: Any, config: Any, row: int) -> list[PartSize]:
    each, tower = config.num_image_tokens, model.model.vision_tower
    parts = [
        blocks_size(name, tower.get_submodule(name), over_pictures(recipe, each + tower.prefix_tokens[name]))
        for name in tower.names
    ]
    parts.append(blocks_size("projector", model.model.projector, over_pictures(recipe, each)))
    parts.append(blocks_size("language_model", model.model.language_model, row))
    if model.lm_head.weight is not model.model.get_input_embeddings().weight:  # they are not tied
        parts.append(blocks_size("lm_head", model.lm_head, 0))
    return parts


def vlm_part_sizes(recipe: Recipe, model: Any, row: int) -> list[PartSize]:
    vlm, pictures = model.vlm.model, over_pictures(recipe, model.config.num_image_tokens)
    patches = round(pictures * patches_per_token(model.config.vlm_config))
    vision = {name: part for name in model.family.vision if isinstance(part := getattr(vlm, name), torch.nn.Module)}
    parts = [blocks_size(name, part, patches) for name, part in vision.items()]
    if model.config.frozen:
        parts.append(blocks_size("frozen_vision", vlm.frozen_vision, patches))
    parts.append(blocks_size("language_model", model.get_decoder(), row))
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        parts.append(blocks_size("lm_head", model.get_output_embeddings(), 0))
    return parts


def patches_per_token(vlm_config: Any) -> float:
    vision = vlm_config.vision_config
    if (tokens := getattr(vlm_config, "mm_tokens_per_image", None)) is not None:
        return (vision.image_size // vision.patch_size) ** 2 / tokens
    side = getattr(vision, "spatial_merge_size", None) or getattr(vlm_config, "scale_factor", None)
    return (side or 1 / getattr(vlm_config, "downsample_ratio", 1)) ** 2


def picture_tokens(folder: Path, recipe: Recipe) -> int:
    """Image tokens of a square picture, by the processor in a folder; `USUAL_TOKENS` where there is none."""
    if not has_processor(folder):
        return USUAL_TOKENS
    processor = read_processor(folder)
    set_picture_options(processor, recipe)
    side = recipe.data.image_size
    ids = processor.question_inputs(Image.new("RGB", (side, side)), "?")["input_ids"]
    return int((ids == read_config(folder).image_token_id).sum())


def flow_part_sizes(recipe: Recipe, model: Any, row: int) -> list[PartSize]:
    """The parts of the flow-matching π0; what a cache is read from cannot be checkpointed (see its model's file)."""
    vlm, chunk = model.model.vlm, recipe.actions.horizon + 1  # the state's token and the actions'
    pictures = over_pictures(recipe, model.config.num_image_tokens)
    sizes = [
        blocks_size("vision_tower", vlm.vision_tower, pictures),
        blocks_size("projector", vlm.multi_modal_projector, pictures),
        replace(blocks_size("language_model", vlm.language_model, row), checkpointed=False),
        replace(blocks_size("action_expert", model.model.dit, chunk), checkpointed=False),
    ]
    ends = (model.embed_action_time, model.action_out_proj)
    return [*sizes, blocks_size("action_layers", torch.nn.ModuleDict(dict(zip(("first", "last"), ends))), chunk)]


def blocks_size(name: str, module: Any, tokens: int) -> PartSize:
    parameters = list(module.parameters())
    lists = [child for child in module.modules() if isinstance(child, torch.nn.ModuleList)]
    blocks = max(lists, key=len, default=torch.nn.ModuleList())
    config = getattr(module, "config", None)
    width = getattr(config, "hidden_size", 0) if len(blocks) else 0
    inner = getattr(config, "intermediate_size", 0) or int(getattr(config, "mlp_ratio", 4) * width)
    return PartSize(
        name=name,
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        frozen=sum(parameter.numel() for parameter in parameters if not parameter.requires_grad),
        layers=len(blocks),
        width=width,
        inner=inner if len(blocks) else 0,
        tokens=tokens,
        largest_block=max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0),
    )


def row_lengths(recipe: Recipe, config: Any, measured: Mapping[str, RowLengths] | None = None) -> dict[str, int]:
    """Tokens of a row of each kind there is: its pictures, the prompt, the answer (none of a flow), EOS.

    Where `--check` measured a kind, the largest median of its data sets, cut as the recipe cuts.
    """
    actions, data, lengths = recipe.actions, recipe.data, {}
    if data.robot:
        pictures = cameras_shown(recipe) * config.num_image_tokens
        # Bins have no token between steps.
        per_value, between = (1, 0) if actions.representation == "bins" else (actions.decimals + 3, 1)
        answer = actions.horizon * (actions.action_dim * per_value + between) - between + 1
        lengths["robot"] = pictures + PROMPT_TOKENS + (0 if recipe.is_flow else answer)
    if data.questions:
        lengths["vision-language"] = config.num_image_tokens + PROMPT_TOKENS + ANSWER_TOKENS + 1
    for kind, prefix in (("robot", ROBOT), ("vision-language", VISION_LANGUAGE)):
        medians = [each.median for name, each in (measured or {}).items() if name.startswith(f"{prefix}/")]
        if kind in lengths and medians:
            lengths[kind] = max(medians)
    if data.questions:
        lengths["vision-language"] = min(lengths["vision-language"], data.max_tokens or lengths["vision-language"])
    return lengths


def longest_row(recipe: Recipe, config: Any, measured: Mapping[str, RowLengths] | None = None) -> int:
    lengths = row_lengths(recipe, config, measured)
    if not recipe.data.questions:
        return lengths["robot"]
    context = config.text_config.max_position_embeddings
    return max(min(recipe.data.max_tokens or context, context), *lengths.values())


def loading_sentence(recipe: Recipe) -> str:
    data = recipe.data
    return (
        f"{data.num_workers} loaders with shuffle buffers of {data.shuffle_memory:g} GB in all (data.shuffle_memory): "
        f"about {loading_gigabytes(recipe):.1f} GB of the machine's memory per GPU process, the model apart"
    )


def loading_gigabytes(recipe: Recipe) -> float:
    """Memory of the loaders of a recipe that streams, buffers full, per GPU process."""
    return recipe.data.shuffle_memory * BUFFER_OVERHEAD + (recipe.data.num_workers + 1) * LOADER_BYTES / 1e9


def row_sentence(recipe: Recipe, config: Any, measured: Mapping[str, RowLengths] | None = None) -> str:
    lengths = row_lengths(recipe, config, measured)
    texts = config.vlm_config.text_config if recipe.is_flow else config.text_config
    context = texts.max_position_embeddings
    sentence = ", ".join(f"a {kind} row about {length:,} tokens" for kind, length in lengths.items())
    sentence += f"; the model takes {context:,} (max_position_embeddings)"
    if recipe.data.questions:
        longest = longest_row(recipe, config, measured)
        sentence += f"; activations are those of a batch of {longest:,} tokens a row, the longest (data.max_tokens)"
    for name, each in (measured or {}).items():
        sentence += f"\n{name}: {each}, as --check measured {each.rows:,} rows"
    if not measured:
        sentence += "; gen-vla train RECIPE --check measures them"
    if lengths.get("robot", 0) <= context:
        return sentence
    return f"{sentence}: too long, a run would stop; lower actions.horizon or actions.decimals, or show fewer cameras"


def cameras_shown(recipe: Recipe) -> int:
    return max((len(source.cameras or [None]) for source in recipe.data.robot), default=1)


def over_pictures(recipe: Recipe, tokens: int) -> int:
    """Tokens of an average row's pictures: a robot row has one per camera, any other row one; none is padded."""
    cameras = cameras_shown(recipe)
    return round(tokens * ((cameras + 1) / 2 if recipe.data.questions else cameras))


def plan(recipe: Recipe, parts: list[PartSize], gpus: int, strategy: str, gpu: str = "h100") -> Plan:
    training = recipe.training
    shards = gpus if strategy == "FSDP2" else 1
    trainable, frozen = sum(part.trainable for part in parts), sum(part.frozen for part in parts)
    # Half-precision copies: of every trained weight under autocast, of the block at work and the next one if sharded.
    halves = BFLOAT16 * (trainable if shards == 1 else 2 * max(part.largest_block for part in parts))
    micro_seconds = sum(work(part, training.gradient_checkpointing) for part in parts) * training.batch_size
    seconds = micro_seconds * training.gradient_accumulation_steps / (GPUS[gpu].peak * UTILISATION)
    rows = training.batch_size * training.gradient_accumulation_steps * gpus
    return Plan(
        gpu=gpu,
        gpus=gpus,
        strategy=strategy,
        weights=FLOAT32 * (trainable + frozen) / shards + halves,
        gradients=FLOAT32 * trainable / shards,
        optimizer=ADAM_BYTES * trainable / shards,
        activations=activations(parts, training.batch_size, training.gradient_checkpointing),
        seconds_per_step=seconds,
        rows_per_second=rows / seconds,
        hours=seconds * training.steps / 3600,
    )


def work(part: PartSize, checkpointing: bool) -> float:
    """Operations for one row: forwards, backwards where it trains or something below it does, and again."""
    forward = 2.0 * part.parameters * part.tokens
    if part.name == "language_model":  # its embedding is a table; its output layer's rows are few
        forward = 2.0 * part.layers * part.largest_block * part.tokens
    if not part.trainable and part.layers:
        return forward
    return forward * (2 + part.trainable / part.parameters + (checkpointing and part.checkpointed))


def activations(parts: list[PartSize], batch: int, checkpointing: bool) -> float:
    kept = at_work = 0.0
    for part in parts:
        tokens = max(part.tokens, part.longest)
        block = batch * tokens * (16 * part.width + 4 * part.inner) * BFLOAT16
        if not part.trainable:
            at_work = max(at_work, block)
        elif checkpointing and part.checkpointed:
            kept += part.layers * batch * tokens * part.width * FLOAT32
            at_work = max(at_work, 2 * block)
        else:
            kept += part.layers * block
    return kept + at_work


def plan_tables(recipe: Recipe, parts: list[PartSize], plans: list[Plan]) -> list[Table]:
    sizes = Table(title=f"{recipe.name}: parameters (exact)")
    for column in ("part", "trained", "frozen", "tokens per row"):
        sizes.add_column(column, justify="right")
    for part in parts:
        sizes.add_row(part.name, f"{part.trainable:,}", f"{part.frozen:,}", str(part.tokens or "supervised"))
    sizes.add_row("in all", f"{sum(p.trainable for p in parts):,}", f"{sum(p.frozen for p in parts):,}", "")
    gpu = GPUS[plans[0].gpu]
    ways = Table(
        title=f"{recipe.training.steps:,} steps of {recipe.training.batch_size} rows per GPU (estimates)",
        caption=(
            f"float32 weights, bf16 arithmetic, AdamW; {plans[0].gpu}: {gpu.bytes / 1e9:.0f} GB, "
            f"{gpu.peak / 1e12:.0f} TFLOP/s at {100 * UTILISATION:.0f} %; "
            f"{ANSWER_TOKENS} tokens per vision-language answer; no network time"
        ),
    )
    for column in ("GPUs", "spread", "weights", "gradients", "Adam", "activations", "GB in all", "rows/s", "hours"):
        ways.add_column(column, justify="right")
    for way in plans:
        memory = (f"{b / 1e9:.1f}" for b in (way.weights, way.gradients, way.optimizer, way.activations))
        total = f"{way.total / 1e9:.0f}" + ("" if way.fits else " (too much)")
        speed = (f"{way.rows_per_second:.0f}", f"{way.hours:.1f}") if way.fits else ("-", "-")
        ways.add_row(str(way.gpus), way.strategy, *memory, total, *speed)
    return [sizes, ways]
