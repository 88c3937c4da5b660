"""SimplerEnv's trials are those of the published scripts; scores from outcomes with known numbers."""

from collections import Counter

import pytest

from gen_vla.evaluation.simpler.trials import COLOURS, first_trials, score_task, scored_trial, trials_of


def test_visual_matching_enumerates_robot_colours():
    trials = trials_of("google_robot", "matching")
    counts = Counter(trial.task for trial in trials)
    assert counts == {"pick_coke_can": 300, "move_near": 240, "open_drawer": 108, "close_drawer": 108}
    assert len({trial.name for trial in trials}) == len(trials) == 756
    assert {trial.build["urdf_version"] for trial in trials} == set(COLOURS)
    assert {t.environment for t in trials if t.task == "move_near"} == {"MoveNearGoogleBakedTexInScene-v0"}
    assert all(trial.overlay and trial.counted for trial in trials)
    assert {trial.steps for trial in trials if "drawer" in trial.task} == {113}


def test_the_can_stands_on_a_grid():
    trials = trials_of("google_robot", "matching", ["pick_coke_can"])
    positions = [trial.start["init_xy"] for trial in trials[:25]]
    assert positions[0] == (-0.35, -0.02)
    assert positions[1] == (-0.35, 0.09)
    assert positions[24] == (-0.12, 0.42)
    assert [trial.build for trial in trials[::25]][:3] == [
        {"lr_switch": True, "urdf_version": None},
        {"upright": True, "urdf_version": None},
        {"laid_vertically": True, "urdf_version": None},
    ]


def test_variant_aggregation_runs_cameras_without_counting_them():
    trials = trials_of("google_robot", "variants")
    variants = Counter((trial.task, trial.variant) for trial in trials)
    assert len([key for key in variants if key[0] == "pick_coke_can"]) == 11
    assert variants["pick_coke_can", "6 distractors"] == 75
    assert variants["move_near", "no distractor"] == 60
    assert variants["open_drawer", "cabinet 3"] == 27
    assert {trial.variant for trial in trials if not trial.counted} == {"camera 1", "camera 2"}
    counted = Counter(trial.task for trial in trials if trial.counted)
    assert counted == {"pick_coke_can": 675, "move_near": 480, "open_drawer": 189, "close_drawer": 189}
    assert all(trial.overlay is None for trial in trials)
    cameras = {t.environment for t in trials if t.variant == "camera 2"}
    assert cameras == {"GraspSingleOpenedCokeCanAltGoogleCamera2InScene-v0", "MoveNearAltGoogleCamera2InScene-v0"}


def test_widowx_has_24_episodes_per_task_and_no_variants():
    trials = trials_of("widowx", "masked", ["put_eggplant_in_basket", "stack_cube"])
    assert Counter((t.task, t.robot, t.steps) for t in trials) == {
        ("stack_cube", "widowx", 60): 24,
        ("put_eggplant_in_basket", "widowx_sink_camera_setup", 120): 24,
    }
    with pytest.raises(ValueError, match="the published scripts have none"):
        trials_of("widowx", "variants")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("panda", "matching"), "got robot 'panda'"),
        (("widowx", "blind"), "got mode 'blind'"),
        (("widowx", "matching", ["move_near"]), "got task 'move_near', expected one of put_spoon_on_towel"),
    ],
)
def test_unknown_names_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        trials_of(*arguments)


def test_a_few_episodes_of_every_variant():
    trials = first_trials(trials_of("google_robot", "matching"), 1)
    assert Counter(trial.task for trial in trials) == {
        "pick_coke_can": 12,
        "move_near": 4,
        "open_drawer": 12,
        "close_drawer": 12,
    }
    with pytest.raises(ValueError, match="got 0 episodes"):
        first_trials(trials, 0)


def outcome(part, variant, result, counted=True, layout=0):
    name = f"variants/open_drawer/{part}/{variant}/robot=0.65,0,0/episode_id={layout}"
    return {"trial": name, "variant": variant, "outcome": result, "counted": counted}


def test_the_score_averages_within_a_variant_first():
    outcomes = [
        outcome("top", "base", "success", layout=0),
        outcome("top", "base", "failure", layout=1),
        outcome("top", "base", "malformed", layout=2),
        outcome("top", "base", "success", layout=3),
        outcome("top", "dark", "success", layout=4),
        outcome("top", "dark", "crashed", layout=5),
        outcome("top", "camera 1", "failure", counted=False),
    ]
    score = score_task("variants", "open_drawer", outcomes, 189)
    assert score["value"] == 0.75  # (2 / 4 + 1 / 1) / 2, not 3 / 5
    assert (score["successes"], score["n"], score["malformed"], score["crashed"]) == (3, 5, 1, 1)
    assert score["interval"] is not None
    assert (
        score["interval"][0] < 0.3 < 0.95 < score["interval"][1]
    )  # one trial is half of it: hardly anything is known
    assert score["variants"] == {"base": (0.5, 4), "dark": (1.0, 1), "camera 1": (0.0, 1)}
    assert score["expected"] == 189


def test_every_trial_has_a_layout_that_its_variants_share():
    trials = [{"trial": trial.name, "outcome": "success"} for trial in trials_of("google_robot", "matching")]
    layouts = Counter(scored_trial(trial).layout for trial in trials)
    assert set(layouts.values()) == {4}  # robot colours
    assert len({scored_trial(trial).part for trial in trials}) == (3 + 1 + 3 + 3) * 4


def test_crashes_alone_give_no_score():
    score = score_task("matching", "stack_cube", [outcome("", "robot", "crashed")], 24)
    assert (score["value"], score["n"], score["interval"], score["crashed"]) == (None, 0, None, 1)
