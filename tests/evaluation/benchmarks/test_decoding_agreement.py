"""Agreement of ways of decoding: all in float32, and differences counted and measured where there are some."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from printed_tables import printed
from robot_data_sets import make_episodes, write_recording

from gen_vla.commands.main import main
from gen_vla.evaluation.benchmarks.decoding_agreement import (
    agreement_table,
    compared,
    measure_agreement,
    read_observations,
)
from gen_vla.evaluation.statistics.intervals import wilson_interval


@pytest.fixture
def recording(tmp_path):
    return write_recording(tmp_path / "recording", make_episodes(2, 8, size=16))


def test_observations_lie_evenly_over_the_data(recording):
    pictures = read_observations(recording, 4)
    everything = read_observations(recording, 1000)
    assert len(pictures) == 4
    assert len(everything) > 12
    stride = len(everything) // 4
    for ([picture], instruction), ([expected], text) in zip(pictures, everything[::stride], strict=False):
        assert (picture.tobytes(), instruction) == (expected.tobytes(), text)


def test_float32_agrees(tiny_openvla, recording):
    model, processor = tiny_openvla
    observations = [(picture, "two") for picture, _ in read_observations(recording, 6)]
    results = measure_agreement(model, processor, observations, rows=3)
    assert list(results["comparisons"]) == ["tree", "static", "batch"]
    for found in results["comparisons"].values():
        assert (found["same"], found["n"], found["largest_difference"]) == (6, 6, None)
    alone = measure_agreement(model, processor, observations, rows=1, nodes=5)
    assert list(alone["comparisons"]) == ["tree", "static"]
    assert alone["nodes"] == 5
    with pytest.raises(ValueError, match="got 6 observations for batches of 7"):
        measure_agreement(model, processor, observations, rows=7)


def test_differences_are_counted_and_measured():
    one = SimpleNamespace(
        text=["+0.1", "+0.2"],
        token_ids=np.array([[1, 2, 3], [1, 2, 4]]),
        digit_probabilities=np.array([[1.0, 0.9, 0.5], [1.0, 0.9, 0.51]]),
        normalized=np.array([[[0.1]], [[0.2]]]),
    )
    other = SimpleNamespace(
        text=["+0.2"],
        token_ids=np.array([[1, 2, 4]]),
        digit_probabilities=np.array([[1.0, 0.9, 0.51]]),
        normalized=np.array([[[0.2]]]),
    )
    found = compared([(one, 0, other, 0), (one, 1, other, 0)])
    assert (found["same"], found["n"]) == (1, 2)
    assert found["interval"] == wilson_interval(1, 2)
    assert found["largest_gap_of_probabilities"] == pytest.approx(0.01)
    assert found["largest_difference"] == found["median_difference"] == pytest.approx(0.1)
    text = printed(agreement_table({"dtype": "torch.bfloat16", "rows": 1, "comparisons": {"tree": found}}))
    assert all(shown in text for shown in ("1/2", "0.0100", "0.1000"))


def test_the_command(tiny_openvla, recording, tmp_path, monkeypatch, capsys):
    def load(name, dtype):
        model, processor = tiny_openvla
        return model.to(getattr(torch, dtype)), processor

    monkeypatch.setattr("gen_vla.commands.evaluate.benchmarks.load_any", load)
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ["evaluate", "agreement", "tiny", str(recording), "--pictures", "3", "--dtype", "bfloat16", "--output"]
    # The instructions of the recording have letters that the tiny tokenizer spells byte by byte.
    assert main([*arguments, str(tmp_path / "agreement.json")]) == 0
    results = json.loads((tmp_path / "agreement.json").read_text())
    assert results["dtype"] == "torch.bfloat16"
    assert results["comparisons"]["tree"]["n"] == 3
    assert "batches of 1" in capsys.readouterr().out
