"""Features, probes and drift on models and numbers small enough to know the answer; the figure and the command."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture
from tiny_models import picture, tiny_pi0_model, tiny_pi0_processor
from tiny_vlms import tiny_vla_pair

from gen_vla.commands.main import main
from gen_vla.evaluation.representations.data import balanced_choice, load_pictures
from gen_vla.evaluation.representations.probes import (
    compare_representations,
    cosine_drift,
    drift_by_tower,
    linear_cka,
    linear_probe,
    patch_at,
    tower_features,
)


@pytest.mark.parametrize("family", ["openvla", "pi0"])  # with pixels for each tower, and with pixels they share
def test_features_are_what_the_projector_sees_averaged_over_patches(family, tiny_openvla, gemma_like, tiny_strings):
    model, processor = tiny_openvla
    if family == "pi0":
        model, processor = tiny_pi0_model(gemma_like, tiny_strings), tiny_pi0_processor(gemma_like, tiny_strings)
    images = [picture(seed) for seed in range(3)]
    features = tower_features(model, processor, images, batch_size=2)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        if family == "pi0":
            parts = model.vlm.model.frozen_vision, model.vlm.model
            towers = [part.vision_tower(pixels).last_hidden_state for part in parts]
            expected = torch.cat(towers, dim=-1).mean(dim=1).numpy()
        else:
            expected = model.model.vision_tower(pixels).mean(dim=1).numpy()
    np.testing.assert_allclose(features["joined"], expected, atol=1e-5)
    shapes = {name: values.shape for name, values in features.items()}
    assert family == "pi0" or shapes == {"dino": (3, 16), "siglip": (3, 16), "joined": (3, 32)}


def test_features_of_an_object_are_those_of_the_patch_that_holds_it(tiny_openvla, tmp_path):
    model, processor = tiny_openvla
    places = {(0.0, 0.0): 0, (0.3, 0.6): 2, (0.99, 0.4): 1, (0.5, 0.5): 3}  # of 2 x 2 patches
    things = [{"shape": at % 2, "u": u, "v": v} for (u, v), at in places.items()]
    outside = {"shape": 5, "u": 1.2, "v": 0.5}
    rows = {"image": [picture(0), picture(1)], "objects": [[things[0], outside], things[1:]]}
    thing = {"shape": Value("int64"), "u": Value("float64"), "v": Value("float64")}
    features = Features({"image": Image(), "objects": [thing]})
    Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path))
    found = load_pictures(str(tmp_path))
    assert (found.labels.tolist(), found.classes) == ([0, 0, 1, 1], ["can", "bottle"])
    features = tower_features(model, processor, found.images, found.places, batch_size=3)
    pixels = processor.image_processor([picture(0), picture(1), picture(1), picture(1)], return_tensors="pt")
    with torch.no_grad():
        tokens = model.model.vision_tower(pixels["pixel_values"])
    assert tokens.shape[1] == 4
    expected = torch.stack([each[at] for each, at in zip(tokens, places.values(), strict=True)])
    np.testing.assert_allclose(features["joined"], expected.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="got 6 patches, expected a square of them"):
        patch_at(np.zeros(2), 6)


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "smolvlm"])
def test_both_towers_of_other_models_are_read_behind_their_projectors(family, tmp_path):
    model, processor = tiny_vla_pair(family, tmp_path)
    images = [picture(seed) for seed in range(3)]
    features = tower_features(model, processor, images, batch_size=2)
    assert np.abs(features["vision"] - features["vision_copy"]).min() > 1e-4
    inputs = processor.question_inputs(images, ["What?"] * 3)
    with torch.no_grad():  # the mean of both is what the language model reads
        both = model.vlm.model.get_image_features(
            **{name: inputs[name] for name in model.picture_inputs & set(inputs)}
        )
    expected = np.stack([each.flatten(0, -2).mean(dim=0).numpy() for each in both.pooler_output])
    np.testing.assert_allclose((features["vision"] + features["vision_copy"]) / 2, expected, atol=1e-5)


def test_cka_knows_rotation_and_scale_from_change():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1.0)
    assert linear_cka(np.eye(4)[:, :2], np.eye(4)[:, 2:]) == pytest.approx(0.2)  # (4 / 16) / (20 / 16)
    assert linear_cka(x, rng.normal(size=(50, 4))) < 0.3
    with pytest.raises(ValueError, match="the same for all pictures"):
        linear_cka(np.ones((3, 2)), x[:3])


def test_cosine_drift_by_hand():
    before = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert cosine_drift(before, before * 5) == pytest.approx(0.0)
    assert cosine_drift(before, np.array([[0.0, 1.0], [0.0, 1.0]])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"shapes \(2, 2\) and \(2, 3\)"):
        cosine_drift(before, np.ones((2, 3)))


def test_drift_is_measured_where_both_models_have_the_tower():
    x = np.random.default_rng(0).normal(size=(9, 3))
    found = drift_by_tower({"siglip": x, "dino": x}, {"siglip": x, "dino": x[:, :2], "other": x})
    assert list(found) == ["siglip"]
    assert found["siglip"] == {"cka": 1.0, "cosine": 0.0}


def test_probes_read_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    assert linear_probe(np.eye(3)[labels], labels) == {"value": 1.0, "n": 60, "interval": [0.9398, 1.0]}
    assert linear_probe(rng.normal(size=(60, 5)), labels)["value"] < 0.55
    with pytest.raises(ValueError, match="a class of 4 pictures, expected at least 5"):
        linear_probe(np.zeros((10, 2)), np.array([0] * 6 + [1] * 4))


def test_choice_is_balanced_and_repeatable():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    chosen = balanced_choice(labels, 13, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 5]
    assert chosen.tolist() == balanced_choice(labels, 13, seed=1).tolist()
    assert chosen.tolist() != balanced_choice(labels, 13, seed=2).tolist()
    assert len(balanced_choice(labels, 1000, seed=0)) == 103


def write_pictures(folder, labels, kind):
    data = {"image": [picture(seed) for seed in range(len(labels))], "label": labels}
    Dataset.from_dict(data, features=Features({"image": Image(), "label": kind})).save_to_disk(str(folder))
    return str(folder)


def test_labelled_pictures_from_disk(tmp_path):
    names = ClassLabel(names=["block", "mug", "never"])
    pictures = load_pictures(write_pictures(tmp_path / "named", [1, 0, 1], names))
    assert (pictures.labels.tolist(), pictures.classes) == ([1, 0, 1], ["block", "mug"])
    pictures = load_pictures(write_pictures(tmp_path / "words", ["red", "blue", "red"], Value("string")))
    assert (pictures.labels.tolist(), pictures.classes) == ([1, 0, 1], ["blue", "red"])
    for name in ("cat", "dog"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        Picture.new("L", (4, 4)).save(tmp_path / "folders" / name / "one.png")
    assert load_pictures(str(tmp_path / "folders")).classes == ["cat", "dog"]


def test_bad_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="got --data nowhere, expected digits, cifar10, or a folder"):
        load_pictures("nowhere")
    with pytest.raises(ValueError, match="1 class, expected at least two"):
        load_pictures(write_pictures(tmp_path / "one", ["red"], Value("string")))
    Dataset.from_dict({"picture": [1]}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"columns \['picture'\], expected image and label"):
        load_pictures(str(tmp_path / "other"))


def test_an_untouched_tower_has_not_moved(tiny_openvla):
    model, processor = tiny_openvla
    pictures = load_pictures("digits", samples=50)
    assert np.bincount(pictures.labels).tolist() == [5] * 10
    assert (pictures.images[0].mode, pictures.images[0].size) == ("RGB", (8, 8))
    before = tower_features(model, processor, pictures.images)
    with torch.no_grad():
        for parameter in model.model.vision_tower.dino.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    after = tower_features(model, processor, pictures.images)
    frozen = {"before": None, "after": "siglip"}
    results = compare_representations({"before": before, "after": after}, pictures, frozen)
    assert results["drift"]["after"]["siglip"] == {"cka": 1.0, "cosine": 0.0}
    assert results["drift"]["after"]["dino"]["cka"] < 0.99
    assert [(t["role"], t["tower"], t["frozen"]) for t in results["tasks"]][3:5] == [
        ("after", "dino", False),
        ("after", "siglip", True),
    ]


def test_the_command_draws_three_panels(tiny_openvla, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    model, processor = tiny_openvla
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    name, output, drawn = str(tmp_path / "model"), tmp_path / "out" / "results.json", tmp_path / "out" / "panels.png"
    arguments = ["evaluate", "representations", name, "--before", name, "--plain", name, "--samples", "50"]
    assert main([*arguments, "--output", str(output), "--picture", str(drawn)]) == 0, capsys.readouterr().err
    assert "siglip" in capsys.readouterr().out
    results = json.loads(output.read_text())
    assert results["suite"] == "representations"
    assert len(results["tasks"]) == 9
    assert results["drift"]["plain"]["joined"] == {"cka": 1.0, "cosine": 0.0}
    with Picture.open(drawn) as figure:
        assert figure.width > 2 * figure.height
