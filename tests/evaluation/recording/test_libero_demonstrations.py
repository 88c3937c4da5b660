"""LIBERO demonstrations of the scripted expert."""

import numpy as np
import pytest

from gen_vla.evaluation.recording.libero import record_libero
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.source import open_robot_source


def test_a_task_that_there_is_not_is_named(tmp_path):
    for task in ("spacial/0", "spatial", "spatial/first"):
        with pytest.raises(ValueError, match=f"got the task '{task}', expected one of spatial, object"):
            record_libero(tmp_path / "d", (task,), 1, workers=1)


@pytest.mark.slow
def test_demonstrations_are_a_data_set_that_does_the_task(tmp_path):
    """What a recipe reads: state and actions, which finish the task when they are sent again in the same layout."""
    pytest.importorskip("libero", reason="LIBERO is not installed: pip install 'gen-vla[libero]'")
    from gen_vla.evaluation.libero.environment import LiberoEnvironment
    from gen_vla.evaluation.libero.suite import LiberoSettings, run_trial

    metadata = record_libero(
        tmp_path / "d", ("object/2",), 1, seed=7, workers=1, image_size=16, noise=False, progress=False
    )
    data = open_robot_source(tmp_path / "d", key="libero", state=["state"])
    [(episode, trajectory)] = data.trajectories(RowProblems(name="libero"))
    actions, states = trajectory.actions, trajectory.proprio
    assert states is not None
    assert len(actions) == metadata["frames"]
    assert data.action_names == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    environment = LiberoEnvironment(None)
    [trial] = LiberoSettings(("object",), layouts=tmp_path / "d").all_trials()
    replay = iter(actions)
    outcome = run_trial(lambda *_: lambda seen: next(replay), environment, trial)
    assert outcome.trial == f"object/drawn/2/{metadata['seeds'][0]}"
    assert (outcome.mode, outcome.outcome, outcome.steps) == ("drawn", "success", len(actions))
    seen, instruction = environment.begin_layout("object", 2, metadata["seeds"][0])  # after an episode
    assert episode.instructions[0] == instruction
    np.testing.assert_allclose(states[0], seen.state, atol=1e-6)
    scales = environment.simulation.robots[0].controller.output_max
    assert data.action_units == [
        *(f"{scale:g} {unit}" for scale, unit in zip(scales, ["m"] * 3 + ["rad"] * 3)),
        "-1 open, 1 closed",
    ]
    assert data.hertz == environment.simulation.env.control_freq == 20
    environment.close()
    with pytest.raises(ValueError, match="with layouts of object/2, expected some of the suites and tasks asked for"):
        LiberoSettings(("object",), tasks=(1,), layouts=tmp_path / "d").all_trials()
