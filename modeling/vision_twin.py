"""D for any vision-language model of transformers: a frozen copy of its vision encoder beside the one that trains.

    features = (get_image_features(trained) + get_image_features(frozen)) / 2

Both are computed by the stock model's own `get_image_features`, each with a projector of its own; both projectors
train. With a linear projector W this is the concatenation of both encoders' features under [W, W] / 2. Where the copy
equals the original, so do the features, bit for bit.
"""

import copy
from functools import lru_cache, wraps
from typing import Any

import torch
import transformers
from torch import nn

from .vlm_families import Family


class FrozenVision(nn.Module):
    """A copy of what sees and projects in a base model; stands in for it in `get_image_features`.

    The encoder never moves: no gradient, evaluation mode whatever `train()` says. Its projector trains.
    """

    def __init__(self, base: Any, family: Family):
        super().__init__()
        self.stock_class = type(base)
        self.projectors = family.projectors
        for name, value in vars(base).items():  # sizes and the configuration, which that method reads
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)
        for name in family.vision:
            if (part := getattr(base, name, None)) is not None:
                setattr(self, name, copy.deepcopy(part))
        self.freeze()

    def __getattr__(self, name: str) -> Any:
        """Methods of the base model, besides what torch finds."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            method = getattr(self.__dict__["stock_class"], name)
            return method.__get__(self) if hasattr(method, "__get__") else method

    @property
    def dtype(self) -> torch.dtype:
        """Of the first weight."""
        return next(self.parameters()).dtype

    def freeze(self) -> None:
        """Freezes the encoder; `train()` does it again, since trainers switch modes wholesale."""
        trained = {id(weight) for name in self.projectors for weight in self._weights_of(name)}
        for weight in self.parameters():
            if id(weight) not in trained:
                weight.requires_grad_(False)
        for name, module in self.named_modules():
            if name and not name.startswith(self.projectors):
                module.training = False

    def train(self, mode: bool = True) -> "FrozenVision":
        super().train(mode)
        self.freeze()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base model's `get_image_features`."""
        return self.stock_class.get_image_features(self, *args, **kwargs)

    def _weights_of(self, name: str) -> list[nn.Parameter]:
        part: Any = self
        for step in name.split("."):
            part = getattr(part, step, None)
        return [] if part is None else [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def add_frozen_vision(base: Any, family: Family) -> None:
    """Gives a base model a frozen copy of its vision encoder, and the features of both; `ValueError` if it has one."""
    if hasattr(base, "frozen_vision"):
        raise ValueError(
            "got a vision-language model with a frozen copy of its encoder, expected one without: load the base model"
        )
    base.frozen_vision = FrozenVision(base, family)
    base.__class__ = class_with_both(type(base))


@lru_cache
def class_with_both(stock_class: type) -> type:
    """A model class whose image features are the mean of two encoders'."""

    stock: Any = stock_class.get_image_features  # pyright: ignore[reportAttributeAccessIssue]

    @wraps(stock)  # transformers reads its signature
    def get_image_features(self: Any, *args: Any, **kwargs: Any) -> Any:
        if transformers.__version__ < "5":  # where it returns features, not an output that has them
            return mean(stock(self, *args, **kwargs), self.frozen_vision(*args, **kwargs))
        kwargs["return_dict"] = True
        trained = stock(self, *args, **kwargs)
        frozen = self.frozen_vision(*args, **kwargs)
        for name in ("pooler_output", "deepstack_features"):
            if (features := getattr(trained, name, None)) is not None:  # not always a field of that output
                setattr(trained, name, mean(features, getattr(frozen, name)))
        return trained

    def __reduce__(self: Any) -> Any:  # pickle looks classes up by name, too, and would find the stock one
        return new_with_both, (stock_class,), self.__dict__

    # transformers looks classes up by name.
    names = {"__module__": stock_class.__module__, "__qualname__": stock_class.__qualname__}
    methods = {"get_image_features": get_image_features, "__reduce__": __reduce__}
    return type(stock_class.__name__, (stock_class,), {**methods, **names})


def new_with_both(stock_class: type) -> Any:
    """A model of `class_with_both` without its attributes."""
    made: Any = class_with_both(stock_class)
    return made.__new__(made)


def mean(first: Any, second: Any) -> Any:
    """Of two tensors, or of each pair in two (nested) lists of them."""
    if torch.is_tensor(first):
        return (first + second) / 2
    return type(first)(mean(*pair) for pair in zip(first, second, strict=True))
