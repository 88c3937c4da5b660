"""Where the time of an action goes: parts that add up, hooks that see every pass and go away, the command."""

import json

import pytest
from torch import nn

from gen_vla.commands.main import main
from gen_vla.evaluation.benchmarks.latency import PARTS, hooked, measure_latency, measure_parts


def test_parts_add_up_and_every_pass_is_timed(tiny_openvla):
    model, processor = tiny_openvla
    found = measure_parts(model, processor, repeats=3)
    assert tuple(found["parts_ms"]) == PARTS
    assert all(value > 0 for value in found["parts_ms"].values())
    assert sum(found["parts_ms"].values()) == pytest.approx(found["total_ms"], abs=0.01)
    assert found["passes_timed"] == found["passes"] >= 2
    assert found["n"] == 3


def test_hooks_time_each_call_and_are_removed(tiny_openvla):
    model, _ = tiny_openvla
    layer = nn.Linear(2, 2)
    weight = layer.weight[0]
    with hooked(model, {"layer": layer}) as spans:
        layer(weight)
        layer(weight)
    layer(weight)
    assert len(spans["layer"]) == 2
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_the_command_prints_and_writes(tiny_openvla, tmp_path, capsys):
    model, processor = tiny_openvla
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    output = tmp_path / "latency.json"
    arguments = ["evaluate", "latency", str(tmp_path / "model"), "--output", str(output)]
    assert main([*arguments, "--repeats", "2", "--busy", "1"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("prefill", "forward passes", "beside 1 busy processes, worst"))
    results = json.loads(output.read_text())
    assert (results["suite"], results["n"]) == ("latency", 2)
    assert results["busy"]["neighbours"] == 1
    assert 0 < results["busy"]["median_ms"] <= results["busy"]["worst_ms"]
    assert results["forward_passes"] == measure_latency(model, processor, 1)["forward_passes"]
    assert main([*arguments, "--repeats", "0"]) == 2
    assert "got 0 repeats" in capsys.readouterr().err
