"""Whether a model is still the one that a CUDA graph was recorded from.

Decides: what makes a recording stale: weights that lie elsewhere, modules exchanged, adapters switched. Refuses to
know: recordings. Weights changed in place change nothing: a recording reads them where they are.
"""

from itertools import chain
from typing import Any


class ModelFingerprint:
    """What was seen of a model.

    `holds` looks at some thousand modules in a fraction of a millisecond: it asks no module, but reads the
    dictionaries in which they keep their parts.
    """

    def __init__(self, model: Any):
        every = list(model.modules())
        self.modules = every[1:]  # kept, so that nothing new gets an address that was seen; the model itself may go
        self.parts = [module._modules for module in every if module._modules]
        self.weights = [module._parameters for module in every if module._parameters]
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
        return any(map(len, self.hooks))

    def _look(self) -> tuple[Any, ...]:
        parts = map(id, chain.from_iterable(map(dict.values, self.parts)))
        weights = chain.from_iterable(map(dict.values, self.weights))
        places = [weight.data_ptr() for weight in weights if weight is not None]
        return list(parts), places, [adapter_state(module) for module in self.adapters]


def adapter_state(module: Any) -> tuple[Any, ...]:
    """What of a PEFT layer's state decides what it computes, its weights excepted."""
    scaling = getattr(module, "scaling", None)
    return (
        str(module.active_adapters),
        bool(module.disable_adapters),
        str(module.merged_adapters),
        str(scaling) if isinstance(scaling, dict) else "",
    )
