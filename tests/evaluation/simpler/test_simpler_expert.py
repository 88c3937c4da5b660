"""SimplerEnv's controls: what the expert plans, how it moves, what it reads, and the command that runs them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import simpler_simulator

from gen_vla.commands.main import main
from gen_vla.evaluation.report.figures import read_results
from gen_vla.evaluation.simpler.controls import (
    CONTROLS,
    held_part,
    read_hand,
    read_things,
    surface,
    unknown_tasks,
)
from gen_vla.evaluation.simpler.environment import make_environment, reset_options
from gen_vla.evaluation.simpler.expert import (
    PACES,
    Drawer,
    Hand,
    Move,
    Script,
    Things,
    beside,
    find_grasp,
    plan,
    push,
    remaining_rotation,
    take,
)
from gen_vla.evaluation.simpler.trials import trials_of


HAND = Hand(np.array([0.3, 0.0, 0.15]), np.array([0, 0, -1.0]), np.array([0, 1.0, 0]), 0.016)


def box(middle, half_lengths, angle=0.0):
    """Corners of a box turned about z."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half_lengths
    return corners @ simpler_simulator.rotation_matrix([0, 0, angle]).T + middle


# Plans.
BAR, CUBE = box([0.35, 0.1, 0.02], [0.05, 0.01, 0.02], angle=0.6), box([0.35, 0.1, 0.015], [0.015, 0.015, 0.015])
HANDLE, BOWL = box([0.35, 0.1, 0.02], [0.05, 0.01, 0.01]), box([0.43, 0.1, 0.03], [0.03, 0.03, 0.03])


@pytest.mark.parametrize(
    ("things", "angle", "height"),
    [
        (Things(BAR, BAR), 0.6, 0.02),  # across the narrow side
        (Things(CUBE, CUBE), 0.0, 0.018),  # as the hand stands; no lower than 2 mm and the fingers above the table
        (Things(np.concatenate([HANDLE, BOWL]), HANDLE), 0.0, 0.02),  # of a long object, its held part
    ],
)
def test_fingers_close_across_the_narrow_side_of_what_is_held(things, angle, height):
    closing, grasp = find_grasp(HAND, things)
    assert np.arctan2(closing[1], closing[0]) - np.pi / 2 == pytest.approx(angle, abs=0.03)
    assert grasp == pytest.approx([0.35, 0.1, height], abs=1e-6)


def test_putting_goes_over_the_target_and_opens_a_centimetre_above_it():
    cube, plate = box([0.3, 0.1, 0.02], [0.02, 0.02, 0.02]), box([0.4, -0.1, 0.01], [0.06, 0.06, 0.01])
    moves = plan("stack_cube", HAND, Things(cube, cube, plate), fingers=3)
    assert [move.goal[:2].tolist() for move in moves] == [pytest.approx([0.3, 0.1])] * 4 + [
        pytest.approx([0.4, -0.1])
    ] * 4
    assert [move.goal[2].round(3) for move in moves] == [0.12, 0.02, 0.02, 0.12, 0.12, 0.05, 0.05, 0.12]
    assert [move.open for move in moves] == [True, True, False, False, False, False, True, True]
    assert [move.min_steps for move in moves] == [0, 0, 3, 0, 0, 0, 3, 0]


def test_hand_and_object_pass_over_what_is_high():
    can, bottle = box([0.3, 0.1, 0.06], [0.03, 0.03, 0.06]), box([0.4, -0.1, 0.1], [0.03, 0.03, 0.1])
    over, _, _, lifted = take(HAND, Things(can, can, bottle), 3, np.array([0.5, -0.3]))
    assert over.goal[2] == pytest.approx(0.2 + 0.016 + 0.03)
    assert lifted.goal[2] == pytest.approx(0.06 + 0.2 + 0.03)
    for spot in (np.array([0.5, 0.3]), None):  # the bottle stands aside
        assert take(HAND, Things(can, can, bottle), 3, spot)[-1].goal[2] == pytest.approx(0.06 + 0.1)


def test_beside_is_the_nearest_place_where_nothing_stands():
    source, target = box([0.7, 0.3, 0.05], [0.03, 0.03, 0.05]), box([0.7, 0.0, 0.05], [0.03, 0.03, 0.05])
    distance = 2 * 0.03 * np.sqrt(2) + 0.06
    spot, ground = beside(source, target, ())
    assert spot == pytest.approx([0.7, distance], abs=1e-6)
    assert ground == pytest.approx(0.0, abs=1e-9)
    obstacle = box([0.7, distance, 0.05], [0.03, 0.03, 0.05])
    aside, _ = beside(source, target, (obstacle,))
    assert np.linalg.norm(aside - [0.7, 0.0]) == pytest.approx(distance)
    assert np.linalg.norm(aside - spot) > 2 * 0.03 * np.sqrt(2)


def test_a_drawer_is_pushed_from_in_front_of_it():
    hand = Hand(np.array([0.45, -0.2, 0.95]), *(getattr(HAND, name) for name in ("approach", "closing", "reach")))
    moves = push(hand, Drawer(np.array([0.5, 0.1, 0.4]), np.array([-1.0, 0, 0]), 0.2))
    assert [move.goal.round(3).tolist() for move in moves] == [
        [0.35, -0.2, 0.95],
        [0.35, 0.1, 0.95],
        [0.35, 0.1, 0.4],
        [0.7, 0.1, 0.4],
        [0.55, 0.1, 0.4],
    ]


def test_what_it_does_not_know_it_does_not_try():
    cube = box([0.3, 0.1, 0.02], [0.02, 0.02, 0.02])
    with pytest.raises(ValueError, match="got the task 'open_drawer', expected one the expert knows: put_spoon"):
        plan("open_drawer", HAND, Things(cube, cube), 3)
    assert unknown_tasks("expert", "google_robot") == ["open_drawer"]
    assert unknown_tasks("expert", "widowx") == unknown_tasks("zero", "google_robot") == []


# Steps.
def test_the_hand_turns_to_point_down_and_never_by_more_than_a_quarter():
    assert remaining_rotation(HAND, np.array([0, 1.0, 0])) == pytest.approx([0, 0, 0])
    assert remaining_rotation(HAND, np.array([0.6, 0.8, 0])) == pytest.approx([0, 0, -np.arctan2(0.6, 0.8)])
    assert remaining_rotation(HAND, np.array([-0.6, -0.8, 0])) == pytest.approx([0, 0, -np.arctan2(0.6, 0.8)])
    tilted = Hand(HAND.position, np.array([np.sin(0.3), 0, -np.cos(0.3)]), HAND.closing, 0.0)
    assert remaining_rotation(tilted, np.array([0, 1.0, 0])) == pytest.approx([0, 0.3, 0])
    assert remaining_rotation(tilted, np.array([0, 1.0, 0]), lean=0.3) == pytest.approx([0, 0, 0], abs=1e-9)
    assert remaining_rotation(tilted, None) == pytest.approx([0, 0, 0])


def at(*place):
    return Hand(np.array(place), HAND.approach, HAND.closing, HAND.reach)


def test_steps_are_shares_of_the_way_and_have_a_longest():
    script = Script([Move(np.array([0.5, 0, 0.15]), True), Move(np.array([0.5, 0, 0]), False)], PACES["widowx"])
    assert script.step(at(0.3, 0, 0.15)) == pytest.approx([0.03, 0, 0, 0, 0, 0, 1])
    assert script.step(at(0.48, 0, 0.15)) == pytest.approx([0.01, 0, 0, 0, 0, 0, 1])
    assert script.step(at(0.495, 0, 0.15)) == pytest.approx([0.001, 0, -0.03, 0, 0, 0, 0], abs=1e-4)  # the next move


def test_fingers_are_waited_for():
    here = np.array([0.3, 0, 0.02])
    script = Script([Move(here, False, min_steps=3), Move(np.array([0.3, 0, 0.12]), False)], PACES["widowx"])
    assert [script.step(at(*here))[2].round(3) for _ in range(4)] == [0, 0, 0, 0.03]


def test_a_move_that_does_not_arrive_ends():
    script = Script([Move(np.array([0.5, 0, 0]), True), Move(np.array([0, 0, 0]), False)], PACES["widowx"])
    hands = [at(0.3 + 0.002 * (step % 2), 0, 0) for step in range(26)]
    assert [script.step(hand)[6] for hand in hands] == [1.0] * 25 + [0.0]


def test_where_no_posture_is_found_it_asks_for_less():
    script = Script([Move(np.array([0.8, 0, 0]), True)], PACES["google_robot"])
    steps = [script.step(at(0.3, 0, 0))[0] for _ in range(3)] + [script.step(at(0.32, 0, 0))[0]]
    assert steps == pytest.approx([0.12, 0.06, 0.03, 0.12])


# What is read.
def test_everything_is_read_in_the_frame_of_the_robot(assets):
    trial = trials_of("widowx", "matching", ["stack_cube"])[0]
    environment = make_environment(trial, assets)
    environment.reset(options=reset_options(trial))
    hand, things = read_hand(environment.unwrapped), read_things(environment.unwrapped, trial)
    # The robot itself stands at 0.147, 0.028 and faces -x.
    assert hand.position == pytest.approx([0.3, 0, 0.15], abs=1e-6)
    assert (hand.approach, hand.closing) == (pytest.approx([0, 0, -1], abs=1e-6), pytest.approx([0, 1, 0], abs=1e-6))
    assert hand.reach == pytest.approx(0.01, abs=1e-6)
    assert isinstance(things, Things)
    assert things.source.mean(0) == pytest.approx([0.35, 0.08, 0.01], abs=1e-6)
    assert things.target is not None
    assert things.target.max(0) == pytest.approx([0.41, -0.04, 0.01], abs=1e-6)
    assert things.others == ()


def test_a_drawer_is_read_from_its_front():
    shapes = [
        simpler_simulator.Shape(simpler_simulator.BoxGeometry([0.01, 0.3, 0.07]), (0.3, 0, 0)),
        simpler_simulator.Shape(simpler_simulator.BoxGeometry([0.3, 0.2, 0.01]), (0, 0, -0.05)),
    ]
    link = simpler_simulator.Body("top_drawer", 1, shapes, simpler_simulator.Pose((-0.1, 0, 0.6)))
    base = simpler_simulator.Pose((0.6, 0, 0), simpler_simulator.rotation_matrix([0, 0, np.pi]))
    cabinet = SimpleNamespace(get_qpos=lambda: np.array([0.2, 0, 0]))
    robot = SimpleNamespace(robot=SimpleNamespace(pose=base))
    simulator = SimpleNamespace(agent=robot, drawer_obj=link, art_obj=cabinet, joint_idx=0)
    drawer = read_things(simulator, trials_of("google_robot", "matching", ["close_drawer"])[0])
    assert isinstance(drawer, Drawer)
    assert drawer.front == pytest.approx([0.39, 0, 0.6], abs=1e-6)
    assert drawer.outward == pytest.approx([-1, 0, 0], abs=1e-6)
    assert drawer.opening == 0.2


def test_of_several_parts_the_one_at_the_balance_is_held():
    mesh = simpler_simulator.ConvexMeshGeometry(box([0, 0, 0], [0.05, 0.01, 0.01]), scale=(2, 1, 1))
    bowl = simpler_simulator.Shape(simpler_simulator.BoxGeometry([0.03, 0.03, 0.03]), (0.13, 0, 0))
    spoon = simpler_simulator.Body("spoon", 1, [bowl, simpler_simulator.Shape(mesh)], simpler_simulator.Pose())
    assert held_part(np.eye(4), spoon).max(0) == pytest.approx([0.1, 0.01, 0.01])
    assert surface(np.eye(4), [spoon]).max(0) == pytest.approx([0.16, 0.03, 0.03])
    spoon.shapes = [simpler_simulator.Shape(SimpleNamespace())]
    with pytest.raises(ValueError, match="got a shape of SimpleNamespace, expected ConvexMeshGeometry or BoxGeometry"):
        surface(np.eye(4), [spoon])


def test_random_moves_are_those_of_the_trial():
    first, second = trials_of("widowx", "matching", ["stack_cube"])[:2]

    def moves(trial):
        predict = CONTROLS["random"](trial, "stack", None)
        return np.concatenate([predict(np.zeros((4, 4, 3), np.uint8)) for _ in range(50)])

    once = moves(first)
    assert (once == moves(first)).all()
    assert (once != moves(second)).any()
    assert np.abs(once[:, :6]).max(0) == pytest.approx([0.02] * 3 + [0.1] * 3, rel=0.2)
    assert set(once[:, 6]) == {0.0, 1.0}


# The command.
def evaluate(tmp_path, *arguments):
    return main(["evaluate", "simpler", *arguments, "--output", str(tmp_path / "run")])


def test_controls_run_without_a_model(assets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--robot", "widowx", "--tasks", "stack_cube", "--episodes", "2", "--policy", "expert,random,zero"]
    assert evaluate(tmp_path, *arguments) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    tasks = [(name, t) for name, found in results["controls"].items() for t in found["tasks"]]
    scores = [(name, t["mode"], t["successes"], t["n"]) for name, t in tasks]
    assert scores == [("expert", "matching", 2, 2), ("random", "matching", 0, 2), ("zero", "matching", 0, 2)]
    assert (results["model"], results["tasks"]) == (None, [])
    settings = json.loads((tmp_path / "run" / "controls" / "expert" / "settings.json").read_text())
    assert settings == {"control": "expert", "robot": "widowx", "shader": None}
    shown = capsys.readouterr().out
    assert "2/2 of 24" in shown
    assert "0/2 of 24" in shown
    figures = read_results(tmp_path / "run" / "results.json")
    assert [(f["value"], f["control"], f["note"]) for f in figures] == [
        (1.0, True, "expert, 2 of the protocol's 24 trials"),
        (0.0, True, "random, 2 of the protocol's 24 trials"),
        (0.0, True, "zero, 2 of the protocol's 24 trials"),
    ]


def test_controls_stand_beside_a_model_in_matching_and_stay_there(assets, bridge_model, tmp_path, capsys):
    for half in bridge_model:
        half.save_pretrained(tmp_path / "model")
    arguments = ["--robot", "widowx", "--tasks", "stack_cube", "--episodes", "1", "--modes", "matching", "masked"]
    assert evaluate(tmp_path, *arguments, "--policy", "zero") == 0  # alone: in both modes
    assert evaluate(tmp_path, str(tmp_path / "model"), *arguments, "--policy", "expert") == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [(t["mode"], t["value"]) for t in results["tasks"]] == [("matching", 0.0), ("masked", 0.0)]
    assert [(t["mode"], t["value"]) for t in results["controls"]["expert"]["tasks"]] == [("matching", 1.0)]
    assert [t["mode"] for t in results["controls"]["zero"]["tasks"]] == ["matching", "masked"]
    assert evaluate(tmp_path, str(tmp_path / "model"), *arguments, "--shader", "ibl") == 2
    assert "other settings than those the trials there were run with (shader)" in capsys.readouterr().err
    assert evaluate(tmp_path, *arguments, "--policy", "expert") == 2
    assert "which has one's trials; name it, or another --output folder" in capsys.readouterr().err


def test_what_the_expert_does_not_know_is_said(assets, tmp_path, capsys):
    robot = ["--robot", "google_robot", "--episodes", "1", "--policy"]
    assert evaluate(tmp_path, *robot, "expert", "--tasks", "open_drawer") == 2
    assert "got the policy 'expert' for open_drawer, expected one that it knows" in capsys.readouterr().err
    assert evaluate(tmp_path, *robot, "zero,expert", "--tasks", "open_drawer", "--shard", "3/12") == 2
    assert evaluate(tmp_path, *robot, "clever") == 2
    assert "got the policy 'clever', expected some of expert, random, zero" in capsys.readouterr().err
    assert main(["evaluate", "simpler", "--robot", "widowx", "--output", str(tmp_path)]) == 2
    assert "got neither a model nor controls" in capsys.readouterr().err
