"""From other projects' checkpoints to folders of this family: `gen-vla convert SRC DST`.

Decides: which layout a folder has, what becomes of its tokenizer, image constants and statistics, and that nothing is
left behind by a conversion that fails. Refuses to know: which tensor goes where (`modeling/convert_*_weights.py`), how
weights larger than memory are read and written (`tensor_files.py`).

    layout                       told by                              what is read
    OpenVLA on the Hub           config.json: model_type openvla      *.safetensors, tokenizer.json, norm_stats,
                                                                      preprocessor_config.json
    Prismatic/OpenVLA run        config.json: "vla" or "model"        checkpoints/*.pt, dataset_statistics.json

The release of the paper's authors has OpenVLA's layout and three more tokens, which tell it; it writes actions as
"legacy" strings.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast
from transformers.dynamic_module_utils import custom_object_save

from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.modeling.convert_openvla_weights import (
    ConversionError,
    Piece,
    check_complete,
    hub_name,
    openvla_config,
    plan_openvla,
)
from gen_vla.processors import (
    PROMPT_TEMPLATE,
    ActionBins,
    ActionStringProcessor,
    OpenVLAPlusImageProcessor,
    OpenVLAPlusProcessor,
    make_action_config,
)
from gen_vla.training.tensor_files import Output, SafetensorsFolder, TorchCheckpoint, write_shards


IMAGE_TOKEN, PAD_TOKEN = "<image>", "<PAD>"
AUTHORS_MARKS = {"action": "<VLA_PROMPT>", "question": "<VLM_PROMPT>"}
DINOSIGLIP = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
LLAMA2 = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}  # of the base models that runs start from
LLAMA2_HEADS = {"7b": 32, "13b": 40}
REPRESENTATIONS = ("bins", "legacy", "signed", "plain")


@dataclass
class Conversion:
    """What a checkpoint says, before anything is written.

    Attributes:
        tensors: `SafetensorsFolder` or `TorchCheckpoint`.
        timm_ids, text: see `openvla_config`.
        norm_stats: OpenVLA's statistics by data set; empty for a model that only talks.
        pixels: arguments of the image processor; constants as the checkpoint stores them.
        tokenizer_folder: where the tokenizer lies, if it came along.
        bins: the number of bins, and the first token id behind theirs (`None`: the end of the vocabulary).
    """

    tensors: Any
    timm_ids: list[str]
    text: dict[str, Any]
    norm_stats: dict[str, Any]
    pixels: dict[str, Any] = field(default_factory=dict)
    tokenizer_folder: Path | None = None
    bins: int = 256
    bin_tokens_end: int | None = None


def convert(
    source: str | Path,
    destination: str | Path,
    actions: str | None = None,
    tokenizer: str | Path | None = None,
    frozen: str | None = None,
    center_crop_area: float | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    progress: bool = True,
) -> Path:
    """Converts a checkpoint into a folder that `from_pretrained` loads.

    Args:
        source: a folder, a `.pt` file of a run, or a name on the Hub.
        destination: the folder to write; must not exist yet.
        actions: `"bins"`, `"legacy"`, `"signed"` or `"plain"`; by default what the checkpoint was trained to write.
        tokenizer: folder or Hub name of the tokenizer, where the source has none.
        frozen: the encoder that further training leaves alone.
        center_crop_area: share of each picture's area to keep, 0.9 for models trained with random crops.
        dtype: of the weights; by default each keeps its own.
        max_shard_bytes: the size of a weight file.
        progress: whether to show a bar.

    Raises:
        ConversionError: if the source is of another architecture, or a tensor is missing or unexpected.
        FileNotFoundError, FileExistsError: as named.
    """
    destination = Path(destination)
    if destination.exists():
        raise FileExistsError(f"got {destination}, which exists; name a new folder, or remove that one first")
    if actions is not None and actions not in REPRESENTATIONS:
        raise ConversionError(f"got actions={actions!r}, expected one of {', '.join(map(repr, REPRESENTATIONS))}")
    found = read_source(source)
    config = OpenVLAPlusConfig(
        **openvla_config(found.tensors.shapes, found.timm_ids, found.text), norm_stats=found.norm_stats, frozen=frozen
    )
    plan = plan_openvla(config)
    check_complete(plan, found.tensors.shapes, config)
    processor = build_processor(found, config, actions, tokenizer, center_crop_area)
    config.image_token_id = processor.image_token_id
    config.action_config = processor.action_config
    config.prompt_template = processor.prompt_template
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as temporary:
        draft = Path(temporary) / destination.name
        draft.mkdir()
        outputs = plan_outputs(found.tensors, plan, config, dtype)
        save_architecture(draft, config, max((o for o in outputs), key=lambda o: o.nbytes).dtype)
        processor.save_pretrained(draft)
        if found.norm_stats:
            text = json.dumps(found.norm_stats, indent=2) + "\n"
            (draft / "dataset_statistics.json").write_text(text, encoding="utf-8")
        total = sum(output.nbytes for output in outputs)
        with tqdm(total=total, unit="B", unit_scale=True, desc="converting", disable=not progress) as bar:
            write_shards(draft, outputs, max_shard_bytes, bar.update)
        shutil.move(draft, destination)
    return destination


def read_source(source: str | Path) -> Conversion:
    """Finds out which layout a source has and reads everything but the tensors themselves."""
    path = Path(source)
    if path.suffix == ".pt" and path.is_file():
        return read_run(path.parent.parent, path)
    folder = path if path.is_dir() else download(str(source))
    settings = read_json(folder / "config.json")
    if "vla" in settings or "model" in settings:
        return read_run(folder, newest_checkpoint(folder / "checkpoints"))
    if settings.get("model_type") in ("openvla", "prismatic"):
        return read_hub_layout(folder, settings)
    raise ConversionError(
        f"got {folder} with model_type={settings.get('model_type')!r}, expected 'openvla' or 'prismatic', or the "
        "folder of a Prismatic training run"
    )


def download(name: str) -> Path:
    """A snapshot of a Hub repository; from the cache where it lies there."""
    from huggingface_hub import snapshot_download

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"got {name}, which is no folder and no name on the Hub such as openvla/openvla-7b")
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "tokenizer.model"]))


def read_hub_layout(folder: Path, settings: dict[str, Any]) -> Conversion:
    """OpenVLA's repository: everything lies in it."""
    text = dict(settings.get("text_config") or {})
    if any(settings.get("timm_override_act_layers") or []):
        raise ConversionError(
            f"got encoders with the activations {settings['timm_override_act_layers']}, expected none but their own"
        )
    tensors = SafetensorsFolder(folder)
    if not tensors.shapes:
        raise FileNotFoundError(f"got {folder} without *.safetensors, expected the weights; download them, too")
    extra = folder / "dataset_statistics.json"  # what fine-tuning saw; scripts of OpenVLA's users put it in place
    statistics = {**(settings.get("norm_stats") or {}), **(read_json(extra) if extra.is_file() else {})}
    bin_tokens_end = None
    if "vocab_size" in text:
        bin_tokens_end = text["vocab_size"] - settings.get("pad_to_multiple_of", 64)
    return Conversion(
        tensors=tensors,
        timm_ids=settings.get("timm_model_ids") or [],
        text={"pad_token_id": settings.get("pad_token_id", 32000), **text},
        norm_stats=statistics,
        pixels=read_image_constants(read_json(folder / "preprocessor_config.json")),
        tokenizer_folder=folder,
        bins=settings.get("n_action_bins", 256),
        bin_tokens_end=bin_tokens_end,
    )


def read_image_constants(settings: dict[str, Any]) -> dict[str, Any]:
    """Means and standard deviations, per encoder.

    The released processor normalises with `tvf_normalize_params`, which went through bfloat16 on their way, and not
    with the `means` and `stds` beside them; the former are what the model saw.
    """
    check_resize(settings.get("image_resize_strategy", "letterbox"))
    odd = [name for name in settings.get("interpolations", []) if name != "bicubic"]
    if odd:
        raise ConversionError(f"got a resize with {odd[0]} interpolation, expected bicubic")
    stored = settings.get("tvf_normalize_params")
    if stored:
        return {"means": [entry["mean"] for entry in stored], "stds": [entry["std"] for entry in stored]}
    return {"means": settings["means"], "stds": settings["stds"]}


def check_resize(strategy: str) -> None:
    """Raises `ConversionError` unless pictures are resized as this family does."""
    if strategy != "resize-naive":
        raise ConversionError(
            f"got image_resize_strategy={strategy!r}, expected 'resize-naive'; pictures of another shape would be "
            "seen differently than in training"
        )


def newest_checkpoint(folder: Path) -> Path:
    """`latest-checkpoint.pt`, or the one with the most steps."""
    latest = folder / "latest-checkpoint.pt"
    if latest.is_file():
        return latest
    steps = {int(match[1]): path for path in folder.glob("*.pt") if (match := re.search(r"step-(\d+)", path.name))}
    if not steps:
        raise FileNotFoundError(f"got no checkpoint in {folder}, expected latest-checkpoint.pt or step-*.pt")
    return steps[max(steps)]


def read_run(folder: Path, checkpoint: Path) -> Conversion:
    """A training run of Prismatic or OpenVLA, in which the names of the base models stand for their sizes."""
    settings = read_json(folder / "config.json")
    statistics = folder / "dataset_statistics.json"
    if "vla" in settings:
        base = str(settings["vla"]["base_vlm"])
        strategy = "letterbox" if "letterbox" in base else "resize-naive"
        norm_stats = read_json(statistics)
    else:
        model = settings["model"]
        base, strategy, norm_stats = f"{model['vision_backbone_id']} {model['llm_backbone_id']}", "", {}
        strategy = model.get("image_resize_strategy", "resize-naive")
    size = re.search(r"\d+b", base)
    if "dinosiglip" not in base or size is None or size[0] not in LLAMA2_HEADS or "mistral" in base:
        raise ConversionError(
            f"got a run on {base!r}, expected one on DINOv2 and SigLIP ('dinosiglip') and Llama-2 of 7b or 13b"
        )
    check_resize(strategy)
    return Conversion(
        tensors=TorchCheckpoint(checkpoint, "model", hub_name),
        timm_ids=DINOSIGLIP,
        text={**LLAMA2, "num_attention_heads": LLAMA2_HEADS[size[0]], "pad_token_id": 32000},
        norm_stats=norm_stats,
    )


def build_processor(
    found: Conversion,
    config: OpenVLAPlusConfig,
    actions: str | None,
    tokenizer_source: str | Path | None,
    center_crop_area: float | None,
) -> OpenVLAPlusProcessor:
    """The processor that goes with a checkpoint."""
    tokenizer = load_tokenizer(tokenizer_source or found.tokenizer_folder, config.text_config.vocab_size)
    if tokenizer.pad_token_id != config.text_config.pad_token_id:
        raise ConversionError(
            f"got a tokenizer whose {PAD_TOKEN} is {tokenizer.pad_token_id}, expected "
            f"{config.text_config.pad_token_id}; it belongs to another model"
        )
    marks = {name: mark for name, mark in AUTHORS_MARKS.items() if mark in tokenizer.get_vocab()}
    prompts = {name: text.replace("In: ", f"In: {marks[name]} ") if name in marks else text for name, text in PROMPTS}
    action_config = None
    if config.norm_stats:
        codec = action_codec(actions or ("legacy" if marks else "bins"), config.norm_stats, found.bins)
        action_config = make_action_config(codec, tokenizer, found.bin_tokens_end)
    return OpenVLAPlusProcessor(
        OpenVLAPlusImageProcessor(
            image_size=config.dino_config.image_size, center_crop_area=center_crop_area, **found.pixels
        ),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        action_config=action_config,
        prompt_template=prompts,
    )


PROMPTS = tuple(PROMPT_TEMPLATE.items())


def action_codec(actions: str, norm_stats: dict[str, Any], bins: int) -> ActionBins | ActionStringProcessor:
    """The representation by its name; the dimensions are those of the statistics."""
    dims = {key: len(entry["action"]["q01"]) for key, entry in norm_stats.items()}
    if len(set(dims.values())) != 1:
        raise ConversionError(f"got statistics of different dimensions, expected the same for all: {dims}")
    action_dim = next(iter(dims.values()))
    if actions == "bins":
        return ActionBins(action_dim, bins=bins)
    return ActionStringProcessor(action_dim, style=actions)


def load_tokenizer(source: str | Path | None, vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with `<PAD>` and the image placeholder, both inside the model's vocabulary.

    Its `tokenizer.json` is taken as it is. Nothing else of its configuration is, which may name code of its own.
    """
    if source is None:
        raise ConversionError(
            "got a training run, which holds no tokenizer, and no tokenizer; pass --tokenizer with a folder or a name "
            "on the Hub, such as meta-llama/Llama-2-7b-hf"
        )
    file = Path(source) / "tokenizer.json"
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(str(source), "tokenizer.json"))
    if not file.is_file():
        raise FileNotFoundError(f"got {source} without tokenizer.json, expected a fast tokenizer; pass --tokenizer")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token=PAD_TOKEN,
        additional_special_tokens=[IMAGE_TOKEN],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    if len(tokenizer) > vocab_size:
        raise ConversionError(
            f"got a tokenizer of {len(tokenizer)} tokens, {IMAGE_TOKEN} and {PAD_TOKEN} included, and an embedding "
            f"of {vocab_size} rows, expected a row for each"
        )
    return tokenizer


def plan_outputs(tensors: Any, plan: dict[str, Piece], config: Any, dtype: torch.dtype | None) -> list[Output]:
    """The tensors to write, in the order of the plan, each with the shape the model wants."""
    shapes = model_shapes(config)
    wrong = sorted(shapes.keys() ^ plan.keys())
    assert not wrong, f"the plan and the model differ in {wrong}"
    outputs = []
    for name, piece in plan.items():
        if piece.source is None:
            neighbour = next(entry.source for entry in plan.values() if entry.source)
            kind = dtype or tensors.dtypes[neighbour]
            outputs.append(Output(name, shapes[name], kind, zeros(shapes[name])))
        else:
            kind = dtype or tensors.dtypes[piece.source]
            outputs.append(Output(name, shapes[name], kind, reader(tensors, piece)))
    return outputs


def zeros(shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    """Reads as zeros."""
    return lambda: torch.zeros(shape)


def reader(tensors: Any, piece: Piece) -> Callable[[], torch.Tensor]:
    """Reads a tensor when its turn comes."""
    return lambda: piece.change(tensors.read(piece.source, piece.part, piece.parts))


def model_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by the names in a file, which are transformers 4's."""
    with torch.device("meta"):
        model = OpenVLAPlusForVision2Seq(config)
    return {file_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def file_name(name: str) -> str:
    """The name in a file of a tensor of the model: both generations of transformers read those of the fourth."""
    for five, four in (
        ("q", "attention.query"),
        ("k", "attention.key"),
        ("v", "attention.value"),
        ("o", "output.dense"),
    ):
        name = re.sub(rf"(\.dino\.encoder\.layer\.\d+\.attention)\.{five}_proj\.", rf"\1.{four}.", name)
    return name


def save_architecture(folder: Path, config: OpenVLAPlusConfig, dtype: torch.dtype) -> None:
    """config.json, generation_config.json and the code, as `save_pretrained` would write them beside the weights."""
    with torch.device("meta"):
        model = OpenVLAPlusForVision2Seq(config)
    config.architectures = [type(model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    custom_object_save(model, str(folder), config=config)
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content; the error names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"got no {path}, expected it beside the weights; copy the whole folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConversionError(f"got {path}, which is not JSON: {error}") from error
