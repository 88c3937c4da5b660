"""Forward passes that recorded robot actions take, counted without a model.

Random weights write strings that no robot would; recorded actions of the Bridge sample are the test: 25 episodes of 10
steps, each step but an episode's first.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.benchmarks.random_models import BRIDGE, NORMALIZED, PIECES
from gen_vla.evaluation.tables import results_table
from gen_vla.modeling.action_grammar import ActionGrammar
from gen_vla.modeling.action_statistics import histogram, normalize_actions
from gen_vla.modeling.action_strings import ActionStringProcessor
from gen_vla.modeling.draft_trees import Drafts, drafts_for
from gen_vla.modeling.tree_decoding import Row


def read_bridge(folder: Path) -> list[np.ndarray]:
    """Normalised actions float [steps, 7] of each episode in the first train shard of Bridge, or of its sample;
    grippers rounded to 0 or 1."""
    from gen_vla.training.storage.tfrecord_reading import read_examples

    shard = next(iter(sorted(folder.glob("**/*-train.tfrecord-*"))), None)
    if shard is None:
        raise FileNotFoundError(f"got {folder}, expected a folder with bridge_dataset's train shard below it")
    episodes = []
    for example in read_examples(shard):
        actions = np.asarray(example["steps/action"]).reshape(-1, 7)
        normalized = normalize_actions(actions, BRIDGE).astype(np.float64)
        normalized[:, 6] = normalized[:, 6].round()
        episodes.append(normalized)
    return episodes


def replay_passes(episodes: list[np.ndarray], nodes: int, histograms: bool = True) -> list[int]:
    """Passes for each step but an episode's first, if the model wrote exactly what was recorded; draft trees know the
    histogram of the other episodes, as they would in use."""
    strings = ActionStringProcessor(7, binary_dims=(6,))
    grammar = ActionGrammar(strings, {c: PIECES[c] for c in "0123456789+-."}, eos_token_id=2)
    passes = []
    for number, episode in enumerate(tqdm(episodes, unit="episode", desc=f"{nodes} nodes")):
        others = np.concatenate([np.zeros((0, 7)), *episodes[:number], *episodes[number + 1 :]])
        drafts = drafts_for(grammar, histogram(others, NORMALIZED) if histograms else None, nodes)
        for action in episode[1:]:
            passes.append(passes_for(drafts, [PIECES[character] for character in strings.encode(action)]))
    return passes


def passes_for(drafts: Drafts, target: list[int]) -> int:
    """Passes, the prompt's included, until `target` is written."""
    row, passes = Row(last=0, position=0, drafts=drafts), 0
    while not row.done:
        tree, node, taken = drafts.tree(row.state), 0, 0
        children = {pair: slot for slot, pair in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist())) if slot}
        while node is not None and len(row.tokens) + taken < len(target):
            node = children.get((node, target[len(row.tokens) + taken]))
            taken += 1
        row.accept(target[len(row.tokens) :][:taken], [1.0] * taken)
        passes += 1
    return passes


def passes_on(episodes: list[np.ndarray]) -> list[dict[str, Any]]:
    found = []
    for nodes, histograms in itertools.product((8, 24, 40, 64, 128), (True, False)):
        counts = replay_passes(episodes, nodes, histograms)
        mean = round(float(np.mean(counts)), 2)
        found.append({"nodes": nodes, "histograms": histograms, "mean": mean, "max": max(counts), "n": len(counts)})
    return found


def passes_table(results: dict[str, Any]) -> Table:
    rows = [
        (e["nodes"], "histograms" if e["histograms"] else "uniform", e["mean"], e["max"], e["n"])
        for e in results["passes_on_bridge"]
    ]
    title = "Forward passes per action, recorded Bridge steps (49 tokens, prompt included)"
    return results_table(title, ("nodes per pass", "drafts", "mean", "max", "steps"), rows, left=0)
