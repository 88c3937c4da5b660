"""Policies of the gen-vla family for LeRobot, which imports this module because of its name."""

from .configuration_gen_vla import GenVLAConfig


__all__ = ["GenVLAConfig"]
