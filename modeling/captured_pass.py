"""A pass recorded as a CUDA graph.

Decides: where its arguments lie and how they get there, on which device and stream it is recorded. Refuses to know:
what it computes, when it is stale, whether it gives what it should (`static_plan.py`).
"""

from collections.abc import Callable
from typing import Any

import torch

from .parallel_streams import recording_stream


class CapturedPass:
    """A function of tensors of fixed shapes, recorded as a CUDA graph.

    Args:
        function: what to record; it has run before, on other tensors of these shapes.
        examples: arguments.
        plan: a `StaticPlan`, whose memory and device it uses.

    Attributes:
        operations: what layers are computed with; `None` for the model's own forward pass.
    """

    def __init__(self, function: Callable[..., torch.Tensor], examples: tuple[torch.Tensor, ...], plan: Any):
        plan.pool = plan.pool or torch.cuda.graph_pool_handle()
        self.operations, device = plan.operations, plan.head.device
        # What comes from the CPU waits there in one stretch of memory, and arrives by one copy.
        sizes = [0 if tensor.is_cuda else rounded_up(tensor.nbytes, 16) for tensor in examples]
        self.waiting = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True, device="cpu")
        self.arrived = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self.places = [
            tensor.to(device, copy=True) if tensor.is_cuda else viewed(self.waiting, start, tensor)
            for tensor, start in zip(examples, starts)
        ]
        inputs = [
            place if place.is_cuda else viewed(self.arrived, start, place) for place, start in zip(self.places, starts)
        ]
        self._send(examples)
        self.graph, stream = torch.cuda.CUDAGraph(), recording_stream(device)
        # Other threads may go on using the GPU meanwhile. The outer block leaves the stream even where `graph` fails
        # to end the recording, and itself does not.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(self.graph, pool=plan.pool, stream=stream, capture_error_mode="thread_local"),
        ):
            self.output = function(*inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the function returns; overwritten by the next call."""
        self._send(inputs)
        self.graph.replay()
        return self.output

    def _send(self, inputs: tuple[torch.Tensor, ...]) -> None:
        for place, tensor in zip(self.places, inputs, strict=True):
            place.copy_(tensor)
        self.arrived.copy_(self.waiting, non_blocking=True)  # read by the time a pass is over: before it is written to


def viewed(stretch: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """A part of uint8 [bytes] as a tensor like another one."""
    return stretch[start : start + like.nbytes].view(like.dtype).view(like.shape)


def rounded_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is no less than `number`."""
    return -(-number // step) * step
