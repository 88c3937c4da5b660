"""The scripted expert with places that are off: as good as the places are, and the shipped base's are good."""

import json

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest

from gen_vla.commands.main import main
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, sample_layout
from gen_vla.evaluation.tabletop.aimed_expert import aim_off, evaluate_aim, play
from gen_vla.evaluation.tabletop.episodes import plan_jobs


JOBS = plan_jobs(("matching",), ("pick_object", "move_near"), 2)


def test_every_layout_is_off_by_as_much_in_its_own_direction():
    offs = [aim_off(seed, 0.02) for seed in EVALUATION_SEEDS[:20]]
    np.testing.assert_allclose(np.linalg.norm(offs, axis=-1), 0.02)
    assert len(np.unique(np.round(offs, 4), axis=0)) == 20
    np.testing.assert_array_equal(offs[0], aim_off(EVALUATION_SEEDS[0], 0.02))


def test_exact_places_are_the_experts_and_wrong_ones_fail():
    env = TabletopEnv(16)
    for job in JOBS:
        assert play(env, job, np.zeros((2, 2))).outcome == "success"
        assert play(env, job, aim_off(job.seed, 0.10)) == ("failure", job.max_steps, 1, None)


def test_an_answer_that_is_no_point_is_a_failure():
    source = sample_layout(JOBS[0].seed).source
    off = np.where(np.arange(2)[:, None] == source, 0.03, 0.3) * np.array([[0.0, 1.0]])
    found = evaluate_aim(JOBS[:2], [off, None], TabletopEnv(16), "some")
    tasks = found["scores"]["matching"]["tasks"]
    assert evaluate_aim(JOBS[:1], [off], TabletopEnv(16), "some")["off_cm"]["matching"]["median"] == 3.0
    assert tasks["pick_object"]["n"] == 2
    assert tasks["pick_object"]["successes"] <= 1
    assert found["off_cm"]["matching"]["no_point"] == 1
    assert found["off_cm"]["matching"]["p90"] is None


def test_the_base_points_well_enough_to_act(tmp_path, capsys):
    output = tmp_path / "aim.json"
    words = ["evaluate", "aim", "package://mini-vlm", "--errors=0", "--modes=matching,variants", "--episodes=3"]
    assert main([*words, "--tasks=pick_object", f"--output={output}"]) == 0
    results = json.loads(output.read_text(encoding="utf-8"))
    experts = results["experts"]
    assert experts["0 cm off"]["scores"]["matching"]["tasks"]["pick_object"]["successes"] == 3
    found = experts["model"]
    assert found["off_cm"]["variants"]["median"] < 1.5
    assert found["scores"]["variants"]["tasks"]["pick_object"]["n"] == 24
    assert found["scores"]["matching"]["tasks"]["pick_object"]["successes"] >= 2
    assert "variants: 0 no point; median" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--errors=0,x", "got the errors 0,x, expected centimetres"),
        ("--errors=nan", "got the errors nan"),
        ("--errors=-1", "got the errors -1"),
        ("--errors=", "got no errors and no model"),
        ("--modes=paraphrase", "got the modes paraphrase, expected some of matching"),
    ],
)
def test_impossible_options_are_refused_before_anything_runs(option, message, capsys):
    assert main(["evaluate", "aim", option]) == 2
    assert message in capsys.readouterr().err


def test_drawers_have_no_place_to_point_to(capsys):
    assert main(["evaluate", "aim", "--tasks=open_drawer"]) == 2
    assert "expected some of pick_object, move_near" in capsys.readouterr().err
