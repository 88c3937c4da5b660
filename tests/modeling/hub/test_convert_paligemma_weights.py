"""`gen-vla convert` for PaliGemma: transformers' own model, under the published files' names, comes back as π0+."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import load_converted
from safetensors.torch import save_file
from tiny_models import IMAGE_SIZE, IMAGE_TOKENS, picture, tiny_tokenizer, with_large_weights
from tokenizers import Tokenizer
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from gen_vla.commands.main import main
from gen_vla.modeling import Pi0PlusConfig, Pi0PlusForVision2Seq
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.modeling.convert_paligemma_weights import paligemma_config
from gen_vla.training.checkpoints import load_model, read_processor
from gen_vla.training.converting.conversion import convert, model_shapes
from gen_vla.training.storage.tensor_files import SafetensorsFolder


TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8}
VISION: dict[str, int] = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "patch_size": 4}
VISION["image_size"] = IMAGE_SIZE
HEADS = {"text_config": {"num_attention_heads": 8}, "vision_config": {"num_attention_heads": 16}}


def gemma_tokenizer() -> Tokenizer:
    """The tiny Gemma-like vocabulary with Gemma's names and ids: `<pad>`, `<eos>`, `<bos>`, `<unk>`, then the rest."""
    content = json.loads(tiny_tokenizer("gemma_like").backend_tokenizer.to_str())
    small = content["model"]["vocab"]
    kept = [piece for piece in sorted(small, key=lambda piece: small[piece]) if piece not in ("<unk>", "<s>", "</s>")]
    content["model"]["vocab"] = {
        piece: number for number, piece in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", *kept))
    }
    content["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<image>"])
    return tokenizer


def stock_config(vision: dict[str, int], text: dict[str, int], image_token_index: int) -> PaliGemmaConfig:
    """transformers' configuration of a PaliGemma of these sizes."""
    return PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **vision, "vision_use_head": False},
        text_config={"model_type": "gemma", **text, "pad_token_id": 0},
        image_token_index=image_token_index,
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
    )


@pytest.fixture(scope="module")
def stock() -> Any:
    """transformers' PaliGemma, tiny."""
    torch.manual_seed(5)
    size = gemma_tokenizer().get_vocab_size() + 11  # rows to spare, as in the published embedding
    text = {**TEXT, "num_attention_heads": 8, "vocab_size": size}
    image_token = gemma_tokenizer().token_to_id("<image>") or 0
    config = stock_config({**VISION, "num_attention_heads": 16}, text, image_token)
    model = with_large_weights(PaliGemmaForConditionalGeneration(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def published(stock: Any) -> dict[str, torch.Tensor]:
    """Tensors under the names of the published files, which transformers 4.41 wrote."""
    renamed = {}
    for name, tensor in stock.state_dict().items():
        if name == "lm_head.weight":
            continue
        name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
        if "vision_model" not in name:
            name = name.replace("vision_tower.", "vision_tower.vision_model.")
        renamed[name] = tensor.clone()
    return renamed


def write_paligemma(folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    """PaliGemma's Hub layout. Its config.json relies on transformers' defaults for what is not in it."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    gemma_tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "paligemma",
        "image_token_index": gemma_tokenizer().token_to_id("<image>"),
        "text_config": {"model_type": "gemma", "hidden_size": 2048, "num_attention_heads": 8, "vocab_size": 257216},
        "vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 16, "hidden_size": 1152},
        **settings,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    pixels: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    pixels["size"] = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels), encoding="utf-8")
    return folder


@pytest.mark.parametrize("dual", [True, False])
def test_step_0_is_paligemma(stock: Any, tmp_path: Path, dual: bool) -> None:
    source = write_paligemma(tmp_path / "source", published(stock))
    convert(source, tmp_path / "converted", dual=dual, progress=False)
    model, processor = load_converted(tmp_path / "converted")
    assert model.config.frozen == ("siglip" if dual else None)
    assert list(model.model.vision_tower.names) == ["siglip", "siglip_copy"][: 1 + dual]
    assert processor.num_image_tokens == IMAGE_TOKENS
    inputs = processor.question_inputs(picture(), "how many?")
    assert inputs["input_ids"][0, :6].tolist() == [processor.image_token_id] * 4 + [2, inputs["input_ids"][0, 5]]
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, stock(**inputs).logits
    assert torch.equal(ours, theirs)
    assert float(ours.std()) > 0.1


def test_names_of_both_generations_give_the_same(stock: Any, tmp_path: Path) -> None:
    convert(write_paligemma(tmp_path / "old", published(stock)), tmp_path / "from_old", progress=False)
    new = {name: tensor.clone() for name, tensor in stock.state_dict().items()}
    convert(write_paligemma(tmp_path / "new", new), tmp_path / "from_new", progress=False)
    old, new_files = SafetensorsFolder(tmp_path / "from_old"), SafetensorsFolder(tmp_path / "from_new")
    assert new_files.shapes.keys() - old.shapes.keys() == {"lm_head.weight"}  # the embedding once more
    assert all(torch.equal(old.read(name), new_files.read(name)) for name in old.shapes)


def save_with_transformers(stock: Any, folder: Path) -> Path:
    """Model and processor as the transformers that is installed saves them."""
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    tokenizer, widened = (
        PreTrainedTokenizerFast(
            tokenizer_object=gemma_tokenizer(), **special, additional_special_tokens=["<image>"], padding_side="left"
        )
        for _ in range(2)
    )
    pixels: Any = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5, 0.25, 0.5])
    pixels.image_seq_length = IMAGE_TOKENS
    stock.save_pretrained(folder)
    PaliGemmaProcessor(pixels, widened, chat_template="{{ messages[0]['content'] }}").save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # without the <loc> tokens that the processor adds where they are missing
    return folder


@pytest.mark.parametrize("family", ["pi0_plus", "pi0_flow"])
@pytest.mark.parametrize("generation", ["installed", "4", "5"])
def test_folders_that_transformers_saved_itself(stock: Any, tmp_path: Path, generation: str, family: str) -> None:
    """Transformers 4 writes the image processor into a file of its own, 5 into the processor's."""
    source = save_with_transformers(stock, tmp_path / "source")
    together, apart = source / "processor_config.json", source / "preprocessor_config.json"
    settings = json.loads(together.read_text()) if together.is_file() else {}
    pixels = settings.pop("image_processor", None) or json.loads(apart.read_text())
    if generation == "4":
        together.write_text(json.dumps({**settings, "image_seq_length": IMAGE_TOKENS}))
        apart.write_text(json.dumps(pixels))
    elif generation == "5":
        together.write_text(json.dumps({**settings, "image_processor": pixels}))
        apart.unlink(missing_ok=True)
    options = {"family": "pi0_flow", "expert": {"hidden_size": 16, "intermediate_size": 16}}
    convert(source, tmp_path / "converted", progress=False, **(options if family == "pi0_flow" else {"dual": False}))
    processor = read_processor(tmp_path / "converted")
    assert processor.image_processor.means == [[0.5, 0.25, 0.5]]
    assert "In:" not in processor.chat_template or family == "pi0_plus"
    assert processor.num_image_tokens == IMAGE_TOKENS
    if family == "pi0_plus":
        inputs = processor.question_inputs(picture(), "how many?")
        with torch.no_grad():
            ours, theirs = load_model(tmp_path / "converted")(**inputs).logits, stock(**inputs).logits
        assert torch.equal(ours, theirs)


def test_a_folder_without_an_image_processor_or_a_fast_tokenizer_says_so(stock: Any, tmp_path: Path) -> None:
    source = write_paligemma(tmp_path / "source", published(stock))
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    with pytest.raises(FileNotFoundError, match=r"without tokenizer.json, .* with tokenizer.model alone, write it"):
        convert(source, tmp_path / "converted", progress=False)
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"without an image processor, expected preprocessor_config.json, or one"
    ):
        convert(source, tmp_path / "converted", progress=False)


def test_sizes_come_from_the_tensors(stock: Any) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in published(stock).items()}
    settings = {**HEADS, "text_config": {"num_hidden_layers": 18, "num_attention_heads": 8}}
    config = paligemma_config(shapes, settings, "siglip")
    text, vision = config["text_config"], config["vision_config"]
    assert {name: text[name] for name in TEXT} == TEXT
    assert (text["num_attention_heads"], text["vocab_size"]) == (
        8,
        shapes["language_model.model.embed_tokens.weight"][0],
    )
    assert {name: vision[name] for name in VISION} == VISION
    assert (text["num_attention_heads"], vision["num_attention_heads"]) == (8, 16)
    with pytest.raises(ConversionError, match="got a vision_config without num_attention_heads"):
        paligemma_config(shapes, {}, "siglip")


def test_what_does_not_fit_is_refused(stock: Any, tmp_path: Path) -> None:
    incomplete = published(stock)
    del incomplete["vision_tower.vision_model.post_layernorm.bias"]
    expert = {**published(stock), "action_expert.weight": torch.ones(1)}
    head = {**published(stock), "vision_tower.vision_model.head.probe": torch.ones(1)}
    cases: list[tuple[dict[str, torch.Tensor], dict[str, Any], str]] = [
        (incomplete, {}, r"2 missing and 0 unexpected(?s:.*)siglip_copy.post_layernorm.bias"),
        (expert, {}, r"0 missing and 1 unexpected(?s:.*)unexpected: action_expert.weight"),
        (head, {}, r"unexpected: vision_tower.vision_model.head.probe"),
        (published(stock), {"text_config": {"model_type": "gemma2"}}, "a language model of type 'gemma2', expected"),
        (published(stock), {"image_token_index": 5}, r"got a tokenizer whose <image> is \d+, expected 5"),
    ]
    for number, (tensors, settings, message) in enumerate(cases):
        write_paligemma(tmp_path / str(number), tensors, **settings)
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / str(number), tmp_path / "converted", progress=False)
    with pytest.raises(ConversionError, match="got actions for a PaliGemma, which does not act yet"):
        convert(tmp_path / "0", tmp_path / "converted", actions="bins", progress=False)
    assert not (tmp_path / "converted").exists()


def test_the_command(stock: Any, tmp_path: Path) -> None:
    source = write_paligemma(tmp_path / "source", published(stock))
    assert main(["convert", str(source), str(tmp_path / "plain"), "--no-dual", "--dtype", "bfloat16"]) == 0
    written = SafetensorsFolder(tmp_path / "plain")
    assert set(written.dtypes.values()) == {torch.bfloat16}
    assert not [name for name in written.shapes if "siglip_copy" in name]


def test_the_full_size_has_the_published_shapes() -> None:
    """The shapes of google/paligemma-3b-pt-224's tensors give the default configuration."""
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    text = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8}
    text |= {"num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216}
    default = Pi0PlusConfig()
    with torch.device("meta"):
        stock = PaliGemmaForConditionalGeneration(
            stock_config({**vision, "image_size": 224, "patch_size": 14}, text, image_token_index=257152)
        )
        shapes = {name: tuple(tensor.shape) for name, tensor in published(stock).items()}
        assert sum(map(math.prod, shapes.values())) == 2_923_466_480
        config = Pi0PlusConfig(**paligemma_config(shapes, HEADS, "siglip"))
        assert model_shapes(Pi0PlusForVision2Seq(config)) == model_shapes(Pi0PlusForVision2Seq(default))
    assert {name: getattr(config.text_config, name) for name in text} == text
    assert {name: getattr(config.vision_config, name) for name in vision} == vision
    for name in ("text_config", "vision_config"):
        assert getattr(config, name).num_attention_heads == getattr(default, name).num_attention_heads
