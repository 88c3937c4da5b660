"""The decoding benchmark: passes counted by hand, the promised bounds on real actions, the tables."""

import numpy as np
import pytest
import torch
from rich.console import Console

from gen_vla.evaluation import decoding_benchmark as benchmark
from gen_vla.evaluation.decoding_benchmark import passes_for, passes_table, replay_passes, run_benchmark, timings_table
from gen_vla.modeling.action_grammar import ActionGrammar
from gen_vla.modeling.action_prior import ActionPrior
from gen_vla.modeling.action_strings import ActionStringProcessor


PIECES = {character: number for number, character in enumerate("0123456789+-.", start=3)}


@pytest.mark.parametrize(
    ("nodes", "passes"),
    [
        (1, 2),  # the prompt's pass walks + to 0, and "." is free; the next one says 5
        (4, 1),  # + 0 . and then any digit: the prompt's own pass reads it all
    ],
)
def test_passes_of_a_single_value(nodes, passes):
    """One value of one decimal, a prior that knows the sign: "+0.5" is sign, integer, point (forced), digit."""
    strings = ActionStringProcessor(1, 1, 1)
    grammar = ActionGrammar(strings, PIECES, eos_token_id=2)
    prior = ActionPrior(grammar, previous=np.array([[0.9]]))
    target = [PIECES[character] for character in "+0.5"]
    assert passes_for(grammar, prior, target, nodes) == passes


def test_promised_passes_on_real_actions(data_dir):
    """At 40 nodes 12 in the mean and 14 at worst, at 128 nodes 10 in the mean; on a part, to be quick."""
    episodes = benchmark.read_bridge(data_dir / "octo_bridge_debug")
    assert episodes.shape == (25, 10, 7)
    some = episodes[::3]
    forty = replay_passes(some, 40)
    assert len(forty) == 9 * len(some)
    assert np.mean(forty) <= 12
    assert max(forty) <= 14
    assert np.mean(replay_passes(some, 128)) <= 10
    assert np.mean(replay_passes(some, 40, with_prior=False)) > np.mean(forty)


def test_a_folder_without_bridge_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with bridge_dataset's train shard"):
        benchmark.read_bridge(tmp_path)


def test_every_way_gives_the_same_actions_and_is_timed(monkeypatch):
    tiny = {"vision": (16, 2, 2), "image": (32, 16), "text": (32, 64, 2, 2)}
    monkeypatch.setitem(benchmark.SIZES, "tiny", tiny)
    results = run_benchmark(["tiny"], [1, 2], [6], 1, None, "cpu", torch.float32)
    assert len(results["timings"]) == 2 * 2 * 2
    for entry in results["timings"]:
        assert entry["same_actions"] == 1.0
        assert entry["median_ms"] > 0
    plain = [e["forward_passes"] for e in results["timings"] if e["way"] == "generate"]
    assert plain == [49, 49, 7, 7]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(timings_table(results))
    summaries = [{"nodes": 40, "prior": True, "mean": 11.5, "max": 13, "n": 225}]
    console.print(passes_table({"passes_on_bridge": summaries}))
    text = console.export_text()
    for expected in ("tiny", "tree, 6 nodes", "49", "11.5", "225"):
        assert expected in text
