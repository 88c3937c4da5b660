"""How often fast decoding writes another action than one token at a time: a trained model on pictures of a data set.

In float32 the answer is never, as far as the tests go. In half precision a sum's rounding depends on the shape of the
batch, and two tokens that are nearly as probable can swap; not only in trees, so the same is asked of `generate`:

    tree      tree decoding against `generate`, the same batch
    static    the same with shapes that repeat, which pads prompts and trees
    batch     `generate` on several observations at once against `generate` on each alone

Where actions differ, the two are compared in the units the model writes, [-1, 1], and by how probable the two tokens
were where they first differed.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.policies.cameras import camera_names, pictures_per_action
from gen_vla.evaluation.policies.states import neutral_state
from gen_vla.evaluation.statistics.intervals import wilson_interval
from gen_vla.evaluation.tables import percent_range, results_table
from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.provenance.origin import describe_machine
from gen_vla.training.robot_data.source import open_robot_source


Observation = tuple[list[Image.Image], str]


def model_views(processor: Any, named: Sequence[str] | None) -> Sequence[str] | None:
    """Cameras of a data set to read: those named, else those the model knows by name; `None` is the primary one."""
    wanted, known = pictures_per_action(processor), camera_names(processor)
    if named and len(named) != wanted:
        raise ValueError(
            f"got {len(named)} cameras ({', '.join(named)}), expected {wanted}, as the model was trained with"
            + (f": one for each of {', '.join(known)}, in this order" if known else "")
        )
    return named or (known if wanted > 1 else None)


def read_observations(path: str | Path, count: int, cameras: Sequence[str] | None = None) -> list[Observation]:
    """Pictures of the cameras (by default the primary one) and instructions of at most `count` steps that lie evenly
    over a robot data set."""
    source = open_robot_source(path, key="agreement", cameras=cameras, transform=None)
    steps = source.count_rows()
    stride = max(1, (steps or count) // count)
    rows = islice(source.rows(source.shards()), 0, None, stride)
    return [
        ([decode_picture(image, row["identity"]) for image in row["images"]], row["instruction"])
        for row in islice(rows, count)
    ]


def measure_agreement(
    model: Any, processor: Any, observations: Sequence[Observation], rows: int, nodes: int | None = None
) -> dict[str, Any]:
    """Counts and intervals per comparison, on batches of `rows` observations; `nodes` are tree nodes per pass and row,
    by default the model's."""
    if rows < 1 or len(observations) < rows:
        raise ValueError(f"got {len(observations)} observations for batches of {rows}, expected at least one batch")
    key = next(iter(model.config.norm_stats))
    pairs: dict[str, list[tuple[Any, int, Any, int]]] = {"tree": [], "static": [], "batch": []}
    for first in tqdm(range(0, len(observations) - rows + 1, rows), unit="batch"):
        batch = observations[first : first + rows]
        plain = decode(model, processor, batch, key, tree_nodes=0)
        for name, cache in (("tree", "dynamic"), ("static", "static")):
            fast = decode(model, processor, batch, key, tree_nodes=nodes, cache_implementation=cache)
            pairs[name] += [(plain, row, fast, row) for row in range(rows)]
        for row, observation in enumerate(batch if rows > 1 else ()):
            pairs["batch"].append((plain, row, decode(model, processor, [observation], key, tree_nodes=0), 0))
    return {
        "suite": "agreement",
        "dtype": str(model.dtype),
        "parameters": model.num_parameters(),
        "rows": rows,
        "nodes": nodes or model.default_tree_nodes(rows),
        "comparisons": {name: compared(found) for name, found in pairs.items() if found},
        "machine": describe_machine(),
    }


def decode(model: Any, processor: Any, batch: Sequence[Observation], key: str, **options: Any) -> Any:
    pictures, instructions = zip(*batch, strict=True)
    state = neutral_state(processor, key, len(batch))
    inputs = processor.action_inputs(list(pictures), list(instructions), **state).to(model.device)
    return model.predict_actions(**inputs, unnorm_key=key, **options)


def compared(pairs: Sequence[tuple[Any, int, Any, int]]) -> dict[str, Any]:
    """How many pairs of (prediction, row, prediction, row) agree, and how far apart those are that do not."""
    same, gaps, distances = 0, [], []
    for one, i, other, j in pairs:
        if one.text[i] == other.text[j]:
            same += 1
            continue
        length = min(one.token_ids.shape[1], other.token_ids.shape[1])
        first = int(np.argmax(one.token_ids[i, :length] != other.token_ids[j, :length]))
        gaps.append(abs(float(one.digit_probabilities[i, first] - other.digit_probabilities[j, first])))
        distances.append(float(np.abs(one.normalized[i] - other.normalized[j]).max()))
    return {
        "same": same,
        "n": len(pairs),
        "interval": wilson_interval(same, len(pairs)),
        "largest_gap_of_probabilities": max(gaps, default=None),
        "median_difference": float(np.median(distances)) if distances else None,
        "largest_difference": max(distances, default=None),
    }


def agreement_table(results: dict[str, Any]) -> Table:
    columns = ("compared with generate", "same actions", "95 %", "gap at the first difference", "largest difference")
    rows = []
    for name, found in results["comparisons"].items():
        measures = (found["largest_gap_of_probabilities"], found["largest_difference"])
        shown = ("" if value is None else f"{value:.4f}" for value in measures)
        rows.append((name, f"{found['same']}/{found['n']}", f"{percent_range(found['interval'], 1)} %", *shown))
    return results_table(f"Agreement, {results['dtype']}, batches of {results['rows']}", columns, rows)
