"""The decoding benchmark: passes counted by hand, the promised bounds on real actions, the tables."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from printed_tables import printed

from gen_vla.evaluation.benchmarks import decoding_benchmark as benchmark
from gen_vla.evaluation.benchmarks import decoding_replay as replay
from gen_vla.evaluation.benchmarks import random_models, two_commits
from gen_vla.evaluation.benchmarks.decoding_benchmark import Way, run_benchmark
from gen_vla.evaluation.benchmarks.decoding_passes import passes_for, passes_table, read_bridge, replay_passes
from gen_vla.evaluation.benchmarks.decoding_results import draw_timings, timings_table
from gen_vla.modeling.action_grammar import ActionGrammar
from gen_vla.modeling.action_strings import ActionStringProcessor
from gen_vla.modeling.draft_trees import drafts_for


WAYS = {"string": [Way(0), Way(0, static=True), Way(6), Way(6, static=True)], "bins": [Way(0), Way(1)]}
PIECES = random_models.PIECES


@pytest.mark.parametrize(
    ("nodes", "passes"),
    [
        (1, 2),  # the prompt's pass walks + to 0, and "." is free; the next one says 5
        (4, 1),  # + 0 . and then any digit: the prompt's own pass reads it all
    ],
)
def test_passes_of_a_single_value(nodes, passes):
    """One value of one decimal, "+0.5": sign, integer, point (forced), digit."""
    strings = ActionStringProcessor(1, 1, 1)
    grammar = ActionGrammar(strings, {c: PIECES[c] for c in "0123456789+-."}, eos_token_id=2)
    target = [PIECES[character] for character in "+0.5"]
    assert passes_for(drafts_for(grammar, None, nodes), target) == passes


def test_promised_passes_on_real_actions(data_dir):
    """At 40 nodes 12 in the mean and 14 at worst, at 128 nodes 10 in the mean; on a part, to be quick."""
    episodes = read_bridge(data_dir / "octo_bridge_debug")
    assert [episode.shape for episode in episodes] == [(10, 7)] * 25
    some = episodes[::3]
    forty = replay_passes(some, 40)
    assert len(forty) == 9 * len(some)
    assert np.mean(forty) <= 12
    assert max(forty) <= 14
    assert np.mean(replay_passes(some, 128)) <= 10
    assert np.mean(replay_passes(some, 40, histograms=False)) > np.mean(forty)


def test_episodes_of_any_length_are_replayed():
    random = np.random.default_rng(0)
    episodes = [random.uniform(-1, 1, (steps, 7)).round(4) for steps in (2, 5, 1)]
    for episode in episodes:
        episode[:, 6] = 1.0
    assert len(replay_passes(episodes, 40)) == 1 + 4 + 0
    assert len(replay_passes(episodes[:1], 40)) == 1
    assert replay.actions_to_write(episodes, horizon=2, rows=3, repeat=1).shape == (3, 2, 7)


def test_a_folder_without_bridge_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with bridge_dataset's train shard"):
        read_bridge(tmp_path)


def test_every_way_is_timed(tiny_sizes, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "ways_of", lambda representation, nodes, device: WAYS[representation])
    results = run_benchmark(["tiny"], [1, 2], [6], 2, None, "cpu", torch.float32, [1, 2])
    assert len(results["timings"]) == (2 + 1) * (4 + 2)
    plain = [entry["forward_passes"] for entry in results["timings"] if entry["way"] == "generate"]
    assert plain == [49, 49, 7, 7, 2 * 49 + 1, 14]
    static = [entry["forward_passes"] for entry in results["timings"] if entry["way"] == "generate, static"]
    assert static == [49, 49, 2 * 49 + 1]
    for entry in results["timings"]:
        assert entry["p95_ms"] >= entry["median_ms"] > 0
        if entry["way"].startswith("tree, 6"):
            assert entry["forward_passes"] < 49 * entry["horizon"] / 2
            assert 0 < entry["share_outside_passes"] < 1
            assert entry["decode_pass_ms"] * (entry["forward_passes"] - 1) < entry["p95_ms"] * 1.5
    draw_timings([results, results], tmp_path / "timings.png")
    assert (tmp_path / "timings.png").stat().st_size > 5000
    summaries = [{"nodes": 40, "histograms": True, "mean": 11.5, "max": 13, "n": 225}]
    text = printed(timings_table(results), passes_table({"passes_on_bridge": summaries}), width=80)
    for expected in ("tiny, batch 2, horizon 1", "tree, 6 nodes, static", "bins, generate", "49.0", "11.5", "225"):
        assert expected in text
    assert "…" not in text


def test_replaying_writes_the_given_actions_and_takes_their_passes(tiny_sizes):
    model = random_models.build_random("tiny", "cpu", torch.float32, horizon=2)
    actions = replay.actions_to_write(replay.recorded_actions(None), 2, 3, repeat=1)
    targets = [replay.target_ids(model.action_grammar, action) for action in actions]
    inputs = random_models.random_inputs(model, 3)
    with replay.replaying(targets) as stopwatch:
        prediction = model.predict_actions(**inputs, unnorm_key="random", tree_nodes=9)
    np.testing.assert_allclose(prediction.normalized, actions, atol=5.1e-5)
    passes = stopwatch.milliseconds()
    assert len(passes) == prediction.forward_passes
    assert min(passes) > 0
    assert not np.allclose(model.predict_actions(**inputs, unnorm_key="random").normalized, actions, atol=0.1)


def test_bytes_of_a_pass_by_hand(tiny_sizes):
    model = random_models.build_random("tiny", "cpu", torch.float32)
    layer = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32  # attention, MLP, two norms
    assert benchmark.bytes_per_pass(model, rows=3, length=10) == 4 * (2 * layer + 3 * 10 * 2 * 2 * 32)


def test_two_commits_take_turns(data_dir, tmp_path):
    """The package of the last commit and the installed one write the same actions, each in a process of its own."""
    root = Path(benchmark.__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("needs a clone, whose earlier commits git can read")
    output = tmp_path / "two_commits.json"
    arguments = ["HEAD", str(data_dir / "octo_bridge_debug"), "--sizes", "mini", "--nodes", "8", "--repeats", "2"]
    command = [sys.executable, "-m", two_commits.__name__, *arguments, "--output", str(output)]
    subprocess.run(command, check=True, cwd=root, timeout=300)
    results = json.loads(output.read_text())
    assert [(entry["representation"], entry["nodes"]) for entry in results["timings"]] == [("string", 8), ("bins", 1)]
    for entry in results["timings"]:
        assert entry["earlier"]["forward_passes"] == entry["now"]["forward_passes"] >= 7
