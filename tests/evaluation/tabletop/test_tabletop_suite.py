"""The tabletop suite as a whole, through the command."""

from __future__ import annotations

import json
from dataclasses import replace

import needs_simulator  # noqa: F401  # skips this file without one
import pytest
from PIL import Image

from gen_vla.commands.main import main
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, NEW_WORDS, sample_layout
from gen_vla.evaluation.tabletop.pictures import plot_variants, variants_sheet
from gen_vla.evaluation.tabletop.suite import (
    SuiteSettings,
    control_contestants,
    fingerprint,
    model_contestant,
    run_suite,
)


COMMAND = ["evaluate", "tabletop", "--tasks", "pick_object", "--workers", "1", "--image-size", "48", "--videos", "1"]


def test_the_command_writes_results_videos_and_continues(tmp_path, capsys):
    command = [*COMMAND, "--policy", "expert,zero", "--modes", "matching,paraphrase", "--output", str(tmp_path)]
    assert main([*command, "--episodes", "1"]) == 0
    lines = (tmp_path / "episodes" / "expert.jsonl").read_text().splitlines()
    assert main([*command, "--episodes", "2"]) == 0
    assert (tmp_path / "episodes" / "expert.jsonl").read_text().splitlines()[: len(lines)] == lines
    results = json.loads((tmp_path / "results.json").read_text())
    assert "--episodes 2" in results["provenance"]["command"]
    assert ["--episodes 1" in run["command"] for run in results["provenance"]["other_runs"]] == [True]
    assert results["provenance"]["versions"]["mujoco"]
    scores = {name: found["scores"] for name, found in results["policies"].items()}
    assert scores["expert"]["matching"]["tasks"]["pick_object"]["successes"] == 2
    assert scores["zero"]["paraphrase"]["tasks"]["pick_object"]["successes"] == 0
    assert results["settings"]["episodes_per_task_and_variant"] == 2
    assert (tmp_path / "videos" / f"expert-pick_object-{EVALUATION_SEEDS[0]}.mp4").stat().st_size > 1000
    assert "crashed" in capsys.readouterr().out
    assert main([*command, "--episodes", "1", "--image-size", "64"]) == 2
    assert "image_size 48, now 64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "wizard"], "got policies ['wizard'], expected some of expert, random, zero, blind, deaf"),
        (["--modes", "dark"], "got modes ['dark']"),
        (["--tasks", "fly"], "got tasks ['fly']"),
        (["--trained-on", "/nowhere"], "got no /nowhere/recording.json"),
        (
            ["--modes", "new_objects"],
            "got new_objects and demonstrations (unknown) that may show mug, purple, sponge, yellow, expected",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(options, message, capsys):
    assert main([*COMMAND, *options]) == 2
    assert message in capsys.readouterr().err


def test_layouts_that_were_trained_on_are_not_judged(tmp_path):
    judged = sample_layout(EVALUATION_SEEDS[1]).digest()
    (tmp_path / "recording.json").write_text(json.dumps({"layouts": [judged]}))
    settings = SuiteSettings(("matching",), ("pick_object",), 2, workers=1, trained_on=tmp_path)
    with pytest.raises(ValueError, match="got 1 layouts to judge that were trained on"):
        run_suite(control_contestants(["zero"], ("matching",)), settings)


def test_new_objects_are_judged_only_where_no_demonstration_shows_them(tmp_path, capsys):
    (tmp_path / "recording.json").write_text(json.dumps({"layouts": [], "objects": ["can", "mug", "red"]}))
    command = [
        *COMMAND,
        "--policy=expert",
        "--modes=new_objects,familiar_objects",
        f"--trained-on={tmp_path}",
        "--episodes=2",
    ]
    assert main(command) == 2
    assert f"got new_objects and demonstrations ({tmp_path}) that may show mug, expected" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"got new_objects and demonstrations \(unknown\)"
    ):  # modes of the policy count
        run_suite(control_contestants(["zero"], ("new_objects",)), SuiteSettings(("matching",)))
    (tmp_path / "recording.json").write_text(json.dumps({"layouts": [], "objects": ["can", "red"]}))
    assert main([*command, f"--output={tmp_path / 'results'}"]) == 0
    seeds = json.loads((tmp_path / "results/results.json").read_text())["settings"]["seeds"]
    lines = (tmp_path / "results/episodes/expert.jsonl").read_text().splitlines()[1:]
    episodes = [json.loads(line) for line in lines]
    assert sorted(episode["mode"] for episode in episodes) == ["familiar_objects"] * 2 + ["new_objects"] * 2
    for mode, bounds in seeds.items():
        assert (
            bounds == [min(seen), max(seen)] if (seen := [e["seed"] for e in episodes if e["mode"] == mode]) else False
        )
    for episode in episodes:
        told, others = set(episode["instruction"].split()[-2:]), sample_layout(episode["seed"]).words
        assert told <= others
        assert others <= NEW_WORDS if episode["mode"] == "new_objects" else not others & NEW_WORDS


def test_a_model_acts_through_its_processor(tiny_openvla):
    model, processor = tiny_openvla
    key = next(iter(model.config.norm_stats))
    played = model_contestant(model, processor, "tiny", ("matching",), key)
    settings = SuiteSettings(("matching",), ("close_drawer",), 1, workers=1, image_size=32)
    scores = run_suite([played], settings)["policies"]["policy"]["scores"]
    assert scores["matching"]["all"]["n"] == 1  # three numbers are no action of seven, or an action that fails
    assert scores["matching"]["all"]["malformed"] + scores["matching"]["all"]["successes"] <= 1
    with pytest.raises(ValueError, match=f"got unnorm_key='mars', which this model has no statistics.*{key}"):
        model_contestant(model, processor, "tiny", ("matching",), "mars")


def test_results_say_how_a_model_was_trained(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: mine\ntraining: {seed: 3, steps: 5}\n")
    (zero,) = control_contestants(["zero"], ("matching",))
    played = replace(zero, name="policy", identity={"model": str(tmp_path)})
    settings = SuiteSettings(("matching",), ("close_drawer",), 1, workers=1, image_size=32)
    policies = run_suite([played, zero], settings)["policies"]
    assert (policies["policy"]["trained"]["recipe"], policies["policy"]["trained"]["seed"]) == ("mine", 3)
    assert "trained" not in policies["zero"]


def test_fingerprints_tell_weights_apart(tiny_openvla):
    model, _ = tiny_openvla
    before = fingerprint(model)
    assert fingerprint(model) == before
    next(iter(model.parameters())).data.add_(0.5)
    assert fingerprint(model) != before


def test_pictures_show_every_variant(tmp_path):
    variants_sheet(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 6 * 200
        assert sheet.size[1] > 4 * 200
    cell = {"mean": 0.5, "all": {"interval": [0.3, 0.7]}}
    families = {"lighting": {"mean": 0.5, "variants": {"dim": cell, "warm": cell}}}
    plot_variants({"matching": {"mean": 0.8}, "variants": {"families": families}}, tmp_path / "bars.png", "policy")
    with Image.open(tmp_path / "bars.png") as bars:
        assert bars.size[0] > 1000
