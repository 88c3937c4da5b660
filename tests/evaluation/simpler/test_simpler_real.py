"""The adapter in the real simulator, where it is installed: a script and the expert close drawers."""

import importlib.util

import numpy as np
import pytest

from gen_vla.evaluation.simpler.controls import expert
from gen_vla.evaluation.simpler.environment import check_assets, find_assets, make_environment
from gen_vla.evaluation.simpler.runs import run_trial
from gen_vla.evaluation.simpler.trials import trials_of


# For how many steps, and how far per step (metres): back, to the left, down in front of the drawer, forward.
SCRIPT = ((14, (-0.04, 0, 0)), (6, (0, 0.05, 0)), (42, (0, 0, -0.03)), (51, (0.04, 0, 0)))


def script(trial, instruction, simulator):
    """Predicts one move after another, the gripper open."""
    moves = iter([move for steps, move in SCRIPT for _ in range(steps)])
    return lambda image: np.array([[*next(moves), 0, 0, 0, 1.0]])


needs_simulator = pytest.mark.skipif(
    importlib.util.find_spec("mani_skill2_real2sim") is None,
    reason="SimplerEnv is not installed; gen_vla.evaluation.simpler.environment says how",
)


@pytest.mark.timeout(600)
@needs_simulator
@pytest.mark.parametrize(("part", "scripted"), [("top", True), ("bottom", False)])
def test_a_script_and_the_expert_close_a_drawer(part, scripted):
    trial = next(t for t in trials_of("google_robot", "matching", ["close_drawer"]) if t.part == part)
    assets = find_assets()
    check_assets(trial, assets)
    outcome = run_trial(script if scripted else expert, trial, lambda trial: make_environment(trial, assets, "ibl"))
    assert (outcome.outcome, outcome.steps, outcome.instruction) == ("success", 113, f"close {part} drawer")
    assert float(outcome.stats["qpos"]) <= 0.05
