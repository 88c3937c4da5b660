"""Converts other projects' checkpoints to folders of this family: `gen-vla convert SRC DST`.

`foreign_layouts.py` reads what a checkpoint of OpenVLA says about itself, `modeling/convert_openvla_weights.py` plans
which tensor goes where, and `storage/tensor_files.py` moves the weights one by one. Vision-language models are read by
transformers' own classes (`vlm_conversion.py`, `paligemma_flow.py`, `language_model.py`).

The release of the paper's authors has OpenVLA's layout and three more tokens. They identify it: it writes actions as
"legacy" strings, and its prompts begin with one of these tokens.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.modeling.conversion_plan import ConversionError, Piece
from gen_vla.modeling.convert_openvla_weights import check_complete, openvla_config, plan_openvla
from gen_vla.processors import (
    PROMPT_TEMPLATE,
    ActionBins,
    ActionStringProcessor,
    OpenVLAPlusImageProcessor,
    OpenVLAPlusProcessor,
    make_action_config,
)
from gen_vla.training.converting.foreign_layouts import (
    LLAMA_TOKENS,
    OpenVLACheckpoint,
    load_tokenizer,
    read_source,
)
from gen_vla.training.converting.language_model import convert_language_model
from gen_vla.training.converting.paligemma_flow import convert_to_flow
from gen_vla.training.converting.vlm_conversion import convert_vlm, vlm_type
from gen_vla.training.converting.writing import new_folder, save_architecture
from gen_vla.training.storage.json_files import write_json
from gen_vla.training.storage.tensor_files import Output, write_shards


AUTHORS_MARKS = {"action": "<VLA_PROMPT>", "question": "<VLM_PROMPT>"}
FAMILIES = ("vla_plus", "pi0_flow")  # what PaliGemma becomes
REPRESENTATIONS = ("bins", "legacy", "signed", "plain")


@dataclass(frozen=True)
class ConversionSettings:
    """What the user chose.

    Attributes:
        actions: `"bins"`, `"legacy"`, `"signed"` or `"plain"`; by default what the checkpoint was trained to write.
        tokenizer: folder or Hub name of the tokenizer, where the source has none.
        frozen: the encoder of OpenVLA that further training leaves alone.
        dual: whether a vision-language model's encoder is doubled and one copy frozen; by default it is.
        family: what PaliGemma becomes: `"vla_plus"` (by default), as other vision-language models do, or
            `"pi0_flow"`, π0 with an action expert of random weights, which a `vla_plus` of PaliGemma becomes, too.
        expert: `hidden_size` and `intermediate_size` of that expert; by default a half and a quarter of the language
            model's, as in π0.
        center_crop_area: share of each picture's area to keep, 0.9 for models trained with random crops.
        encoders: the model whose vision encoders a language model gets; see `language_model.py`.
        dtype: of the weights; by default each keeps its own.
        max_shard_bytes: the size of a weight file.
        check: whether what became `vla_plus` is compared with its base model.
    """

    actions: str | None = None
    tokenizer: str | Path | None = None
    frozen: str | None = None
    dual: bool | None = None
    family: str | None = None
    expert: dict[str, int] | None = None
    center_crop_area: float | None = None
    encoders: str | None = None
    dtype: torch.dtype | None = None
    max_shard_bytes: int = 5 * 10**9
    check: bool = True

    def __post_init__(self) -> None:
        for name, known in (("actions", REPRESENTATIONS), ("family", FAMILIES)):
            if (value := getattr(self, name)) not in (None, *known):
                raise ConversionError(f"got {name}={value!r}, expected one of {', '.join(map(repr, known))}")


def convert(source: str | Path, destination: str | Path, **settings: Any) -> Path:
    """Converts a checkpoint into a folder that `from_pretrained` loads.

    Args:
        source: a folder, a `.pt` file of a run, or a name on the Hub; with `encoders` also a GGUF file, see
            `convert_language_model`.
        destination: the folder to write; must not exist yet, and is not there after a conversion that fails.
        settings: see `ConversionSettings`.

    Raises:
        ConversionError: if the source is of another architecture, or a tensor is missing or unexpected.
        FileNotFoundError, FileExistsError: as named.
    """
    options = ConversionSettings(**settings)
    kind = vlm_type(source) if options.encoders is None else None
    with new_folder(Path(destination)) as draft:
        if options.encoders is not None:
            unused = ("actions", "tokenizer", "frozen", "dual", "family", "center_crop_area")
            check_options("language model", options, unused)
            convert_language_model(source, options.encoders, draft, options.dtype, options.max_shard_bytes)
        elif kind is None:
            write_openvla(source, draft, options)
        elif options.family == "pi0_flow":
            if kind not in ("paligemma", "vla_plus"):
                raise ConversionError(
                    f"got --family pi0_flow for a {kind}, expected a PaliGemma, which π0 starts from, or a "
                    "vla_plus of one"
                )
            check_options(kind, options, ("actions", "frozen", "dual"))
            given = (options.tokenizer, options.expert, options.center_crop_area)
            convert_to_flow(source, draft, *given, options.dtype, options.max_shard_bytes)
        elif kind == "vla_plus":
            raise ConversionError("got a vla_plus, expected --family pi0_flow, the only family that it is turned into")
        else:
            check_options(kind, options, ("actions", "tokenizer", "frozen", "center_crop_area"))
            dual = options.dual is not False
            convert_vlm(source, draft, dual, options.dtype, options.max_shard_bytes, options.check)
    return Path(destination)


def check_options(kind: str, options: ConversionSettings, unused: tuple[str, ...]) -> None:
    if given := ", ".join(name for name in unused if getattr(options, name) is not None):
        raise ConversionError(
            f"got {given} for a {kind}, expected none of {', '.join(unused)}: it gets its action format from the "
            "recipe that trains it"
        )


def write_openvla(source: str | Path, draft: Path, options: ConversionSettings) -> None:
    """OpenVLA+ from OpenVLA, its weights moved one by one."""
    if options.dual is not None:
        raise ConversionError("got --dual or --no-dual for OpenVLA, expected neither: it has two encoders as it is")
    if options.family is not None:
        raise ConversionError(f"got --family {options.family}, which is for PaliGemma; OpenVLA becomes openvla_plus")
    found = read_source(source)
    sizes = openvla_config(found.tensors.shapes, found.timm_ids, found.text)
    config = OpenVLAPlusConfig(**sizes, norm_stats=found.norm_stats, frozen=options.frozen)
    plan = plan_openvla(config)
    check_complete(plan, found.tensors.shapes, config)
    processor = openvla_processor(found, config, options)
    config.image_token_id = processor.image_token_id
    config.action_config = processor.action_config
    config.prompt_template = processor.prompt_template
    with torch.device("meta"):  # shapes without memory
        model = OpenVLAPlusForVision2Seq(config)
    outputs = plan_outputs(found.tensors, model, plan, options.dtype)
    draft.mkdir()
    save_architecture(draft, model, max(outputs, key=lambda output: output.nbytes).dtype)
    processor.save_pretrained(draft)
    if config.norm_stats:
        write_json(draft / "dataset_statistics.json", config.norm_stats)
    write_shards(draft, outputs, options.max_shard_bytes)


def openvla_processor(
    found: OpenVLACheckpoint, config: OpenVLAPlusConfig, options: ConversionSettings
) -> OpenVLAPlusProcessor:
    tokenizer = load_tokenizer(options.tokenizer or found.tokenizer_folder, LLAMA_TOKENS, config.text_config)
    vocabulary = tokenizer.get_vocab()
    prompts = dict(PROMPT_TEMPLATE)
    marks = {name: mark for name, mark in AUTHORS_MARKS.items() if mark in vocabulary}
    for name, mark in marks.items():
        prompts[name] = prompts[name].replace("In: ", f"In: {mark} ")
    action_config = None
    if found.norm_stats:
        codec = action_codec(options.actions or ("legacy" if marks else "bins"), found.norm_stats, found.bins)
        action_config = make_action_config(codec, tokenizer, found.bin_tokens_end)
    size = config.dino_config.image_size
    return OpenVLAPlusProcessor(
        OpenVLAPlusImageProcessor(image_size=size, center_crop_area=options.center_crop_area, **found.pixels),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        action_config=action_config,
        prompt_template=prompts,
    )


def action_codec(actions: str, norm_stats: dict[str, Any], bins: int) -> ActionBins | ActionStringProcessor:
    dims = {key: len(entry["action"]["q01"]) for key, entry in norm_stats.items()}
    if len(set(dims.values())) != 1:
        raise ConversionError(f"got statistics of different dimensions, expected the same for all: {dims}")
    action_dim = next(iter(dims.values()))
    if actions == "bins":
        return ActionBins(action_dim, bins=bins)
    return ActionStringProcessor(action_dim, style=actions)


def plan_outputs(tensors: Any, model: Any, plan: dict[str, Piece], dtype: torch.dtype | None) -> list[Output]:
    shapes = model_shapes(model)
    assert shapes.keys() - plan.keys() <= {"lm_head.weight"}
    assert plan.keys() <= shapes.keys()
    usual = next(tensors.dtypes[piece.source] for piece in plan.values() if piece.source)

    def output(name: str, piece: Piece) -> Output:
        source, shape = piece.source, shapes[name]
        if source is None:
            return Output(name, shape, dtype or usual, lambda: torch.zeros(shape))
        read = lambda: piece.change(tensors.read(source, piece.part, piece.parts))  # noqa: E731
        return Output(name, shape, dtype or tensors.dtypes[source], read)

    return [output(name, piece) for name, piece in plan.items()]


def model_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {file_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def file_name(name: str) -> str:
    """The name in a file of a tensor of the model: transformers 4's, which 5 reads as well."""
    renamed = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    for five, four in {**renamed, "o_proj": "output.dense"}.items():
        name = re.sub(rf"(\.dino\.encoder\.layer\.\d+\.attention)\.{five}\.", rf"\1.{four}.", name)
    return name
