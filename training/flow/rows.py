"""Rows and batches of a policy that makes its actions by flow matching (`model.family: pi0_flow`).

    robot row   prompt "close the drawer\\n"     actions float32 [T, D] in [-1, 1]     action_is_pad bool [T]
                noise float32 [T, F], timestep float: x_t = t noise + (1 - t) actions is what the model is shown
                state float32 [P] in [-1, 1], where the recipe has it

F is D, or all of the model's dimensions with `noise_in_padding` (`modeling/configuration_pi0_flow.py`).

Noise and time are drawn from the row's place in the run, like its augmentation: the same on any number of processes,
in a resumed run, and for every worker of a loader. Drawn from a process's own generator, rows of all processes would
be shown at the same times, since all of them start from the run's seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gen_vla.processors.robot_state import SHOWN
from gen_vla.training.collator import source_ids
from gen_vla.training.mixing.prepared_rows import RowPreparer, row_generator


def draw_noise(place: int, config: Any, seed: int) -> dict[str, Any]:
    """`noise` float32 [T, F] and `timestep` of a row's place in the run: scaled draws of a beta distribution."""
    random = row_generator(seed, "flow", place)
    noise = random.standard_normal((config.action_config["horizon"], config.flow_dim), dtype=np.float32)
    time = random.beta(config.time_sampling_beta_alpha, config.time_sampling_beta_beta)
    return {"noise": noise, "timestep": float(time * config.time_sampling_scale + config.time_sampling_offset)}


@dataclass(frozen=True)
class FlowRowPreparer(RowPreparer):
    """`RowPreparer` whose robot rows hold numbers in place of a completion."""

    draw_noise: Callable[[int], dict[str, Any]] | None = None  # place in the run -> what `draw_noise` gives

    def _robot_turn(self, row: dict[str, Any], key: str, place: int) -> dict[str, Any]:
        assert self.draw_noise is not None
        prompt = self.prompt(row, key, place)
        actions = self.normalized(row, key).astype(np.float32)
        padding = np.asarray(row["action_is_pad"], dtype=bool)
        shown = self.processor.action_config.get("state") == SHOWN
        state = {"state": self.processor.normalized_state(row["state"], key)} if shown else {}
        return {"prompt": prompt, "actions": actions, "action_is_pad": padding, **state, **self.draw_noise(place)}


class FlowCollator:
    """Collates rows of `FlowRowPreparer`.

    Returns (from a call): `input_ids`, `attention_mask` int64 [B, L], left-padded as in acting; `pixel_values` float32
    [B * cameras, 3, H, W], row after row; `actions` float32 [B, T, D]; `action_is_pad` bool [B, T]; `noise` float32
    [B, T, F]; `timestep` float32 [B]; `is_robot` bool [B], all true; `source_id` int64 [B]; `replaced` bool [B], as in
    `CoTrainingCollator`; where rows have it `state` float32 [B, P], zeros behind shorter ones.
    """

    def __init__(self, processor: Any, sources: Sequence[str] = ()):
        self.processor = processor
        self.sources = {name: number for number, name in enumerate(sources)}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images, prompts = ([row[name] for row in rows] for name in ("images", "prompt"))
        inputs = self.processor(images=images, text=prompts, split_special_tokens=True)
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        for name in ("actions", "action_is_pad", "noise"):
            batch[name] = torch.from_numpy(np.stack([row[name] for row in rows]))
        if "state" in rows[0]:
            states = [torch.from_numpy(row["state"]) for row in rows]
            batch["state"] = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
        batch["timestep"] = torch.tensor([row["timestep"] for row in rows], dtype=torch.float32)
        batch["is_robot"] = torch.ones(len(rows), dtype=torch.bool)
        batch["replaced"] = torch.tensor([row.get("replaced", False) for row in rows])
        batch["source_id"] = source_ids(rows, self.sources)
        return batch
