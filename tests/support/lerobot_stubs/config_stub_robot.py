"""`--robot.type=stub_robot`."""

from dataclasses import dataclass

from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("stub_robot")
@dataclass(kw_only=True)
class StubRobotConfig(RobotConfig):
    """Nothing to set."""
