"""Policies for robots: the server of `gen-vla serve`, and what a robot's program needs to be driven by one."""

try:
    from .client import PolicyClient, PolicyError
except ModuleNotFoundError as error:
    text = f"got no {error.name}, expected it for a policy client; pip install 'gen-vla[serve]'"
    raise ModuleNotFoundError(text, name=error.name) from error
from .control_loop import ChunkLoop, LoopReport, Robot


__all__ = ["ChunkLoop", "LoopReport", "PolicyClient", "PolicyError", "Robot"]
