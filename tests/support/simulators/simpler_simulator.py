"""The interface of `mani_skill2_real2sim` (revision ef7a4d4) without a simulator, `install`ed under the real name.

Instead of physics, a drawer's joint follows the hand's z, and on the widowx's table a bar is taken across its narrow
side and put on a plate.
"""

import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from scipy.spatial.transform import Rotation


ROBOTS = {"google_robot_static": "overhead_camera", "widowx": "3rd_view_camera"}
ROBOTS["widowx_sink_camera_setup"] = "3rd_view_camera"
SIZES = {"overhead_camera": (512, 640), "3rd_view_camera": (480, 640)}
ARENA, OBJECT, CABINET, ROBOT = 38, 40, 41, 25  # segmentation ids
MADE: list[dict[str, Any]] = []  # arguments of every environment, in the order they were made
RESETS: list[dict[str, Any]] = []


class Entity:
    """A link or an actor."""

    def __init__(self, name: str, id: int):
        self.name, self.id = name, id


class Pose:
    """A place and an orientation."""

    def __init__(self, place: Any = (0, 0, 0), rotation: Any = None):
        self.matrix = np.eye(4)
        self.matrix[:3, 3] = place
        self.matrix[:3, :3] = np.eye(3) if rotation is None else rotation

    def to_transformation_matrix(self) -> np.ndarray:
        return self.matrix.astype(np.float32)


class BoxGeometry:
    """A box; readers go by the class's name."""

    def __init__(self, half_lengths: Any):
        self.half_lengths = np.array(half_lengths)


class ConvexMeshGeometry:
    """A convex shape by its corners."""

    def __init__(self, vertices: Any, scale: Any = (1, 1, 1)):
        self.vertices, self.scale = np.array(vertices), np.array(scale)


class Shape:
    """A geometry at a place in its body's frame."""

    def __init__(self, geometry: Any, place: Any = (0, 0, 0)):
        self.geometry, self.place = geometry, place

    def get_local_pose(self) -> Pose:
        return Pose(self.place)


class Body(Entity):
    """What can be touched."""

    def __init__(self, name: str, id: int, shapes: list[Shape], pose: Pose):
        super().__init__(name, id)
        self.shapes, self.pose, self.cmass_local_pose = shapes, pose, Pose()

    def get_collision_shapes(self) -> list[Shape]:
        return self.shapes


def rotation_matrix(vector: Any) -> np.ndarray:
    """Axis times angle as a matrix [3, 3]."""
    return Rotation.from_rotvec(vector).as_matrix()


class Table:
    """The widowx's table: a hand that goes where it is told, a bar and a plate, all in the robot's frame."""

    def __init__(self, place: Any):
        self.base = Pose([*place, 0.87], rotation_matrix([0, 0, np.pi]))
        self.hand, self.rotation = np.array([0.3, 0.0, 0.15]), np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]])
        self.bar, self.plate = np.array([0.35, 0.08, 0.01]), np.array([0.35, -0.1, 0.005])
        self.along = rotation_matrix([0, 0, 0.6])
        self.open, self.held = True, False

    def _body(self, name: str, half_lengths: Any, place: Any, rotation: Any = None) -> Body:
        pose = Pose()
        pose.matrix = self.base.matrix @ Pose(place, rotation).matrix
        return Body(name, OBJECT, [Shape(BoxGeometry(half_lengths))], pose)

    def show(self, simulator: Any) -> None:
        """What an expert reads."""
        fingers = [self.hand + side * self.rotation[:, 1] for side in (0.04, -0.04)]
        simulator.agent.robot.pose = self.base
        simulator.agent.finger_left_link = self._body("left", (0.01, 0.005, 0.01), fingers[0])
        simulator.agent.finger_right_link = self._body("right", (0.01, 0.005, 0.01), fingers[1])
        simulator.tcp = self._body("hand", (0, 0, 0), self.hand, self.rotation)
        simulator.episode_source_obj = self._body("bar", (0.05, 0.01, 0.01), self.bar, self.along)
        simulator.episode_target_obj = self._body("plate", (0.06, 0.06, 0.005), self.plate)
        simulator.episode_objs = [simulator.episode_source_obj, simulator.episode_target_obj]

    def step(self, action: np.ndarray) -> bool:
        """Moves hand and bar; whether the bar lies on the plate."""
        self.hand = self.hand + action[:3]
        self.rotation = rotation_matrix(action[3:6]) @ self.rotation
        if self.held:
            self.bar = self.bar + action[:3]
        over_plate = bool(np.abs(self.bar - self.plate)[:2].max() < 0.03)
        was_open, self.open = self.open, action[6] > 0
        if was_open and not self.open:
            across = abs(self.rotation[:, 1] @ self.along[:, 0]) < 0.1
            self.held = bool(np.linalg.norm(self.hand - self.bar) < 0.012 and across)
        if self.open and self.held:
            self.held, self.bar = False, np.array([*self.bar[:2], 0.02 if over_plate else 0.01])
        return over_plate and not self.held


def articulation(link: str, id: int) -> types.SimpleNamespace:
    """A robot or a cabinet of one link."""
    return types.SimpleNamespace(pose=Pose(), get_links=lambda: [Entity(link, id)])


class SimplerEnvironment(gymnasium.Env):
    """One task; `uid` is its registered name."""

    def __init__(self, uid: str, robot: str, obs_mode: str, control_mode: str, camera_cfgs: dict, **options: Any):
        assert (obs_mode, camera_cfgs) == ("rgbd", {"add_segmentation": True})
        family = "google" if "google" in robot else "widowx"
        assert options["control_freq"] == {"google": 3, "widowx": 5}[family]
        assert options["sim_freq"] == {"google": 513, "widowx": 500}[family]
        if options.get("rgb_overlay_path"):
            assert Path(options["rgb_overlay_path"]).is_file()
            assert options["rgb_overlay_cameras"] == [ROBOTS[robot]]
        MADE.append({"uid": uid, "robot": robot, "control_mode": control_mode, **options})
        self.uid, self.robot_uid, self.camera = uid, robot, ROBOTS[robot]
        self.agent = types.SimpleNamespace(robot=articulation("link_gripper", ROBOT))
        turn = np.pi / 2
        bounds = np.array([1, 1, 1, turn, turn, turn, 1], dtype=np.float32)
        self.action_space = spaces.Box(-bounds, bounds)
        height, width = SIZES[self.camera]
        camera = {
            "rgb": spaces.Box(0, 255, (height, width, 3), np.uint8),
            "depth": spaces.Box(0, np.inf, (height, width, 1), np.float32),
            "Segmentation": spaces.Box(0, 2**32 - 1, (height, width, 4), np.uint32),
        }
        self.observation_space = spaces.Dict({"image": spaces.Dict({self.camera: spaces.Dict(camera)})})

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        options = options or {}
        assert set(options) == {"robot_init_options", "obj_init_options"}
        RESETS.append(options)
        self._episode_seed = 3274329834 if seed is None else seed
        self.height, self.steps = 0.0, 0
        self.start = 0.2 if self.uid.startswith("Close") else 0.0
        self.table = Table(options["robot_init_options"].get("init_xy", (0, 0)))
        self.table.show(self)
        return self._observe(), {"scene_name": "made up"}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        assert isinstance(action, np.ndarray)  # a list would be a change of control mode
        assert action.shape == (7,)
        self.steps += 1
        self.height += action[2]
        qpos = self.start + self.height
        success = qpos <= 0.05 if self.uid.startswith("Close") else qpos >= 0.15
        if "widowx" in self.robot_uid:
            success = self.table.step(action)
            self.table.show(self)
        stats = OrderedDict(qpos=f"{qpos:.3f}", moved=np.bool_(self.height != 0))
        info = {"elapsed_steps": self.steps, "success": success, "episode_stats": stats}
        return self._observe(), float(success), bool(success), False, info

    def get_language_instruction(self, **kwargs: Any) -> str:
        for verb in ("Open", "Close"):
            for drawer in ("Top", "Middle", "Bottom"):
                if self.uid.startswith(verb + drawer):
                    return f"{verb} {drawer} drawer".lower()
        if self.uid.startswith("Grasp"):
            return "pick coke can"
        return {
            "PutSpoonOnTableClothInScene-v0": "put the spoon on the towel",
            "PutCarrotOnPlateInScene-v0": "put carrot on plate",
            "StackGreenCubeOnYellowCubeBakedTexInScene-v0": "stack the green block on the yellow block",
            "PutEggplantInBasketScene-v0": "put eggplant into yellow basket",
        }.get(self.uid, "move apple near sponge")

    def get_actors(self) -> list[Entity]:
        return [Entity("arena", ARENA), Entity("opened_coke_can", OBJECT)]

    def get_articulations(self) -> list[types.SimpleNamespace]:
        return [self.agent.robot, articulation("top_drawer", CABINET)]

    def _observe(self) -> dict[str, Any]:
        """The room, and on it three stripes of 20 rows: robot, object, cabinet."""
        height, width = SIZES[self.camera]
        rgb = np.full((height, width, 3), 200, dtype=np.uint8)
        ids = np.zeros((height, width, 4), dtype=np.uint32)
        ids[..., 1] = ARENA
        for stripe, id in enumerate((ROBOT, OBJECT, CABINET)):
            rgb[20 * stripe : 20 * stripe + 20] = 50 + stripe
            ids[20 * stripe : 20 * stripe + 20, :, 1] = id
        depth = np.ones((height, width, 1), dtype=np.float32)
        return {"image": {self.camera: {"rgb": rgb, "depth": depth, "Segmentation": ids}}}


def install(monkeypatch: Any, folder: Path, trials: list[Any]) -> Path:
    """Makes `import mani_skill2_real2sim` work for one test; returns its folder of assets."""
    package, module = types.ModuleType("mani_skill2_real2sim"), types.ModuleType("mani_skill2_real2sim.envs")
    package.ASSET_DIR = folder  # type: ignore[attr-defined]
    package.envs = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    MADE.clear()
    RESETS.clear()
    for uid, steps in sorted({(trial.environment, trial.steps) for trial in trials}):
        registered = EnvSpec(
            uid, entry_point=SimplerEnvironment, max_episode_steps=steps, disable_env_checker=True, kwargs={"uid": uid}
        )
        monkeypatch.setitem(gymnasium.registry, uid, registered)
    for trial in trials:
        stage = folder / "hab2_bench_assets" / "stages" / f"{trial.scene}.glb"
        stage.parent.mkdir(parents=True, exist_ok=True)
        stage.touch()
        if trial.overlay:
            (folder / "real_inpainting").mkdir(exist_ok=True)
            (folder / "real_inpainting" / trial.overlay).touch()
    return folder
