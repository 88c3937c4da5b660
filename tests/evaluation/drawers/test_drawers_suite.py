"""Scores of the drawers: refusals, controls, the suite's summary and the figures of a card."""

from __future__ import annotations

import json
from types import SimpleNamespace

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest
from PIL import Image
from printed_tables import printed

from gen_vla.evaluation.drawers.environment import BothDrawerTasks, DrawerEnv
from gen_vla.evaluation.drawers.suite import (
    DrawerReport,
    DrawerScore,
    as_card_results,
    drawer_job,
    evaluate_policy,
    summary_table,
)
from gen_vla.evaluation.policies import rollout as policies
from gen_vla.evaluation.simulation import videos
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS
from gen_vla.evaluation.vqa.scene_questions import KindScore, QuestionReport


SEEDS = EVALUATION_SEEDS[:4]


def evaluate(policy, **changes) -> DrawerReport:
    settings = {"seeds": SEEDS, "workers": 1, "batch_size": 8, "image_size": 32, "progress": False}
    return evaluate_policy(policy, **{**settings, **changes})


def test_the_expert_scores_all_and_zero_actions_nothing():
    report = evaluate(policies.expert_policy)
    assert [(s.successes, s.n, s.refused) for s in report.scores.values()] == [(4, 4, 0), (4, 4, 0)]
    assert report.policy_steps == sum(e.steps for e in report.episodes) < 8 * 40
    report = evaluate(policies.zero_policy)
    assert [s.successes for s in report.scores.values()] == [0, 0]
    assert {e.steps for e in report.episodes} == {40}


def test_neither_workers_nor_the_batch_size_change_an_episode():
    plain = evaluate(policies.expert_policy)
    spread = evaluate(policies.expert_policy, workers=2, batch_size=3)
    assert plain.episodes == spread.episodes
    assert len({e.steps for e in plain.episodes}) > 2


def test_a_refused_action_ends_its_episode_and_is_counted():
    def broken(images, instructions, moments):
        actions = policies.expert_policy(images, instructions, moments).copy()
        for action, moment in zip(actions, moments, strict=True):
            if moment.seed == SEEDS[0] and moment.step == 2:
                action[1] = np.nan
        return actions

    report = evaluate(broken)
    assert [(s.successes, s.refused) for s in report.scores.values()] == [(3, 1), (3, 1)]
    refused = report.episodes[0]
    assert (refused.steps, refused.success) == (3, False)
    assert "non-finite" in str(refused.refusal)


def test_wrong_shapes_and_seeds_are_errors():
    with pytest.raises(ValueError, match=r"shape \(8, 4\) from the policy, expected \(8, 7\)"):
        evaluate(lambda images, instructions, moments: np.zeros((len(images), 4)))
    with pytest.raises(ValueError, match=r"got seeds \[3\].*range\(1000000"):
        evaluate(policies.zero_policy, seeds=[3])
    with pytest.raises(ValueError, match="at least one"):
        evaluate(policies.zero_policy, seeds=[])


def test_blank_and_swapped_controls_change_what_the_policy_is_given():
    seen = []

    def policy(images, instructions, moments):
        seen.append((images[0], instructions[0]))
        return np.zeros((len(images), 7), dtype=np.float32)

    moment = policies.Moment("drawer-close", SEEDS[0], 0, np.zeros(7), np.zeros(7))
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    policies.blank_image(policy)([image], ["close the drawer"], [moment])
    policies.swapped_instruction(policy)([image], ["close the drawer"], [moment])
    assert (seen[0][0] == 128).all()
    assert seen[0][1] == "close the drawer"
    assert seen[1][0] is image
    assert seen[1][1] == "open the drawer"


def test_the_adapter_executes_the_first_action_of_each_chunk():
    class Inputs(dict):
        def to(self, device):
            return Inputs(self, device=device)

    class Processor:
        def action_inputs(self, images, instructions):
            assert isinstance(images[0], Image.Image)
            return Inputs(instructions=instructions)

    class Model:
        device = "cpu"
        config = SimpleNamespace(model_type="openvla_plus")

        def predict_actions(self, instructions, device, unnorm_key):
            assert (instructions, device, unnorm_key) == (["close the drawer", "open the drawer"], "cpu", "drawers")
            return SimpleNamespace(actions=np.arange(2 * 3 * 7, dtype=np.float32).reshape(2, 3, 7))

    policy = policies.VLAPolicy(Model(), Processor(), "drawers")
    actions = policy([np.zeros((4, 4, 3), np.uint8)] * 2, ["close the drawer", "open the drawer"], [])
    np.testing.assert_array_equal(actions, [np.arange(7), 21 + np.arange(7)])
    assert actions.dtype == np.float32


def test_a_report_is_json():
    saved = json.loads(json.dumps(evaluate(policies.zero_policy, max_steps=1, name="zero").to_dict()))
    assert saved["scores"]["drawer-open"] == {
        "successes": 0,
        "n": 4,
        "interval": [0.0, 0.4899],
        "refused": 0,
        "median_steps": None,
    }
    assert saved["settings"]["seeds"] == list(SEEDS)
    assert saved["settings"]["action_repeat"] == 5


def test_a_simulator_that_crashes_twice_stops_the_evaluation(monkeypatch):
    def diverge(self, action):
        raise FloatingPointError("the simulation diverged")

    monkeypatch.setattr(DrawerEnv, "step", diverge)
    with pytest.raises(RuntimeError, match="the simulator crashed: FloatingPointError: the simulation diverged"):
        evaluate(policies.zero_policy)


def test_a_video_shows_every_step_and_the_end(tmp_path):
    av = pytest.importorskip("av")
    env, job = BothDrawerTasks(32, "modest", "stock"), drawer_job("drawer-close", SEEDS[0])
    assert videos.record_video(env, policies.expert_policy, job, tmp_path / "clip", size=64)
    (episode,) = evaluate(policies.expert_policy, tasks=["drawer-close"], seeds=SEEDS[:1]).episodes
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    assert len(frames) == episode.steps + videos.LAST_FRAME_REPEATS
    assert frames[0].shape == (64 + videos.PANEL_HEIGHT, 64, 3)
    with Image.open(tmp_path / "clip.gif") as gif:
        assert getattr(gif, "n_frames", 1) >= episode.steps


def results() -> dict:
    def report(name: str, close: int, opened: int) -> DrawerReport:
        scores = {
            "drawer-close": DrawerScore(close, 50, (0.5, 0.9), 0, 12.0),
            "drawer-open": DrawerScore(opened, 50, (0.25, 0.75), 0, None),
        }
        return DrawerReport(name, scores, [], {}, 1.0, 0.5)

    return {
        "rollouts": [report("policy", 45, 40), report("zero actions", 0, 0)],
        "questions": QuestionReport(KindScore(30, 40, (0.6, 0.9), 0.4), {}),
        "latency": {"median_ms": 12.5, "p95_ms": 20.0, "forward_passes": 49, "n": 20, "machine": {"device": "cpu"}},
    }


def test_summary_shows_counts_intervals_controls_and_speed():
    text = printed(summary_table(results(), "a model"))
    for expected in ("45/50 (50-90 %)", "40/50 (25-75 %)", "zero actions", "30/40 (60-90 %)", "majority 40 %", "12.5"):
        assert expected in text


def test_card_figures_mark_controls_and_carry_n_and_interval():
    card = as_card_results(results())
    first, control = card["figures"][0], card["figures"][2]
    assert (first["value"], first["n"], first["interval"], first["control"]) == (0.9, 50, "0.50-0.90", False)
    assert (control["note"], control["value"], control["control"]) == ("zero actions", 0.0, True)
    assert card["figures"][-1]["value"] == 0.75
    assert "49 forward passes" in card["environment"]["milliseconds per action"]
