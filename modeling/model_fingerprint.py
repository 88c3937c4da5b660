"""Whether a model is still the one that a CUDA graph was recorded from.

Decides: what makes a recording stale: weights and buffers that lie elsewhere or are of another type, modules or their
`forward` exchanged, adapters switched. Refuses to know: recordings. Weights changed in place change nothing: a
recording reads them where they are.
"""

from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch.nn.modules import module as every_module


class ModelFingerprint:
    """What was seen of a model.

    `holds` looks at some thousand modules in a fraction of a millisecond: it asks no module, but reads the
    dictionaries in which they keep their parts.
    """

    def __init__(self, model: Any):
        every = list(model.modules())
        self.modules = every[1:]  # kept, so that nothing new gets an address that was seen; the model itself may go
        self.own = [module.__dict__ for module in self.modules]
        self.parts = [module._modules for module in every if module._modules]
        tensors = [(module._parameters, module._buffers) for module in every]
        self.tensors = [those for those in chain.from_iterable(tensors) if those]
        hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in every]
        self.hooks = list(chain.from_iterable(hooks))
        # PEFT's layers; transformers' models have some of the same names, as methods.
        self.adapters = [module for module in self.modules if isinstance(getattr(module, "merged_adapters", 0), list)]
        self.seen = self._look()

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return self._look() == self.seen

    def has_hooks(self) -> bool:
        """Whether something waits for a module to be called, which a graph does not do."""
        everywhere = every_module._global_forward_hooks, every_module._global_forward_pre_hooks
        return any(map(len, (*everywhere, *self.hooks)))

    def _look(self) -> tuple[Any, ...]:
        parts = map(id, chain.from_iterable(map(dict.values, self.parts)))
        tensors = [tensor for tensor in chain.from_iterable(map(dict.values, self.tensors)) if tensor is not None]
        dtypes = list(map(attrgetter("dtype"), tensors))
        # Of the module itself, in place of its class's. Not kept: it might keep the model.
        forwards = [(place, id(own["forward"])) for place, own in enumerate(self.own) if "forward" in own]
        return list(parts), places_of(tensors), dtypes, forwards, [adapter_state(module) for module in self.adapters]


def places_of(tensors: list[torch.Tensor]) -> list[int]:
    """Where tensors lie; what wraps other tensors lies nowhere, and is told by itself."""
    places = list(map(torch.Tensor.data_ptr, tensors))
    return places if all(places) else [place or id(tensor) for place, tensor in zip(places, tensors)]


def adapter_state(module: Any) -> tuple[Any, ...]:
    """What of a PEFT layer's state decides what it computes, its weights excepted."""
    scaling = getattr(module, "scaling", None)
    return (
        str(module.active_adapters),
        bool(module.disable_adapters),
        str(module.merged_adapters),
        str(scaling) if isinstance(scaling, dict) else "",
    )
