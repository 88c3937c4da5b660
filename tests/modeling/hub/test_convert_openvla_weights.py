"""`gen-vla convert` for OpenVLA: every layout, everything that can be wrong with one, and what a conversion leaves."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_checkpoints import (
    AUTHORS_TOKENS,
    full_size_shapes,
    load_converted,
    parity_tensors,
    run_state,
    wide_tokenizer,
    write_hub_folder,
    write_run_folder,
)
from hub_stand_in import HubStandIn
from PIL import Image
from safetensors import safe_open
from tiny_models import picture

from gen_vla.commands.main import main
from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.modeling.convert_openvla_weights import check_complete, openvla_config, plan_openvla
from gen_vla.processors import ActionBins
from gen_vla.training.checkpoints import read_processor
from gen_vla.training.converting import conversion, foreign_layouts
from gen_vla.training.converting.conversion import convert
from gen_vla.training.storage.tensor_files import SafetensorsFolder, TensorFileError


DINO, SIGLIP = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
IDS = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return parity_tensors()


@pytest.fixture
def source(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """OpenVLA's Hub layout, tiny, for a test to spoil."""
    return write_hub_folder(tmp_path / "source", tensors, wide_tokenizer())


@pytest.fixture
def run(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A training run, and its tokenizer beside it."""
    wide_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return write_run_folder(tmp_path / "run", tensors)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]) -> Path:
    """The source, converted. It has a buffer that old checkpoints have and nobody needs."""
    old = {**tensors, "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)}
    root = tmp_path_factory.mktemp("openvla")
    return convert(write_hub_folder(root / "source", old, wide_tokenizer()), root / "converted")


def edit(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; `None` removes."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def refused(source: Path, message: str, error: type[Exception] = ConversionError, **options: Any) -> None:
    """Converting stops with this message and leaves nothing behind."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(error, match=message):
        convert(source, source.parent / "refused", **options)
    assert sorted(source.parent.iterdir()) == before


# ---- the configuration
def test_sizes_come_from_the_tensors(tensors: dict[str, torch.Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = openvla_config(shapes, IDS, {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 5})
    dino, siglip, text = (config[f"{part}_config"] for part in ("dino", "siglip", "text"))
    assert (dino["hidden_size"], dino["num_hidden_layers"], dino["mlp_ratio"]) == (32, 3, 4)
    assert (dino["num_register_tokens"], dino["image_size"], dino["patch_size"]) == (4, 224, 14)
    assert (siglip["hidden_size"], siglip["num_hidden_layers"], siglip["intermediate_size"]) == (48, 4, 179)
    assert (text["hidden_size"], text["num_hidden_layers"], text["vocab_size"]) == (64, 2, 32064)
    assert (dino["num_attention_heads"], siglip["num_attention_heads"]) == (16, 16)  # of the timm ids
    assert (text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"]) == (32, 32, 2)
    assert text["rms_norm_eps"] == 1e-6
    with pytest.raises(ConversionError, match="got the encoder 'vit_giant_patch14_reg4_dinov2', whose number"):
        openvla_config(shapes, ["vit_giant_patch14_reg4_dinov2", IDS[1]], {})
    with pytest.raises(ConversionError, match="expected DINOv2 and SigLIP, in this order"):
        openvla_config(shapes, IDS[::-1], {})
    with pytest.raises(ConversionError, match="got a language model of type 'phi', expected 'llama'"):
        openvla_config(shapes, IDS, {"model_type": "phi"})


def test_the_full_size_is_the_default_configuration() -> None:
    shapes = full_size_shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == 7_541_237_184  # as published
    config = OpenVLAPlusConfig(**openvla_config(shapes, IDS, {"pad_token_id": 32000}))
    plan = plan_openvla(config)
    check_complete(plan, shapes, config)
    with torch.device("meta"):
        ours, default = (conversion.model_shapes(OpenVLAPlusForVision2Seq(c)) for c in (config, OpenVLAPlusConfig()))
    assert ours == default
    assert plan.keys() == ours.keys()


# ---- the weights
def test_missing_and_unexpected_tensors_are_listed(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    spoiled = dict(tensors)
    del spoiled[f"{DINO}.blocks.1.mlp.fc2.bias"]
    del spoiled["language_model.model.layers.0.mlp.up_proj.weight"]
    spoiled["language_model.model.layers.1.self_attn.q_proj.lora_A"] = torch.ones(2)
    lines = (
        r"2 missing and 1 unexpected tensors\n"
        r"  missing:    language_model\.model\.layers\.0\.mlp\.up_proj\.weight\n"
        rf"  missing:    {DINO}\.blocks\.1\.mlp\.fc2\.bias\n"
        r"  unexpected: language_model\.model\.layers\.1\.self_attn\.q_proj\.lora_A\n"
    )
    refused(write_hub_folder(tmp_path / "source", spoiled, wide_tokenizer()), lines)


@pytest.mark.parametrize("name", [f"{DINO}.pos_embed", "language_model.model.embed_tokens.weight"])
def test_a_missing_tensor_that_tells_a_size_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], name: str
) -> None:
    source = write_hub_folder(tmp_path / "source", {n: t for n, t in tensors.items() if n != name}, wide_tokenizer())
    refused(source, f"got a checkpoint without {name}")


def test_a_tensor_of_another_shape_stops_the_conversion(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    spoiled = {**tensors, "projector.fc2.bias": torch.zeros(63)}
    source = write_hub_folder(tmp_path / "source", spoiled, wide_tokenizer())
    refused(source, r"got model.projector.fc2.bias of shape \[63\], expected \[64\]", TensorFileError)


def test_shards_and_dtypes(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """bfloat16 in, bfloat16 out, bit for bit, in shards no larger than asked for."""
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    source = write_hub_folder(tmp_path / "source", half, wide_tokenizer(), shards=3)
    convert(source, tmp_path / "converted", max_shard_bytes=300_000)
    sizes = [path.stat().st_size for path in (tmp_path / "converted").glob("model-*.safetensors")]
    embeddings = 32064 * 64 * 2  # a single tensor may be larger than a shard
    assert len(sizes) > 3
    assert sum(size > 320_000 for size in sizes) == 2
    assert max(sizes) < embeddings + 20_000
    written = SafetensorsFolder(tmp_path / "converted")
    assert set(written.dtypes.values()) == {torch.bfloat16}
    joint = half[f"{SIGLIP}.blocks.2.attn.qkv.weight"]
    for part, name in enumerate(("q", "k", "v")):
        ours = written.read(f"model.vision_tower.siglip.encoder.layers.2.self_attn.{name}_proj.weight")
        assert torch.equal(ours, joint.chunk(3)[part])
    assert config_of(tmp_path / "converted")["dtype"] == "bfloat16"
    convert(source, tmp_path / "wide", dtype=torch.float32)
    assert set(SafetensorsFolder(tmp_path / "wide").dtypes.values()) == {torch.float32}


def test_what_is_written_is_what_save_pretrained_writes(converted: Path, tmp_path: Path) -> None:
    """The same files and tensors as after loading and saving, so that nothing is this writer's own."""
    for part in load_converted(converted):
        part.save_pretrained(tmp_path / "saved")
    assert {path.name for path in converted.iterdir()} == {path.name for path in (tmp_path / "saved").iterdir()}
    ours = SafetensorsFolder(converted)
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as saved:
        assert set(saved.keys()) == set(ours.shapes)
        assert all(torch.equal(saved.get_tensor(name), ours.read(name)) for name in saved.keys())  # noqa: SIM118
    for name in ("config.json", "processor_config.json", "generation_config.json"):
        contents = [json.loads((folder / name).read_text("utf-8")) for folder in (converted, tmp_path / "saved")]
        assert contents[0] == contents[1], name


def test_an_incomplete_download_is_named(source: Path) -> None:
    first = source / "model-00001-of-00002.safetensors"
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    refused(source, "got .*model-00001-of-00002.safetensors, expected a whole safetensors", TensorFileError)
    first.unlink()
    refused(source, "without model-00001-of-00002", FileNotFoundError)


# ---- tokenizer, actions, pictures
def test_the_vocabulary_gains_a_placeholder_and_no_row(converted: Path) -> None:
    model, processor = load_converted(converted)
    tokenizer = processor.tokenizer
    assert (tokenizer.pad_token_id, processor.image_token_id, len(tokenizer)) == (32000, 32001, 32002)
    assert model.get_input_embeddings().weight.shape == (32064, 64)
    config = model.config.action_config
    assert (config["representation"], config["bin_tokens_end"], config["lead_in_ids"]) == ("bins", 32000, [29871])
    assert config == processor.action_config
    assert model.config.frozen is None
    assert sorted(model.config.norm_stats) == ["bridge_orig", "fractal20220817_data"]


def test_tokenizers_of_other_models_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    source = write_hub_folder(tmp_path / "source", tensors, wide_tokenizer(("<other>", "<PAD>")))
    refused(source, "got a tokenizer whose pad token is 32001, expected 32000")
    wide_tokenizer(("<PAD>", *(f"<{number}>" for number in range(63)))).save(str(source / "tokenizer.json"))
    refused(source, "got a tokenizer of 32065 tokens, <image> included")


def test_statistics_of_fine_tuning_come_along(source: Path, tmp_path: Path) -> None:
    norm_stats = config_of(source)["norm_stats"]
    (source / "dataset_statistics.json").write_text(json.dumps({"mine": norm_stats["bridge_orig"]}), encoding="utf-8")
    edit(source / "config.json", norm_stats=None)
    model, processor = load_converted(convert(source, tmp_path / "converted"))
    assert model.predict_action(**processor.action_inputs(picture(), "go")).shape == (7,)


def test_the_authors_release_writes_legacy_strings(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    tokenizer = wide_tokenizer(("<PAD>", *AUTHORS_TOKENS))
    source = write_hub_folder(tmp_path / "source", tensors, tokenizer)
    model, processor = load_converted(convert(source, tmp_path / "legacy"))
    assert processor.image_token_id == 32004
    assert processor.action_config["style"] == "legacy"
    assert processor.action_prompt("Go") == "In: <VLA_PROMPT> What action should the robot take to go?\nOut:"
    assert processor.question_prompt("How many?") == "In: <VLM_PROMPT> How many?\nOut:"
    assert processor.encode_text(processor.action_prompt("go")).count(32002) == 1
    prediction = model.predict_actions(**processor.action_inputs(picture(), "go"), unnorm_key="bridge_orig")
    assert prediction.text[0].count(",") == 7
    convert(source, tmp_path / "bins", actions="bins")
    assert config_of(tmp_path / "bins")["action_config"]["representation"] == "bins"


@pytest.mark.parametrize("actions", ["signed", "plain"])
def test_what_may_be_asked_for_is_saved(source: Path, tmp_path: Path, actions: str) -> None:
    options = {"actions": actions, "center_crop_area": 0.9, "frozen": "siglip"}
    config = config_of(convert(source, tmp_path / "converted", **options))
    assert config["action_config"]["style"] == actions
    assert config["frozen"] == "siglip"
    image = np.zeros((200, 200, 3), dtype=np.uint8)
    image[:4] = image[-4:] = 255  # 0.9 of the area leaves out 5 pixels on each side
    processor = read_processor(tmp_path / "converted")
    pixels = processor.image_processor([Image.fromarray(image)], return_tensors="pt")["pixel_values"]
    assert float(pixels[0, 3:].max()) == -1.0


def test_an_image_processor_of_either_generation_of_transformers(source: Path, tmp_path: Path) -> None:
    """Transformers 5 saves it in processor_config.json; its nominal constants count where no others are stored."""
    pixels = json.loads((source / "preprocessor_config.json").read_text(encoding="utf-8"))
    convert(source, tmp_path / "four")
    edit(source / "preprocessor_config.json", tvf_normalize_params=None)
    convert(source, tmp_path / "nominal")
    edit(source / "preprocessor_config.json", image_resize_strategy="letterbox")
    refused(source, "got image_resize_strategy='letterbox', expected 'resize-naive'")
    (source / "preprocessor_config.json").unlink()
    settings = {"processor_class": "PrismaticProcessor", "image_processor": pixels}
    (source / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    convert(source, tmp_path / "five")
    four, five, nominal = (read_processor(tmp_path / n).image_processor for n in ("four", "five", "nominal"))
    assert (five.means, five.stds) == (four.means, four.stds)
    assert nominal.means == [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]] != five.means  # which went through bfloat16
    del pixels["means"], pixels["tvf_normalize_params"]
    (source / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    refused(source, r"got an image processor with .*expected tvf_normalize_params, or")


def test_bins_of_the_default_codec_are_openvlas(source: Path) -> None:
    statistics = config_of(source)["norm_stats"]
    codec = conversion.action_codec("bins", statistics, 256)
    assert isinstance(codec, ActionBins)
    assert (codec.action_dim, codec.bins) == (7, 256)
    short = {**statistics, "arm": {"action": {"q01": [0.0] * 6}}}
    with pytest.raises(ConversionError, match=r"expected the same for all: \{'bridge_orig': 7, .*'arm': 6\}"):
        conversion.action_codec("bins", short, 256)


# ---- training runs
def test_a_run_of_a_vision_language_model_does_not_act(run: Path, tmp_path: Path, tensors: Any) -> None:
    run = write_run_folder(tmp_path / "talks", tensors, vla=False)
    model, processor = load_converted(convert(run, tmp_path / "converted", tokenizer=tmp_path))
    assert model.config.action_config is None
    inputs = processor.question_inputs(picture(), "what is this?")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_the_checkpoint_with_the_most_steps_is_taken(run: Path, tmp_path: Path, tensors: Any) -> None:
    later = {**tensors, "projector.fc3.bias": tensors["projector.fc3.bias"] + 1}
    torch.save({"model": run_state(later)}, run / "checkpoints" / "step-010000-epoch-02-loss=0.1.pt")
    earlier = run / "checkpoints" / "step-009000-epoch-01-loss=0.2.pt"
    (run / "checkpoints" / "latest-checkpoint.pt").rename(earlier)
    convert(run, tmp_path / "late", tokenizer=tmp_path)
    convert(earlier, tmp_path / "early", tokenizer=tmp_path)
    biases = [SafetensorsFolder(tmp_path / name).read("model.projector.fc3.bias") for name in ("late", "early")]
    assert torch.equal(biases[0], biases[1] + 1)


def test_a_run_needs_a_tokenizer_and_known_base_models(run: Path) -> None:
    refused(run, "got a training run, which holds no tokenizer, and no tokenizer")
    edit(run / "config.json", vla={"base_vlm": "siglip-224px+7b"})
    refused(run, r"got a run on 'siglip-224px\+7b', expected one on DINOv2 and SigLIP")


class Payload:
    """What a malicious file would hold."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("owned"),))


def test_code_in_a_checkpoint_is_not_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"projector": Payload()}}, run / "checkpoints" / "latest-checkpoint.pt", pickle_module=pickle)
    refused(run, "which is no PyTorch checkpoint of tensors alone", TensorFileError)
    assert not Path("owned").exists()


# ---- sources and the command
@pytest.mark.parametrize("name", ["action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"])
def test_a_checkpoint_that_acts_by_another_head_is_refused(source: Path, name: str) -> None:
    """OpenVLA-OFT: the same tensors and configuration, whose tokens mean nothing."""
    (source / name).touch()
    refused(source, f"got source with {name}, which is a checkpoint of OpenVLA-OFT")


def test_other_folders_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="which exists; name a new folder"):
        convert(source, source)
    with pytest.raises(FileNotFoundError, match="which is no folder and no name on the Hub"):
        convert(tmp_path / "nowhere" / "deep" / "down", tmp_path / "converted")
    refused(source, "got actions='words', expected one of 'bins', 'legacy'", actions="words")
    edit(source / "config.json", model_type="mamba")
    refused(source, "with model_type='mamba', expected 'openvla' or 'prismatic'")


def test_a_name_on_the_hub_is_downloaded(
    source: Path, tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(foreign_layouts, "snapshot_download", lambda name, **_: asked.append(name) or str(source))
    convert("openvla/openvla-7b", tmp_path / "converted")
    assert asked == ["openvla/openvla-7b"]


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "converted"
    assert main(["convert", str(source), str(target), "--max-shard-gb", "0.01", "--center-crop", "0.9"]) == 0
    output = capsys.readouterr()
    assert f"Converted into {target}" in output.out
    assert "converting: 100%" in output.err
    assert len(list(target.glob("model-*.safetensors"))) > 1
    assert main(["convert", str(source), str(target)]) == 2
    assert "which exists" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "new"), "--no-dual"]) == 2
    assert "expected neither: it has two encoders" in capsys.readouterr().err
