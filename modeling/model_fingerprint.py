"""Whether a model is still the one that a CUDA graph was recorded from.

Decides: what makes a recording stale: weights that lie elsewhere, modules exchanged, adapters switched. Refuses to
know: recordings. Weights changed in place change nothing: a recording reads them where they are.
"""

from itertools import chain
from typing import Any

import torch


class ModelFingerprint:
    """What was seen of a model.

    `holds` looks at some thousand modules in a fraction of a millisecond: it asks no module, but reads the
    dictionaries in which they keep their parts.
    """

    def __init__(self, model: Any):
        self.modules = list(model.modules())  # kept, so that nothing new gets an address that was seen
        self.parts = [module._modules for module in self.modules if module._modules]
        self.weights = [module._parameters for module in self.modules if module._parameters]
        hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in self.modules]
        self.hooks = list(chain.from_iterable(hooks))
        # PEFT's layers; transformers' models have some of the same names, as methods.
        self.adapters = [module for module in self.modules if isinstance(getattr(module, "merged_adapters", 0), list)]
        self.seen = self._look()

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return self._look() == self.seen

    def has_hooks(self) -> bool:
        """Whether something waits for a module to be called, which a graph does not do."""
        return any(map(len, self.hooks))

    def _look(self) -> tuple[Any, ...]:
        parts = map(id, chain.from_iterable(map(dict.values, self.parts)))
        weights = filter(is_tensor, chain.from_iterable(map(dict.values, self.weights)))
        adapters = [adapter_state(module) for module in self.adapters]
        return list(parts), list(map(torch.Tensor.data_ptr, weights)), adapters, sum(map(len, self.hooks))


def is_tensor(value: Any) -> bool:
    """Whether a parameter is there."""
    return value is not None


def adapter_state(module: Any) -> tuple[Any, ...]:
    """What of a PEFT layer's state decides what it computes, its weights excepted."""
    scaling = getattr(module, "scaling", None)
    return (
        str(module.active_adapters),
        bool(module.disable_adapters),
        str(module.merged_adapters),
        str(scaling) if isinstance(scaling, dict) else "",
    )
