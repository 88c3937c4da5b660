"""Fixtures of the tests of recorded passes."""

import pytest

from gen_vla.modeling import recorded_passes


@pytest.fixture
def record_with(monkeypatch):
    """Records passes with a stand-in for `CapturedPass`, without a GPU."""
    monkeypatch.setattr(recorded_passes, "records_graphs", lambda device: True)
    return lambda stand_in: monkeypatch.setattr(recorded_passes, "CapturedPass", stand_in)
