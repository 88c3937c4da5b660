"""Sizes of random models that a CPU computes in milliseconds."""

import pytest

from gen_vla.evaluation.benchmarks import random_models


@pytest.fixture
def tiny_sizes(monkeypatch):
    """`tiny` and `pi0-tiny`, sizes for `build_random`."""
    for size in ("tiny", "pi0-tiny"):
        shape = {"vision": (16, 2, 2), "image": (32, 16), "text": (32, 64, 2, 2)}
        monkeypatch.setitem(random_models.SIZES, size, shape)
    monkeypatch.setitem(random_models.VOCABULARY, "paligemma", 257153)
