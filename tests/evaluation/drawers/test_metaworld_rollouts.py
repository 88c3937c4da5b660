"""Rollouts: intervals, batches, refusals, controls, videos."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


try:
    from gen_vla.evaluation.drawers import rollouts as rollouts
    from gen_vla.evaluation.drawers import videos as videos
    from gen_vla.evaluation.drawers.environment import EVALUATION_SEEDS, DrawerEnv
    from gen_vla.evaluation.policies import rollout as policies
    from gen_vla.evaluation.policies.step_progress import StepProgress

    DrawerEnv("drawer-open", image_size=64).render()
except Exception as error:  # the extra is not installed, or EGL fails: no library, no device, no permission
    pytest.skip(f"no simulator here: {error}; pip install 'gen-vla[sim]'", allow_module_level=True)

SEEDS = EVALUATION_SEEDS[:4]


def evaluate(policy, **changes) -> rollouts.Report:
    settings = {"seeds": SEEDS, "workers": 1, "batch_size": 8, "image_size": 32, "progress": False}
    return rollouts.evaluate_policy(policy, **{**settings, **changes})


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (46, 50, 0.8116, 0.9685)],
)
def test_wilson_interval(k, n, low, high):
    assert rollouts.wilson_interval(k, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_wilson_interval_of_nonsense(k, n):
    with pytest.raises(ValueError, match=f"got {k} successes of {n}"):
        rollouts.wilson_interval(k, n)


def test_the_expert_scores_all_and_zero_actions_nothing():
    report = evaluate(policies.expert_policy)
    assert [(s.successes, s.n, s.refused) for s in report.scores.values()] == [(4, 4, 0), (4, 4, 0)]
    assert report.policy_steps == sum(e.steps for e in report.episodes) < 8 * 40
    report = evaluate(policies.zero_policy)
    assert [s.successes for s in report.scores.values()] == [0, 0]
    assert {e.steps for e in report.episodes} == {40}


def test_progress_counts_steps_since_batches_end_at_once(monkeypatch):
    bars: list[rollouts.StepProgress] = []
    shown: list[tuple[float, float | None, int]] = []

    def kept(*arguments, **settings) -> rollouts.StepProgress:
        bars.append(StepProgress(*arguments, **settings))
        return bars[-1]

    def watched(images, instructions, moments):
        shown.append((bars[0].bar.n, bars[0].bar.total, bars[0].ended))
        return policies.zero_policy(images, instructions, moments)

    monkeypatch.setattr(rollouts, "StepProgress", kept)
    evaluate(watched, max_steps=5, progress=True)  # 8 episodes in one batch
    assert shown == [(8 * step, 40, 0) for step in range(5)]
    assert (bars[0].bar.n, bars[0].bar.total, bars[0].ended) == (40, 40, 8)


def test_neither_workers_nor_the_batch_size_change_an_episode():
    plain = evaluate(policies.expert_policy)
    spread = evaluate(policies.expert_policy, workers=2, batch_size=3)
    assert plain.episodes == spread.episodes
    assert len({e.steps for e in plain.episodes}) > 2


def test_the_batch_shrinks_as_episodes_end():
    sizes = []

    def policy(images, instructions, moments):
        sizes.append(len(images))
        assert len(images) == len(instructions) == len(moments)
        assert images[0].shape == (32, 32, 3)
        assert images[0].dtype == np.uint8
        return policies.expert_policy(images, instructions, moments)

    evaluate(policy)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8
    assert sizes[-1] < 8


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


def test_a_report_is_json_and_a_table(tmp_path):
    report = evaluate(policies.zero_policy, max_steps=1, name="zero")
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["scores"]["drawer-open"] == {
        "successes": 0,
        "n": 4,
        "interval": [0.0, 0.4899],
        "refused": 0,
        "median_steps": None,
    }
    assert saved["settings"]["seeds"] == list(SEEDS)
    assert saved["settings"]["action_repeat"] == 5
    table = rollouts.results_table([report])
    assert table.row_count == 2
    assert list(table.columns[2].cells) == ["0/4", "0/4"]


def test_a_video_shows_every_step_and_the_end(tmp_path):
    av = pytest.importorskip("av")
    episode = videos.record_video(policies.expert_policy, "drawer-close", SEEDS[0], tmp_path / "clip", size=64)
    assert episode.success
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    assert len(frames) == episode.steps + videos.LAST_FRAME_REPEATS
    assert frames[0].shape == (64 + videos.PANEL_HEIGHT, 64, 3)
    with Image.open(tmp_path / "clip.gif") as gif:
        assert getattr(gif, "n_frames", 1) >= episode.steps
    with pytest.raises(ValueError, match="got seed 0"):
        videos.record_video(policies.expert_policy, "drawer-close", 0, tmp_path / "clip")


def test_a_contact_sheet_holds_all_pictures(tmp_path):
    pictures = [Image.new("RGB", (20, 20), (255, 0, 0))] * 5
    videos.contact_sheet(pictures, tmp_path / "sheet.png", columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 24 + 4, 3 * 24 + 4, 3)
    assert (sheet == (255, 0, 0)).all(axis=-1).sum() == 5 * 400


def test_the_command_line_scores_the_controls(tmp_path, capsys):
    files = {name: tmp_path / name for name in ("controls.json", "scenes.png")}
    command = ["--episodes", "1", "--workers", "1", "--json", str(files["controls.json"])]
    assert rollouts.main([*command, "--sheet", str(files["scenes.png"])]) == 0
    written = json.loads(files["controls.json"].read_text())
    assert written["provenance"]["versions"]["mujoco"]
    assert [report["policy"] for report in written["controls"]] == list(policies.CONTROLS)
    assert "expert" in capsys.readouterr().out
    assert Image.open(files["scenes.png"]).size[0] == 6 * 164 + 4
