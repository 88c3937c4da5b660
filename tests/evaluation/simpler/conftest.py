"""SimplerEnv's stand-in with all its trials' assets, and a model that knows the units of Bridge."""

import pytest
import simpler_simulator
from tiny_models import tiny_model, tiny_processor, tiny_statistics

from gen_vla.evaluation.simpler.trials import trials_of
from gen_vla.processors import ActionStringProcessor


@pytest.fixture
def assets(monkeypatch, tmp_path):
    google = [trial for mode in ("matching", "variants") for trial in trials_of("google_robot", mode)]
    return simpler_simulator.install(monkeypatch, tmp_path / "assets", trials_of("widowx", "matching") + google)


@pytest.fixture
def bridge_model(llama_like):
    strings = ActionStringProcessor(action_dim=7, decimals=1)
    model = tiny_model(llama_like, strings)
    model.config.norm_stats["bridge_orig"] = tiny_statistics(7)
    return model, tiny_processor(llama_like, strings)
