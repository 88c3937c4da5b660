"""Fixtures of the tests of recorded passes."""

import pytest

from gen_vla.modeling import static_passes, static_plan


@pytest.fixture
def record_with(monkeypatch):
    """Records passes with a stand-in for `CapturedPass`, without a GPU."""
    monkeypatch.setattr(static_passes, "records_graphs", lambda device: True)
    return lambda stand_in: monkeypatch.setattr(static_plan, "CapturedPass", stand_in)
