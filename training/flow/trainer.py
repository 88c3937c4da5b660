"""Training by flow matching: the loss of a step, and figures of what the model would have done.

For robot data and each of its sources:

    loss           mean squared error of the velocity, over the action's dimensions and steps that are not padding;
                   what trains also counts the dimensions behind them where noise is there (`noise_in_padding`)
    action_error   mean absolute error, in the data set's units, of the action that one step from x_t leads to; lower
                   than a whole flow from noise would have it, since x_t holds a part of the answer; for sources only
    replaced       as in `training/metrics.py`
"""

from typing import Any

import numpy as np
import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from gen_vla.processors import unnormalize_actions
from gen_vla.training.metrics import MetricSums
from gen_vla.training.trainer import CoTrainer


NO_ZERO3 = (
    "got DeepSpeed ZeRO-3 for the flow-matching π0, expected whole weights in every process, or FSDP: its action "
    "expert reads inside of PaliGemma's layers, which ZeRO-3 has not been seen to gather for that; use "
    "training/accelerate_configs/ddp.yaml or fsdp2.yaml"
)
MODEL_INPUTS = ("input_ids", "attention_mask", "pixel_values", "actions", "action_is_pad", "noise", "timestep")
MODEL_INPUTS += ("state",)


class FlowTrainer(CoTrainer):
    """`CoTrainer` whose rows hold actions as numbers: batches are those of `FlowCollator`, metrics a `FlowMetrics`;
    raises `ValueError` for DeepSpeed ZeRO-3.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if is_deepspeed_zero3_enabled():
            raise ValueError(NO_ZERO3)
        if self.is_fsdp_enabled:
            reach_last_layer(self.model)

    def batch_totals(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the loss is divided by: float [1], the steps that are not padding."""
        return (~batch["action_is_pad"]).sum().float()[None]

    def partial_loss(self, model: Any, inputs: dict[str, Any], totals: torch.Tensor | None) -> torch.Tensor:
        """This micro-batch's part of the mean over the step's numbers; every action has as many dimensions."""
        outputs = model(**{name: inputs[name] for name in MODEL_INPUTS if name in inputs})
        with torch.no_grad():
            self.source_metrics.add(outputs.logits, inputs)
        if totals is None:
            return outputs.loss
        return outputs.loss * self.batch_totals(inputs)[0] / totals[0].clamp(min=1)


def reach_last_layer(model: Any) -> None:
    """Lets FSDP gather PaliGemma's last layer for the backward pass; changes no number.

    FSDP gathers a layer's weights again when a gradient reaches the layer's output. Of the last layer the action
    expert uses keys and values only, so that no gradient would: here the keys get the output, times zero.
    """

    def add_nothing(module: Any, arguments: Any, output: Any) -> None:
        if torch.is_grad_enabled() and output.past_key_values is not None:
            layer = output.past_key_values.layers[-1]
            layer.keys = layer.keys + 0.0 * output.last_hidden_state[..., :1].sum()

    model.model.vlm.register_forward_hook(add_nothing)


class FlowMetrics(MetricSums):
    COLUMNS = ("squares", "values", "error", "rows", "replaced")

    def add(self, velocity: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        """One micro-batch; `velocity` float [B, T, D or more] is the model's."""
        actions, counted = inputs["actions"].float(), ~inputs["action_is_pad"]
        dims = actions.shape[-1]
        noise, times = inputs["noise"][..., :dims].float(), inputs["timestep"][:, None, None]
        wrong = velocity[..., :dims].float() - (noise - actions)
        squares = (wrong.square().sum(dim=-1) * counted).sum(dim=1)
        reached = (actions - times * wrong).clamp(-1, 1)  # x_t - t v: where the velocity leads by itself
        columns = (squares, counted.sum(dim=1) * dims, inputs["replaced"])
        per_row = torch.stack([column.double() for column in columns], dim=1).cpu().numpy()
        arrays = [tensor.cpu().numpy() for tensor in (reached, actions, counted)]
        for row, number in enumerate(inputs["source_id"].tolist()):
            if number < 0:  # in no figure
                continue
            squared, values, replaced = per_row[row]
            error = self._error(number, *(array[row] for array in arrays))
            self.sums[number] += (squared, values, error, 1, replaced)

    def _error(self, number: int, reached: np.ndarray, actions: np.ndarray, counted: np.ndarray) -> float:
        """Mean absolute error of one chunk [T, D] in units, over its steps [T] that count."""
        statistics = self.norm_stats[self.sources[number].partition("/")[2]]["action"]
        apart = unnormalize_actions(reached, statistics) - unnormalize_actions(actions, statistics)
        return float(np.abs(apart[counted]).mean())

    def means(self, kind: str, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["squares"] / sums["values"], "action_error": sums["error"] / sums["rows"]}
