"""An environment and a robot for LeRobot's command lines (`--env.discover_packages_path=lerobot_stubs`).

They show noise, and write each action as a line of JSON to the file that STUB_ACTIONS names.
"""

from .config_stub_robot import StubRobotConfig
from .stub_environment import StubEnvConfig
from .stub_robot import StubRobot


__all__ = ["StubEnvConfig", "StubRobot", "StubRobotConfig"]
