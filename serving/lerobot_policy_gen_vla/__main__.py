"""Writes a folder for `--policy.path`: settings of the policy, which name a published model.

python -m lerobot_policy_gen_vla FOLDER --checkpoint_path=OWNER/NAME --trust_remote_code=true
"""

import sys
from pathlib import Path

import draccus

from .configuration_gen_vla import GenVLAConfig, saved_settings
from .processor_gen_vla import save_settings


def main() -> None:
    """Raises `ValueError` for settings that no policy could be made from."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("got no folder; usage: python -m lerobot_policy_gen_vla FOLDER --checkpoint_path=OWNER/NAME ...")
    config = draccus.parse(GenVLAConfig, args=sys.argv[2:])
    if not config.server:
        saved_settings(config.checked_checkpoint())
    save_settings(config, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
