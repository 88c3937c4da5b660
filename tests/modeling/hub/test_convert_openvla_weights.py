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
    parity_tensors,
    run_state,
    wide_tokenizer,
    write_hub_folder,
    write_run_folder,
)
from PIL import Image
from safetensors import safe_open
from tiny_models import picture
from transformers import AutoModel, AutoProcessor

from gen_vla.commands.main import main
from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.modeling.convert_openvla_weights import check_complete, hub_name, openvla_config, plan_openvla
from gen_vla.processors import ActionBins
from gen_vla.training.checkpoints import read_processor
from gen_vla.training.converting import conversion as converting
from gen_vla.training.converting.conversion import convert
from gen_vla.training.storage.tensor_files import SafetensorsFolder, TensorFileError, flatten


DINO, SIGLIP = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
IDS = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return parity_tensors()


@pytest.fixture
def source(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """OpenVLA's Hub layout, tiny, for a test to spoil."""
    return write_hub_folder(tmp_path / "source", tensors, wide_tokenizer())


def edit(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; `None` removes."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


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


def test_the_full_size_is_the_default_configuration() -> None:
    shapes = full_size_shapes()
    assert sum(math.prod(shape) for shape in shapes.values()) == 7_541_237_184  # as published
    config = OpenVLAPlusConfig(**openvla_config(shapes, IDS, {"pad_token_id": 32000}))
    plan = plan_openvla(config)
    check_complete(plan, shapes, config)
    ours = converting.model_shapes(OpenVLAPlusForVision2Seq, OpenVLAPlusConfig())
    assert converting.model_shapes(OpenVLAPlusForVision2Seq, config) == ours
    assert plan.keys() == ours.keys()


def test_an_unknown_encoder_has_an_unknown_number_of_heads(tensors: dict[str, torch.Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with pytest.raises(ConversionError, match="got the encoder 'vit_giant_patch14_reg4_dinov2', whose number"):
        openvla_config(shapes, ["vit_giant_patch14_reg4_dinov2", IDS[1]], {})
    with pytest.raises(ConversionError, match="expected DINOv2 and SigLIP, in this order"):
        openvla_config(shapes, IDS[::-1], {})
    with pytest.raises(ConversionError, match="got a language model of type 'phi', expected 'llama'"):
        openvla_config(shapes, IDS, {"model_type": "phi"})


def test_missing_and_unexpected_tensors_are_listed(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    spoiled = dict(tensors)
    del spoiled[f"{DINO}.blocks.1.mlp.fc2.bias"]
    del spoiled["language_model.model.layers.0.mlp.up_proj.weight"]
    spoiled["language_model.model.layers.1.self_attn.q_proj.lora_A"] = torch.ones(2)
    write_hub_folder(tmp_path / "source", spoiled, wide_tokenizer())
    with pytest.raises(ConversionError) as caught:
        convert(tmp_path / "source", tmp_path / "converted", progress=False)
    text = str(caught.value)
    assert "2 missing and 1 unexpected tensors" in text
    assert f"missing:    {DINO}.blocks.1.mlp.fc2.bias\n" in text
    assert "missing:    language_model.model.layers.0.mlp.up_proj.weight\n" in text
    assert "unexpected: language_model.model.layers.1.self_attn.q_proj.lora_A\n" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]  # nothing half done is left


@pytest.mark.parametrize("name", [f"{DINO}.pos_embed", "language_model.model.embed_tokens.weight"])
def test_a_missing_tensor_that_tells_a_size_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], name: str
) -> None:
    write_hub_folder(tmp_path / "source", {n: t for n, t in tensors.items() if n != name}, wide_tokenizer())
    with pytest.raises(ConversionError, match=f"got a checkpoint without {name}"):
        convert(tmp_path / "source", tmp_path / "converted", progress=False)


@pytest.mark.parametrize("name", ["action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"])
def test_a_checkpoint_that_acts_by_another_head_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    """OpenVLA-OFT: the same tensors and configuration, whose tokens mean nothing."""
    (source / name).touch()
    with pytest.raises(ConversionError, match=f"got source with {name}, which is a checkpoint of OpenVLA-OFT"):
        convert(source, tmp_path / "converted", progress=False)
    assert not (tmp_path / "converted").exists()


def test_a_tensor_of_another_shape_stops_the_conversion(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_hub_folder(tmp_path / "source", {**tensors, "projector.fc2.bias": torch.zeros(63)}, wide_tokenizer())
    with pytest.raises(TensorFileError, match=r"got model.projector.fc2.bias of shape \[63\], expected \[64\]"):
        convert(tmp_path / "source", tmp_path / "converted", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_rotary_buffer_of_old_checkpoints_is_no_stranger(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    old = {**tensors, "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)}
    convert(write_hub_folder(tmp_path / "source", old, wide_tokenizer()), tmp_path / "converted", progress=False)


def test_shards_and_dtypes(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """bfloat16 in, bfloat16 out, bit for bit, in shards no larger than asked for."""
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    source = write_hub_folder(tmp_path / "source", half, wide_tokenizer(), shards=3)
    convert(source, tmp_path / "converted", max_shard_bytes=3_000_000, progress=False)
    shards = sorted((tmp_path / "converted").glob("model-*.safetensors"))
    embeddings = 32064 * 64 * 2  # a single tensor may be larger than a shard
    assert len(shards) > 3
    assert all(path.stat().st_size < embeddings + 20_000 for path in shards)
    written = SafetensorsFolder(tmp_path / "converted")
    assert set(written.dtypes.values()) == {torch.bfloat16}
    joint = half[f"{SIGLIP}.blocks.2.attn.qkv.weight"]
    for part, name in enumerate(("q", "k", "v")):
        ours = written.read(f"model.vision_tower.siglip.encoder.layers.2.self_attn.{name}_proj.weight")
        assert torch.equal(ours, joint.chunk(3)[part])
    assert json.loads((tmp_path / "converted" / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    convert(source, tmp_path / "wide", dtype=torch.float32, progress=False)
    assert set(SafetensorsFolder(tmp_path / "wide").dtypes.values()) == {torch.float32}


def test_what_is_written_is_what_save_pretrained_writes(source: Path, tmp_path: Path) -> None:
    """The same files and tensors as after loading and saving, so that nothing is this writer's own."""
    convert(source, tmp_path / "converted", progress=False)
    model = AutoModel.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("converted", "saved")]
    assert names[0] == names[1]
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as saved:
        converted = SafetensorsFolder(tmp_path / "converted")
        assert set(saved.keys()) == set(converted.shapes)
        assert all(torch.equal(saved.get_tensor(name), converted.read(name)) for name in saved.keys())  # noqa: SIM118
    for name in ("config.json", "processor_config.json", "generation_config.json"):
        contents = [json.loads((tmp_path / folder / name).read_text("utf-8")) for folder in ("converted", "saved")]
        assert contents[0] == contents[1], name


def test_the_last_blocks_and_pools_are_left_out(source: Path, tmp_path: Path) -> None:
    names = SafetensorsFolder(convert(source, tmp_path / "converted", progress=False)).shapes
    assert "model.vision_tower.dino.encoder.layer.1.norm1.weight" in names
    assert not [name for name in names if ".dino.encoder.layer.2." in name or ".siglip.encoder.layers.3." in name]
    assert not [name for name in names if "head" in name and name != "lm_head.weight"]


def test_the_vocabulary_gains_a_placeholder_and_no_row(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "converted", progress=False)
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    tokenizer = processor.tokenizer
    assert (tokenizer.pad_token_id, processor.image_token_id, len(tokenizer)) == (32000, 32001, 32002)
    model = AutoModel.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    assert model.get_input_embeddings().weight.shape == (32064, 64)
    config = model.config.action_config
    assert (config["representation"], config["bin_tokens_end"], config["lead_in_ids"]) == ("bins", 32000, [29871])
    assert config == processor.action_config
    assert model.config.frozen is None
    assert sorted(model.config.norm_stats) == ["bridge_orig", "fractal20220817_data"]


def test_statistics_of_fine_tuning_come_along(source: Path, tmp_path: Path) -> None:
    norm_stats = json.loads((source / "config.json").read_text(encoding="utf-8"))["norm_stats"]
    (source / "dataset_statistics.json").write_text(json.dumps({"mine": norm_stats["bridge_orig"]}), encoding="utf-8")
    edit(source / "config.json", norm_stats=None)
    convert(source, tmp_path / "converted", progress=False)
    model = AutoModel.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    assert model.predict_action(**processor.action_inputs(picture(), "go")).shape == (7,)


def test_the_authors_release_writes_legacy_strings(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    tokenizer = wide_tokenizer(("<PAD>", *AUTHORS_TOKENS))
    source = write_hub_folder(tmp_path / "source", tensors, tokenizer)
    convert(source, tmp_path / "legacy", progress=False)
    processor = AutoProcessor.from_pretrained(tmp_path / "legacy", trust_remote_code=True)
    assert processor.image_token_id == 32004
    assert processor.action_config["style"] == "legacy"
    assert processor.action_prompt("Go") == "In: <VLA_PROMPT> What action should the robot take to go?\nOut:"
    assert processor.question_prompt("How many?") == "In: <VLM_PROMPT> How many?\nOut:"
    assert processor.encode_text(processor.action_prompt("go")).count(32002) == 1
    model = AutoModel.from_pretrained(tmp_path / "legacy", trust_remote_code=True)
    prediction = model.predict_actions(**processor.action_inputs(picture(), "go"), unnorm_key="bridge_orig")
    assert prediction.text[0].count(",") == 7
    convert(source, tmp_path / "bins", actions="bins", progress=False)
    config = json.loads((tmp_path / "bins" / "config.json").read_text(encoding="utf-8"))
    assert config["action_config"]["representation"] == "bins"


@pytest.mark.parametrize("actions", ["signed", "plain"])
def test_other_strings_may_be_asked_for(source: Path, tmp_path: Path, actions: str) -> None:
    convert(source, tmp_path / "converted", actions=actions, progress=False)
    config = json.loads((tmp_path / "converted" / "config.json").read_text(encoding="utf-8"))
    assert config["action_config"]["style"] == actions


def test_the_centre_crop_is_a_saved_setting(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "converted", center_crop_area=0.9, frozen="siglip", progress=False)
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    image = np.zeros((200, 200, 3), dtype=np.uint8)
    image[:4] = image[-4:] = 255  # 0.9 of the area leaves out 5 pixels on each side
    pixels = processor.image_processor([Image.fromarray(image)], return_tensors="pt")["pixel_values"]
    assert float(pixels[0, 3:].max()) == -1.0
    config = json.loads((tmp_path / "converted" / "config.json").read_text(encoding="utf-8"))
    assert config["frozen"] == "siglip"


def test_pictures_must_be_resized_as_here(source: Path, tmp_path: Path) -> None:
    edit(source / "preprocessor_config.json", image_resize_strategy="letterbox")
    with pytest.raises(ConversionError, match="got image_resize_strategy='letterbox', expected 'resize-naive'"):
        convert(source, tmp_path / "converted", progress=False)


def test_an_image_processor_that_transformers_5_saved(source: Path, tmp_path: Path) -> None:
    """It lies inside of processor_config.json then."""
    convert(source, tmp_path / "four", progress=False)
    pixels = json.loads((source / "preprocessor_config.json").read_text(encoding="utf-8"))
    (source / "preprocessor_config.json").unlink()
    settings = {"processor_class": "PrismaticProcessor", "image_processor": pixels}
    (source / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    convert(source, tmp_path / "five", progress=False)
    four, five = (read_processor(tmp_path / name).image_processor for name in ("four", "five"))
    assert (five.means, five.stds) == (four.means, four.stds)
    assert five.means != [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]]  # those that went through bfloat16
    del pixels["means"], pixels["tvf_normalize_params"]
    (source / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ConversionError, match=r"got an image processor with .*expected tvf_normalize_params, or"):
        convert(source, tmp_path / "neither", progress=False)


def test_nominal_constants_where_none_are_stored(source: Path, tmp_path: Path) -> None:
    edit(source / "preprocessor_config.json", tvf_normalize_params=None)
    convert(source, tmp_path / "converted", progress=False)
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    assert processor.image_processor.means == [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]]


def test_names_of_a_run_are_those_of_the_hub(tensors: dict[str, torch.Tensor]) -> None:
    assert {hub_name(name) for name, _ in flatten(run_state(tensors))} == set(tensors)


def test_a_run_of_a_vision_language_model_does_not_act(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    wide_tokenizer().save(str(tmp_path / "tokenizer.json"))
    run = write_run_folder(tmp_path / "run", tensors, vla=False)
    convert(run, tmp_path / "converted", tokenizer=tmp_path, progress=False)
    model = AutoModel.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "converted", trust_remote_code=True)
    assert model.config.action_config is None
    inputs = processor.question_inputs(picture(), "what is this?")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_the_checkpoint_with_the_most_steps_is_taken(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    wide_tokenizer().save(str(tmp_path / "tokenizer.json"))
    later = {**tensors, "projector.fc3.bias": tensors["projector.fc3.bias"] + 1}
    run = write_run_folder(tmp_path / "run", later, checkpoint="step-010000-epoch-02-loss=0.1.pt")
    earlier = run / "checkpoints" / "step-009000-epoch-01-loss=0.2.pt"
    torch.save({"model": run_state(tensors)}, earlier)
    convert(run, tmp_path / "late", tokenizer=tmp_path, progress=False)
    convert(earlier, tmp_path / "early", tokenizer=tmp_path, progress=False)
    biases = [SafetensorsFolder(tmp_path / name).read("model.projector.fc3.bias") for name in ("late", "early")]
    assert torch.equal(biases[0], biases[1] + 1)


def test_a_run_needs_a_tokenizer_and_known_base_models(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    run = write_run_folder(tmp_path / "run", tensors)
    with pytest.raises(ConversionError, match="got a training run, which holds no tokenizer, and no tokenizer"):
        convert(run, tmp_path / "converted", progress=False)
    edit(run / "config.json", vla={"base_vlm": "siglip-224px+7b"})
    with pytest.raises(ConversionError, match=r"got a run on 'siglip-224px\+7b', expected one on DINOv2 and SigLIP"):
        convert(run, tmp_path / "converted", progress=False)


class Payload:
    """What a malicious file would hold."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("owned"),))


def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run_folder(tmp_path / "run", {})
    torch.save({"model": {"projector": Payload()}}, run / "checkpoints" / "latest-checkpoint.pt", pickle_module=pickle)
    with pytest.raises(TensorFileError, match="which is no PyTorch checkpoint of tensors alone"):
        convert(run, tmp_path / "converted", progress=False)
    assert not Path("owned").exists()


def test_other_folders_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="which exists; name a new folder"):
        convert(source, source, progress=False)
    with pytest.raises(FileNotFoundError, match="which is no folder and no name on the Hub"):
        convert(tmp_path / "nowhere" / "deep" / "down", tmp_path / "converted")
    with pytest.raises(ConversionError, match="got actions='words', expected one of 'bins', 'legacy'"):
        convert(source, tmp_path / "converted", actions="words")
    edit(source / "config.json", model_type="llava")
    with pytest.raises(ConversionError, match="with model_type='llava', expected 'openvla', 'prismatic'"):
        convert(source, tmp_path / "converted")


def test_an_incomplete_download_is_named(source: Path, tmp_path: Path) -> None:
    first = source / "model-00001-of-00002.safetensors"
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(TensorFileError, match=r"got .*model-00001-of-00002.safetensors of \d+ bytes, expected \d+"):
        convert(source, tmp_path / "converted", progress=False)
    first.unlink()
    with pytest.raises(FileNotFoundError, match="without model-00001-of-00002"):
        convert(source, tmp_path / "converted", progress=False)


def test_tokenizers_of_other_models_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    source = write_hub_folder(tmp_path / "source", tensors, wide_tokenizer(("<other>", "<PAD>")))
    with pytest.raises(ConversionError, match="got a tokenizer whose pad token is 32001, expected 32000"):
        convert(source, tmp_path / "converted", progress=False)
    wide_tokenizer(("<PAD>", *(f"<{number}>" for number in range(63)))).save(str(source / "tokenizer.json"))
    with pytest.raises(ConversionError, match="got a tokenizer of 32065 tokens, <image> included"):
        convert(source, tmp_path / "converted", progress=False)


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
    assert "which are for PaliGemma" in capsys.readouterr().err


def test_a_name_on_the_hub_is_downloaded(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append(name)
        return str(source)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    convert("openvla/openvla-7b", tmp_path / "converted", progress=False)
    assert asked == ["openvla/openvla-7b"]


def test_bins_of_the_default_codec_are_openvlas(source: Path) -> None:
    statistics = json.loads((source / "config.json").read_text(encoding="utf-8"))["norm_stats"]
    codec = converting.action_codec("bins", statistics, 256)
    assert isinstance(codec, ActionBins)
    assert (codec.action_dim, codec.bins) == (7, 256)
    short = {**statistics, "arm": {"action": {"q01": [0.0] * 6}}}
    with pytest.raises(ConversionError, match=r"expected the same for all: \{'bridge_orig': 7, .*'arm': 6\}"):
        converting.action_codec("bins", short, 256)
