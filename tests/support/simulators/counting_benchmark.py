"""A benchmark for vla-eval without a simulator: pictures count the steps, and it remembers what it was sent."""

from typing import Any, ClassVar

import numpy as np
from policy_servers import frame
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import IMAGE_RGB, LANGUAGE


STEPS = 8
TASKS = ("close the drawer", "pick up the can")


def picture_at(task: str, step: int, camera: str = "agentview") -> np.ndarray:
    """What a camera shows at a step, uint8 [10, 12, 3]."""
    return frame(100 * TASKS.index(task) + 10 * step + len(camera))


class CountingBenchmark(StepBenchmark):
    """Ends after `STEPS` steps; a success if every action was one of 7 finite numbers."""

    render_backends = frozenset({"gpu", "cpu"})
    sent: ClassVar[dict[str, list[np.ndarray]]] = {}

    def __init__(self, send_wrist_image: bool = False):
        super().__init__()
        self.cameras = ("agentview", "wrist") if send_wrist_image else ("agentview",)
        self.name, self.count = "", 0

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": name} for name in TASKS]

    def reset(self, task: dict[str, Any]) -> int:
        self.name, self.count = task["name"], 0
        self.sent[self.name] = []
        return 0

    def step(self, action: dict[str, Any]) -> StepResult:
        self.sent[self.name].append(np.asarray(action["actions"]))
        self.count += 1
        return StepResult(self.count, 0.0, self.count == STEPS, {})

    def make_obs(self, raw_obs: int, task: dict[str, Any]) -> dict[str, Any]:
        pictures = {camera: picture_at(task["name"], raw_obs, camera) for camera in self.cameras}
        return {"images": pictures, "task_description": task["name"]}

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        actions = np.stack(self.sent[self.name])
        return {"success": actions.shape == (STEPS, 7) and bool(np.isfinite(actions).all())}

    def get_action_spec(self) -> dict[str, Any]:
        return {}

    def get_observation_spec(self) -> dict[str, Any]:
        return {**dict.fromkeys(self.cameras, IMAGE_RGB), "language": LANGUAGE}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": STEPS}
