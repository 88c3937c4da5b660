"""An environment with two cameras, whose episodes end after a number of steps."""

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

from .frames import SHAPE, TASK, frame, note


STEPS = 7
CAMERAS = ("top", "hand")


class StubEnv(gymnasium.Env):
    """Shows `frame(step, camera)`; a success once it was sent `STEPS` actions."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"
    task_description = TASK
    task = TASK
    _max_episode_steps = STEPS

    def __init__(self, cameras: tuple[str, ...]):
        picture = gymnasium.spaces.Box(0, 255, SHAPE, np.uint8)
        self.cameras = cameras
        self.observation_space = gymnasium.spaces.Dict(
            {"pixels": gymnasium.spaces.Dict(dict.fromkeys(cameras, picture))}
        )
        self.action_space = gymnasium.spaces.Box(-1e3, 1e3, (7,), np.float32)
        self.step_number = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.step_number = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        note(action)
        self.step_number += 1
        done = self.step_number == STEPS
        return self._observation(), float(done), done, False, {"is_success": done}

    def render(self) -> np.ndarray:
        return frame(self.step_number, "top")

    def _observation(self) -> dict[str, Any]:
        return {"pixels": {camera: frame(self.step_number, camera) for camera in self.cameras}}


gymnasium.register("gym_stub/stub", entry_point=StubEnv)


@EnvConfig.register_subclass("stub")
@dataclass
class StubEnvConfig(EnvConfig):
    """`--env.type=stub`; STUB_CAMERAS names how many of its cameras there are."""

    task: str | None = "stub"
    fps: int = 10
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    )
    features_map: dict[str, str] = field(default_factory=lambda: {"action": "action"})

    def __post_init__(self) -> None:
        for camera in self.cameras:
            self.features[f"pixels/{camera}"] = PolicyFeature(FeatureType.VISUAL, SHAPE)
            self.features_map[f"pixels/{camera}"] = f"observation.images.{camera}"

    @property
    def cameras(self) -> tuple[str, ...]:
        return CAMERAS[: int(os.environ.get("STUB_CAMERAS", "1"))]

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"cameras": self.cameras}
