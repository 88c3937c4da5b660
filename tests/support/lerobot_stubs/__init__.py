"""An environment and a robot for LeRobot that show noise and write down what they are sent.

LeRobot's command lines import them by `--env.discover_packages_path=lerobot_stubs` in its own environment. Each action
is a line of JSON in the file that STUB_ACTIONS names; pictures depend on the number of actions before.
"""

from .config_stub_robot import StubRobotConfig
from .stub_environment import StubEnvConfig
from .stub_robot import StubRobot


__all__ = ["StubEnvConfig", "StubRobot", "StubRobotConfig"]
