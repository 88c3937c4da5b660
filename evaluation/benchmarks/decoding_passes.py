"""Forward passes that recorded robot actions take, counted without a model.

Passes depend on what is written, and random weights write strings that no robot would; recorded actions of the Bridge
sample are the test: 25 episodes of 10 steps, each step but an episode's first with the step before as a hint. How
trees are grown is in `modeling/draft_trees.py`.
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
from gen_vla.modeling.draft_distribution import DraftDistribution
from gen_vla.modeling.draft_trees import grow_tree
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


def replay_passes(episodes: list[np.ndarray], nodes: int, with_prior: bool = True) -> list[int]:
    """Passes for each step but an episode's first, if the model wrote exactly what was recorded.

    The prior knows the step before and the histogram of the other episodes, as it would in use.
    """
    strings = ActionStringProcessor(7, binary_dims=(6,))
    grammar = ActionGrammar(strings, {c: PIECES[c] for c in "0123456789+-."}, eos_token_id=2)
    passes = []
    for number, episode in enumerate(tqdm(episodes, unit="episode", desc=f"{nodes} nodes")):
        others = np.concatenate([np.zeros((0, 7)), *episodes[:number], *episodes[number + 1 :]])
        counts = histogram(others, NORMALIZED) if with_prior else None
        for before, action in itertools.pairwise(episode):
            prior = DraftDistribution(grammar, counts, before if with_prior else None)
            target = [PIECES[character] for character in strings.encode(action)]
            passes.append(passes_for(grammar, prior, target, nodes))
    return passes


def passes_for(grammar: ActionGrammar, prior: DraftDistribution, target: list[int], nodes: int) -> int:
    """Passes, the prompt's included, until `target` is written."""
    row, passes = Row(position=0, draft=prior), 0
    row.accept_forced(grammar)
    while not row.done:
        tree, node = grow_tree(grammar, prior, row.cursor, nodes), -1
        passes += 1
        while not row.done and node is not None:
            token = target[len(row.tokens)]
            row.accept(grammar, token)
            node = tree.child(node, token)
        row.accept_forced(grammar)
    return passes


def passes_on(episodes: list[np.ndarray]) -> list[dict[str, Any]]:
    """Passes with and without a prior, by tree nodes per pass."""
    found = []
    for nodes, prior in itertools.product((8, 24, 40, 64, 128), (True, False)):
        counts = replay_passes(episodes, nodes, prior)
        mean = round(float(np.mean(counts)), 2)
        found.append({"nodes": nodes, "prior": prior, "mean": mean, "max": max(counts), "n": len(counts)})
    return found


def passes_table(results: dict[str, Any]) -> Table:
    """Passes per 49-token action on the recorded Bridge steps."""
    rows = [
        (e["nodes"], "histogram and previous" if e["prior"] else "none", e["mean"], e["max"], e["n"])
        for e in results["passes_on_bridge"]
    ]
    title = "Forward passes per action, recorded Bridge steps (49 tokens, prompt included)"
    return results_table(title, ("nodes per pass", "prior", "mean", "max", "steps"), rows, left=0)
