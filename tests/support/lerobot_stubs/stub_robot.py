"""A robot of seven joints and one camera, for `lerobot-record`."""

from functools import cached_property
from typing import Any, ClassVar

from lerobot.robots.robot import Robot

from .config_stub_robot import StubRobotConfig
from .frames import SHAPE, frame, note


JOINTS = [f"joint_{number}.pos" for number in range(7)]


class StubRobot(Robot):
    """Its joints are where they were last sent."""

    config_class = StubRobotConfig
    name = "stub_robot"
    cameras: ClassVar[dict[str, Any]] = {"front": None}

    def __init__(self, config: StubRobotConfig):
        super().__init__(config)
        self.joints, self.step_number, self._connected = dict.fromkeys(JOINTS, 0.0), 0, False

    @cached_property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(JOINTS, float), "front": SHAPE}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(JOINTS, float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """There is nothing to calibrate."""

    def configure(self) -> None:
        """There is nothing to configure."""

    def get_observation(self) -> dict[str, Any]:
        return {**self.joints, "front": frame(self.step_number, "front")}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        note(action.values())
        self.joints, self.step_number = dict(action), self.step_number + 1
        return action

    def disconnect(self) -> None:
        self._connected = False
