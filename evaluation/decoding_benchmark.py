"""What an action costs: forward passes on real action strings, milliseconds on this machine, side by side.

Decides: what is compared and how it is summed up. Refuses to know: how decoding works (`modeling/tree_decoding.py`).

    gen-vla evaluate decoding --sizes mini,100m --output evaluation/results/decoding_cpu.json
    gen-vla evaluate decoding --sizes "" --bridge ../shared/data/octo_bridge_debug

Compared, in turns within one run, on random weights (speed does not depend on them; passes do, so they are counted on
recorded actions apart):

    generate        plain constrained decoding, one token per pass: `generate` with the LogitsProcessor
    tree            tree decoding, the same tokens
    bins, generate  the 7-token baseline of OpenVLA
    bins, tree      the same through our engine
"""

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.latency import describe_machine
from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.modeling.action_grammar import ActionGrammar
from gen_vla.modeling.action_prior import ActionPrior, grow_tree
from gen_vla.modeling.action_statistics import histogram, normalize_actions
from gen_vla.modeling.action_strings import ActionStringProcessor
from gen_vla.modeling.tree_decoding import Row


# OpenVLA's quantiles of Bridge, as its checkpoint holds them.
BRIDGE = {
    "q01": [-0.0287273, -0.0417035, -0.0260939, -0.0809211, -0.0928870, -0.2071828, 0.0],
    "q99": [0.0283097, 0.0408553, 0.0401616, 0.0819205, 0.0779285, 0.2038257, 1.0],
    "min": [-1.0] * 7,
    "max": [1.0] * 7,
    "mask": [True] * 6 + [False],
}
# A character is a token, as in the Llama-2 and Gemma vocabularies; which id it has does not matter here.
PIECES = {character: index + 3 for index, character in enumerate("0123456789+-.\n")}
SIZES: dict[str, dict[str, Any]] = {
    "mini": {"vision": (96, 4, 3), "image": (64, 16), "text": (128, 384, 3, 4)},
    "100m": {"vision": (384, 8, 6), "image": (224, 16), "text": (768, 2048, 11, 12)},
    "1b": {"vision": (768, 12, 12), "image": (224, 16), "text": (2048, 5504, 20, 16)},
    "7b": {"vision": (1024, 24, 16), "image": (224, 14), "text": (4096, 11008, 32, 32)},
}
VOCABULARY = 32064


def read_bridge(folder: Path) -> np.ndarray:
    """Normalised actions float [episodes, steps, 7] of the Bridge sample; grippers rounded to 0 or 1."""
    from gen_vla.training.tfrecord_reading import read_examples

    shard = next(iter(sorted(folder.glob("**/*-train.tfrecord-*"))), None)
    if shard is None:
        raise FileNotFoundError(f"got {folder}, expected a folder with bridge_dataset's train shard below it")
    actions = np.stack([np.asarray(e["steps/action"]).reshape(-1, 7) for e in read_examples(shard)])
    normalized = normalize_actions(actions, BRIDGE).astype(np.float64)
    normalized[..., 6] = normalized[..., 6].round()
    return normalized


def replay_passes(episodes: np.ndarray, nodes: int, with_prior: bool = True) -> list[int]:
    """Passes for each step but an episode's first, if the model wrote exactly what was recorded.

    The prior knows the step before and the histogram of the other episodes, as it would in use.
    """
    strings = ActionStringProcessor(7, binary_dims=(6,))
    grammar = ActionGrammar(strings, {c: PIECES[c] for c in "0123456789+-."}, eos_token_id=2)
    passes = []
    for number, episode in enumerate(tqdm(episodes, unit="episode", desc=f"{nodes} nodes")):
        others = np.delete(episodes, number, axis=0).reshape(-1, 7)
        counts = histogram(others, {**BRIDGE, "q01": [-1.0] * 7, "q99": [1.0] * 7}) if with_prior else None
        for before, action in itertools.pairwise(episode):
            prior = ActionPrior(grammar, counts, before if with_prior else None)
            target = [PIECES[character] for character in strings.encode(action)]
            passes.append(passes_for(grammar, prior, target, nodes))
    return passes


def passes_for(grammar: ActionGrammar, prior: ActionPrior, target: list[int], nodes: int) -> int:
    """Passes, the prompt's included, until `target` is written."""
    row, passes = Row(position=0, prior=prior), 0
    row.accept_forced(grammar)
    while not row.done:
        tree, node = grow_tree(grammar, prior, row.place, nodes), -1
        passes += 1
        while not row.done and node is not None:
            token = target[len(row.tokens)]
            row.accept(grammar, token, {token: 1.0})
            node = tree.children.get((node, token))
        row.accept_forced(grammar)
    return passes


def build_random(size: str, device: str, dtype: torch.dtype, representation: str = "string") -> Any:
    """A model of a size with random weights, an action format and statistics."""
    shape = SIZES[size]
    (width, blocks, heads), (image, patch), text = shape["vision"], shape["image"], shape["text"]
    vision = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    common: dict[str, Any] = {"decimals": 4, "binary_dims": [6], "action_dim": 7, "horizon": 1, "lead_in": "\n"}
    action: dict[str, Any] = {**common, "representation": "string", "style": "signed", "pieces": PIECES}
    if representation == "bins":
        action = {**common, "representation": "bins", "bins": 256, "bin_tokens_end": 32000}
    config = OpenVLAPlusConfig(
        dino_config={"model_type": "dinov2_with_registers", **vision, "image_size": image, "patch_size": patch},
        siglip_config={
            "model_type": "siglip_vision_model",
            **vision,
            "intermediate_size": 4 * width,
            "image_size": image,
            "patch_size": patch,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": text[0],
            "intermediate_size": text[1],
            "num_hidden_layers": text[2],
            "num_attention_heads": text[3],
        },
        action_config={**action, "lead_in_ids": [13], "eos_token_id": 2},
        norm_stats={"random": {"action": BRIDGE, "num_transitions": 1, "num_trajectories": 1}},
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = OpenVLAPlusForVision2Seq(config)
    finally:
        torch.set_default_dtype(default)
    return model.eval()


def random_inputs(model: Any, rows: int) -> dict[str, Any]:
    """A prompt of 20 words behind the image tokens, and a random picture."""
    config = model.config
    words = torch.full((rows, 20), 500)
    image = torch.full((rows, config.num_image_tokens), config.image_token_id)
    ids = torch.cat((torch.ones(rows, 1, dtype=torch.long), image, words, torch.full((rows, 1), 13)), dim=1)
    side = config.dino_config.image_size
    pixels = torch.randn(rows, 6, side, side, generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.device, model.dtype),
    }


def time_ways(model: Any, rows: int, nodes: list[int], repeats: int) -> list[dict[str, Any]]:
    """Each way of decoding in turns, so that whatever else the machine does falls on all alike."""
    inputs = random_inputs(model, rows)
    ways = {0: "generate", **{count: f"tree, {count} nodes" for count in nodes}}
    times: dict[int, list[float]] = {count: [] for count in ways}
    passes, texts = {}, {}
    for repeat in range(repeats + 1):
        for count in ways:
            seconds, prediction = timed(model, inputs, count)
            passes[count], texts[count] = prediction.forward_passes, prediction.text
            if repeat:  # the first round warms up
                times[count].append(1000 * seconds)
    base = statistics.median(times[0])
    return [
        {
            "way": ways[count],
            "rows": rows,
            "median_ms": round(statistics.median(times[count]), 2),
            "p95_ms": round(float(np.quantile(times[count], 0.95)), 2),
            "times_faster_than_generate": round(base / statistics.median(times[count]), 2),
            "forward_passes": passes[count],
            "same_actions": sum(a == b for a, b in zip(texts[count], texts[0], strict=True)) / rows,
        }
        for count in ways
    ]


def timed(model: Any, inputs: dict[str, Any], nodes: int) -> tuple[float, Any]:
    """Seconds for one call of `predict_actions`, the device idle before and after."""
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    prediction = model.predict_actions(**inputs, unnorm_key="random", tree_nodes=nodes)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began, prediction


def run_benchmark(
    sizes: list[str],
    rows: list[int],
    nodes: list[int],
    repeats: int,
    bridge: Path | None,
    device: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Everything asked for, as it is written to JSON."""
    results: dict[str, Any] = {"machine": describe_machine(), "device": device, "dtype": str(dtype), "timings": []}
    if bridge is not None:
        episodes = read_bridge(bridge)
        results["passes_on_bridge"] = [
            summary for count in (8, 24, 40, 64, 128) for summary in passes_of(episodes, count)
        ]
    for size in sizes:
        for representation in ("string", "bins"):
            model = build_random(size, device, dtype, representation)
            parameters = sum(p.numel() for p in model.parameters())
            for count in rows:
                for entry in time_ways(model, count, nodes, repeats):
                    labels = {"size": size, "parameters": parameters, "representation": representation}
                    results["timings"].append({**labels, **entry})
                    print(json.dumps(results["timings"][-1]), flush=True)
            del model
            if device == "cuda":
                results.setdefault("peak_memory_gb", {})[f"{size} {representation}"] = round(
                    torch.cuda.max_memory_allocated() / 1e9, 2
                )
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return results


def passes_of(episodes: np.ndarray, nodes: int) -> Iterator[dict[str, Any]]:
    """Passes with and without a prior."""
    for with_prior in (True, False):
        counts = replay_passes(episodes, nodes, with_prior)
        yield {
            "nodes": nodes,
            "prior": with_prior,
            "mean": round(float(np.mean(counts)), 2),
            "max": max(counts),
            "n": len(counts),
        }


def passes_table(results: dict[str, Any]) -> Table:
    """Passes per 49-token action on the recorded Bridge steps."""
    table = Table(title="Forward passes per action, recorded Bridge steps (49 tokens, prompt included)")
    for column in ("nodes per pass", "prior", "mean", "max", "steps"):
        table.add_column(column, justify="right")
    for entry in results["passes_on_bridge"]:
        prior = "histogram and previous" if entry["prior"] else "none"
        table.add_row(str(entry["nodes"]), prior, str(entry["mean"]), str(entry["max"]), str(entry["n"]))
    return table


def timings_table(results: dict[str, Any]) -> Table:
    """Milliseconds per call, side by side."""
    table = Table(title=f"Decoding one action, {results['machine']['device']}, {results['dtype']}")
    for column in ("size", "actions as", "batch", "way", "median ms", "p95", "times faster", "passes", "same"):
        table.add_column(column, justify="right")
    for entry in results["timings"]:
        table.add_row(
            f"{entry['size']} ({entry['parameters'] / 1e6:,.0f}M)",
            entry["representation"],
            str(entry["rows"]),
            entry["way"],
            f"{entry['median_ms']:.1f}",
            f"{entry['p95_ms']:.1f}",
            f"{entry['times_faster_than_generate']:.2f}",
            str(entry["forward_passes"]),
            f"{100 * entry['same_actions']:.0f} %",
        )
    return table
