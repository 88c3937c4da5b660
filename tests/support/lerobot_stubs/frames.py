"""What the stubs show, and where they write down what they were sent; the tests read both."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


SHAPE = (24, 32, 3)
TASK = "close the drawer"


def frame(step: int, camera: str) -> np.ndarray:
    """The picture of a camera at a step, uint8 of `SHAPE`."""
    return np.random.default_rng([step, len(camera)]).integers(0, 256, SHAPE, dtype=np.uint8)


def note(action: Any) -> None:
    """Writes down an action that was carried out."""
    with Path(os.environ["STUB_ACTIONS"]).open("a") as file:
        file.write(json.dumps([float(value) for value in action]) + "\n")
