"""A saved model for the tests of the commands."""

import pytest


@pytest.fixture
def saved_model(tmp_path, tiny_openvla):
    model, processor = tiny_openvla
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
