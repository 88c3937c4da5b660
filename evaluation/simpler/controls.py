"""Who else acts in SimplerEnv: the controls a model is compared with, and that say whether SimplerEnv works.

    expert   the script of `simpler/expert.py`, which reads the simulator's state (below)
    random   a random move, turn and opening per step, the same for the same trial
    zero     stays where it is; the widowx closes its fingers

Each predicts what a model does (metres, radians, 1 for open), and goes through the same adapter. What begins an
episode is a function of the trial, the instruction and the simulator behind its reset.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from gen_vla.evaluation.simpler.environment import robot_family
from gen_vla.evaluation.simpler.expert import KNOWN_TASKS, PACES, PUT_ON, Drawer, Hand, Script, Things, middle, plan
from gen_vla.evaluation.simpler.policy import Predict
from gen_vla.evaluation.simpler.runs import Begin
from gen_vla.evaluation.simpler.trials import TASKS, Trial


RANDOM_MOVE, RANDOM_TURN = 0.02, 0.1  # metres and radians per step at most, in each direction
PALM = {"widowx": 0, "google_robot": 2}  # which axis of the hand's frame points out of the palm; 1 is finger to finger
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


def expert(trial: Trial, instruction: str, simulator: Any) -> Predict:
    """Plans now, where everything stands."""
    pace, hand = PACES[robot_family(trial.robot)], read_hand(simulator)
    script = Script(plan(trial.task, hand, read_things(simulator, trial), pace.fingers), pace)
    return lambda image: script.step(read_hand(simulator))[None]


def random(trial: Trial, instruction: str, simulator: Any) -> Predict:
    generator, most = np.random.default_rng(zlib.crc32(trial.name.encode())), np.repeat([RANDOM_MOVE, RANDOM_TURN], 3)
    return lambda image: np.append(generator.uniform(-most, most), generator.integers(2))[None].astype(float)


def zero(trial: Trial, instruction: str, simulator: Any) -> Predict:
    return lambda image: np.zeros((1, 7))


CONTROLS: dict[str, Begin] = {"expert": expert, "random": random, "zero": zero}


def unknown_tasks(control: str, robot: str) -> list[str]:
    return [task for task in TASKS[robot] if control == "expert" and task not in KNOWN_TASKS]


# What the expert reads: corners of the shapes that collide and the middles between them, in the robot's frame. Nothing
# here imports the simulator: shapes are told apart by what their classes are called.
def read_hand(simulator: Any) -> Hand:
    agent = simulator.agent
    base = _matrix(agent.robot.pose)
    frame = _seen_from(base, simulator.tcp.pose)
    approach = frame[:3, PALM[robot_family(simulator.robot_uid)]]
    fingers = surface(base, (agent.finger_left_link, agent.finger_right_link))
    reach = float(((fingers - frame[:3, 3]) @ approach).max())
    return Hand(frame[:3, 3], approach, frame[:3, 1], reach)


def read_things(simulator: Any, trial: Trial) -> Things | Drawer:
    """What a trial is about; raises `ValueError` for a shape that is neither convex nor a box."""
    base = _matrix(simulator.agent.robot.pose)
    if trial.task == "close_drawer":
        link = simulator.drawer_obj
        outward, points = _seen_from(base, link.pose)[:3, 0], surface(base, [link])
        along = points @ outward
        front = points[along > along.max() - 1e-3]
        return Drawer(middle(front), outward, float(simulator.art_obj.get_qpos()[simulator.joint_idx]))
    if trial.task == "pick_coke_can":
        return Things(surface(base, [simulator.obj]), held_part(base, simulator.obj))
    source, target = simulator.episode_source_obj, simulator.episode_target_obj
    others = [actor for actor in simulator.episode_objs if actor not in (source, target)]
    points = tuple(surface(base, [actor]) for actor in others) if trial.task not in PUT_ON else ()
    return Things(surface(base, [source]), held_part(base, source), surface(base, [target]), points)


def surface(base: np.ndarray, bodies: Iterable[Any]) -> np.ndarray:
    """Points on what collides of some bodies, float64 [N, 3]."""
    return np.concatenate([part for body in bodies for part in _parts(base, body)])


def held_part(base: np.ndarray, actor: Any) -> np.ndarray:
    """Points on the convex part whose middle is nearest to an object's centre of mass, float64 [N, 3]."""
    balance = (_seen_from(base, actor.pose) @ _matrix(actor.cmass_local_pose))[:3, 3]
    return min(_parts(base, actor), key=lambda part: np.linalg.norm(middle(part) - balance))


def _parts(base: np.ndarray, body: Any) -> list[np.ndarray]:
    """Of each shape its corners and the middles between any two, float64 [N, 3]."""
    parts = []
    for shape in body.get_collision_shapes():
        frame = _seen_from(base, body.pose) @ _matrix(shape.get_local_pose())
        corners = _corners(shape.geometry) @ frame[:3, :3].T + frame[:3, 3]
        first, second = np.triu_indices(len(corners))
        parts.append((corners[first] + corners[second]) / 2)
    return parts


def _corners(geometry: Any) -> np.ndarray:
    kind = type(geometry).__name__
    if kind == "ConvexMeshGeometry":
        return np.asarray(geometry.vertices, dtype=float) * np.asarray(geometry.scale)
    if kind == "BoxGeometry":
        return CORNERS * np.asarray(geometry.half_lengths)
    raise ValueError(f"got a shape of {kind}, expected ConvexMeshGeometry or BoxGeometry")


def _seen_from(base: np.ndarray, pose: Any) -> np.ndarray:
    return np.linalg.inv(base) @ _matrix(pose)


def _matrix(pose: Any) -> np.ndarray:
    return np.asarray(pose.to_transformation_matrix(), dtype=float)
