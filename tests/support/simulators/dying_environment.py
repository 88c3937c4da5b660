"""A tabletop whose process dies; in a file of its own, since a process that begins imports all of it."""

import os

import numpy as np

from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS


class DyingEnv(TabletopEnv):
    """Takes its whole process along in the layout of the second seed."""

    def step(self, action: np.ndarray) -> bool:
        if self.seed == EVALUATION_SEEDS[1]:
            os._exit(7)
        return super().step(action)
