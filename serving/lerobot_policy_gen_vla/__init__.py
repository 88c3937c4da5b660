"""Policies of the gen-vla family for LeRobot, which imports this module because of its name.

configuration_gen_vla.py    `--policy.*`
modeling_gen_vla.py         acts, trains, answers questions
processor_gen_vla.py        what happens to observations before and to actions after
"""

from .configuration_gen_vla import GenVLAConfig


__all__ = ["GenVLAConfig"]
