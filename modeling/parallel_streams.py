"""Parallel CUDA streams for independent work while a graph is recorded: replayed, the branches cost no launches."""

from collections.abc import Callable
from typing import Any

import torch


_STREAMS: dict[tuple[int, int], Any] = {}  # by device and number; -1 is the one that records


def in_parallel(device: torch.device, *calls: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    """The results of calls without an effect on each other, which compute on `device`; later work waits for all."""
    if torch.compiler.is_compiling() or not is_recording(device):
        return [call() for call in calls]
    main = torch.cuda.current_stream(device)
    begun = main.record_event()
    results = []
    for number, call in enumerate(calls[1:]):
        stream = stream_of(device, number)
        stream.wait_event(begun)
        with torch.cuda.stream(stream):
            results.append(call())
    results.insert(0, calls[0]())
    for number in range(len(calls) - 1):
        main.wait_stream(stream_of(device, number))
    return results


def is_recording(device: torch.device) -> bool:
    """Whether what is computed on a device is being recorded."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def stream_of(device: torch.device, number: int = -1) -> Any:
    """A stream, by default the one that records: PyTorch's default lies on the device that was first to record."""
    key = (device.index or 0, number)
    if key not in _STREAMS:
        _STREAMS[key] = torch.cuda.Stream(device)
    return _STREAMS[key]
