"""A scripted expert for LIBERO, which reads the simulator's state: it picks a thing up and puts it where it belongs.

It is no measure of how hard a task is. It says that actions mean what a policy takes them for: 5 cm or half a radian
for a 1, 1 to close the gripper. The moves are those of `simpler/expert.py`. It knows tasks with one goal of the form
"on" or "in"; drawers, knobs and tasks of several goals are unknown to it.
"""

from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from gen_vla.evaluation.simpler.expert import Hand, Move, Pace, Script, Things, middle, put


METRES, RADIANS = 0.05, 0.5  # of the hand for an action of 1
PACE = Pace(0.05, 0.3, 1.2, 14, 0.0)
WIDEST = 0.065  # metres that the fingers close on; of wider things the rim is taken
RIM = 0.012  # metres of a wide thing's side that are taken for its rim
FINGERS = ("gripper0_finger_joint1_tip", "gripper0_finger_joint2_tip")
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


class UnknownTaskError(ValueError):
    """The expert cannot do this task."""


class LiberoExpert:
    """Plans when it is first asked, in a simulation that has settled."""

    def __init__(self, simulation: Any):
        self.environment = simulation.env
        self.model, self.data = simulation.sim.model._model, simulation.sim.data._data
        self.script = Script(self._plan(), PACE)

    def act(self) -> np.ndarray:
        """The next action, float64 [7], as the environment takes it."""
        x, y, z, roll, pitch, yaw, opens = self.script.step(self._hand())
        turn = Rotation.from_euler("xyz", (roll, pitch, yaw)).as_rotvec()
        moves = np.concatenate([np.array([x, y, z]) / METRES, turn / RADIANS])
        return np.append(np.clip(moves, -1.0, 1.0), -1.0 if opens else 1.0)

    def _plan(self) -> list[Move]:
        goals = self.environment.parsed_problem["goal_state"]
        if len(goals) != 1 or len(goals[0]) != 3 or goals[0][0] not in ("on", "in"):
            raise UnknownTaskError(f"got the goals {goals}, expected one thing on or in another")
        _, name, target = goals[0]
        hand, source = self._hand(), self._points(name)
        others = [self._points(other) for other in self.environment.objects_dict if other not in (name, target)]
        spot, ground, around = self._place(target)
        held = self._held(source, hand)
        things = Things(source, held, around, tuple(others))
        # `put` brings the middle of what is held to a spot: of a rim that is beside the middle of the thing.
        beside = (middle(held) - middle(source))[:2]
        return put(hand, things, PACE.fingers, spot + beside, ground)

    def _hand(self) -> Hand:
        site = self.model.site("gripper0_grip_site").id
        position = self.data.site_xpos[site].copy()
        frame = self.data.body("gripper0_right_gripper").xmat.reshape(3, 3)
        fingers = np.concatenate([self._shapes(self.model.body(name).id) for name in FINGERS])
        reach = float(((fingers - position) @ frame[:, 2]).max())
        between = self.data.body(FINGERS[0]).xpos - self.data.body(FINGERS[1]).xpos
        return Hand(position, frame[:, 2].copy(), between / np.linalg.norm(between), reach)

    def _held(self, source: np.ndarray, hand: Hand) -> np.ndarray:
        """The points to close on: all of a narrow thing, one side of a wide one."""
        widths = np.ptp(source[:, :2], axis=0)
        if widths.min() < WIDEST:
            return source
        along = hand.closing if abs(hand.closing[1]) > 0.5 else np.array([0.0, 1.0, 0.0])
        across = np.array([-along[1], along[0], 0.0])
        distance = (source - middle(source)) @ along
        side = source[distance > distance.max() - RIM]
        near = np.abs((side - middle(source)) @ across) < 0.02
        return side[near] if near.any() else side

    def _place(self, target: str) -> tuple[np.ndarray, float, np.ndarray]:
        """Where to put something (x, y), how high its lower side is then, and points [N, 3] of what it is put on."""
        environment = self.environment
        if target in environment.objects_dict or target in environment.fixtures_dict:
            points = self._points(target)
            return middle(points)[:2], float(points[:, 2].max()), points
        position = self.data.site(target).xpos.copy()
        parent = environment.object_sites_dict[target].parent_name
        points = self._points(parent) if parent else position[None]
        inside = position[2] < points[:, 2].max() - 0.02  # of a basket: let go above its rim
        return position[:2], float(points[:, 2].max() if inside else position[2]), points

    def _points(self, name: str) -> np.ndarray:
        """Points on what collides of an object, float64 [N, 3]."""
        root = self.environment.obj_body_id[name]
        bodies = [body for body in range(self.model.nbody) if self._belongs(body, root)]
        return np.concatenate([self._shapes(body) for body in bodies])

    def _belongs(self, body: int, root: int) -> bool:
        while body not in (0, root):
            body = int(self.model.body_parentid[body])
        return body == root

    def _shapes(self, body: int) -> np.ndarray:
        """Corners of the boxes around a body's shapes that collide, and the middles between them."""
        parts = [np.zeros((0, 3))]
        first, second = np.triu_indices(len(CORNERS))
        for geom in np.flatnonzero(self.model.geom_bodyid == body):
            if not (self.model.geom_contype[geom] or self.model.geom_conaffinity[geom]):
                continue
            centre, size = self.model.geom_aabb[geom, :3], self.model.geom_aabb[geom, 3:]
            corners = centre + CORNERS * size
            points = (corners[first] + corners[second]) / 2
            parts.append(points @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom])
        return np.concatenate(parts)
