"""The adapter in the real simulator, where it is installed: a script and the expert close drawers."""

import importlib.util

import numpy as np
import pytest

from gen_vla.evaluation.simpler.controls import ExpertControl, announced
from gen_vla.evaluation.simpler.environment import check_assets, find_assets, make_environment
from gen_vla.evaluation.simpler.policy import SimplerPolicy
from gen_vla.evaluation.simpler.runs import run_trial
from gen_vla.evaluation.simpler.trials import trials_of


# Until which step, and how far per step (metres): back, to the left, down in front of the drawer, forward.
SCRIPT = ((14, (-0.04, 0, 0)), (20, (0, 0.05, 0)), (62, (0, 0, -0.03)), (113, (0.04, 0, 0)))


class Script:
    """Predicts one move after another, the gripper open."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, image: np.ndarray, instruction: str) -> np.ndarray:
        move = next(move for until, move in SCRIPT if self.step < until)
        self.step += 1
        return np.array([[*move, 0, 0, 0, 1.0]])


needs_simulator = pytest.mark.skipif(
    importlib.util.find_spec("mani_skill2_real2sim") is None,
    reason="SimplerEnv is not installed; gen_vla.evaluation.simpler.environment says how",
)


@pytest.mark.timeout(600)
@needs_simulator
@pytest.mark.parametrize(("part", "scripted"), [("top", True), ("bottom", False)])
def test_a_script_and_the_expert_close_a_drawer(part, scripted):
    trial = next(t for t in trials_of("google_robot", "matching", ["close_drawer"]) if t.part == part)
    assets, expert = find_assets(), ExpertControl("google_robot")
    check_assets(trial, assets)
    make = announced(lambda trial: make_environment(trial, assets, "ibl"), expert)
    outcome = run_trial(SimplerPolicy(Script() if scripted else expert, "google_robot"), trial, make)
    assert (outcome.outcome, outcome.steps, outcome.instruction) == ("success", 113, f"close {part} drawer")
    assert float(outcome.stats["qpos"]) <= 0.05
