"""Runs small models on one CPU thread: sharing their small matrix products among threads is slower."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


# Weights of encoders and layers, embeddings not counted. On two cores a second thread made 5M of them slower, 12M no
# faster and 30M 11 % faster; with two busy neighbours it made all of them slower.
ONE_THREAD_BELOW = 20_000_000


def limit_cpu_threads(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a method of a model: one thread where the model is small and on a CPU, else as many as torch has."""

    @wraps(method)
    def call(model: Any, *args: Any, **kwargs: Any) -> Any:
        threads = torch.get_num_threads()
        if threads == 1 or model.device.type != "cpu" or weights_per_pass(model) >= ONE_THREAD_BELOW:
            return method(model, *args, **kwargs)
        torch.set_num_threads(1)
        try:
            return method(model, *args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return call


def weights_per_pass(model: Any) -> int:
    """Weights that a forward pass multiplies with; of the embeddings and the output layer it needs a few rows."""
    vocabulary = {layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
    return sum(weight.numel() for weight in model.parameters()) - sum(weight.numel() for weight in vocabulary)
