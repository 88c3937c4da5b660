"""Policies for robots: the server of `gen-vla serve`, and what a robot's program needs to be driven by one."""

from .client import PolicyClient, PolicyError
from .control_loop import ChunkLoop, LoopReport, Robot


__all__ = ["ChunkLoop", "LoopReport", "PolicyClient", "PolicyError", "Robot"]
