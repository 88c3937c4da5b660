"""The mixture: every batch half robot data, half vision-language data (the paper's C).

Decides: how rows of both kinds become prompt/completion rows, and the order in which a run sees them. Refuses to know:
tokens, pixels, losses.

    row     images [PIL], prompt "In: What action should the robot take to close the drawer?\\nOut:\\n",
            completion "+0.0312-0.1200...", source "robot"

Order of indices: robot, vision-language, robot, vision-language, ... so that every stretch of even length that starts
at an even place is exactly half and half: every per-device batch of every process. The vision-language places go to
its sets in turn. One sampler covers the whole run, each set reshuffled whenever it is used up, so that a resumed run
only has to skip what it saw.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, List, concatenate_datasets, load_from_disk
from torch.utils.data import Sampler

from gen_vla.processors import compute_statistics, count_clipped, normalize_actions
from gen_vla.training.recipe import Recipe


ROBOT, VISION_LANGUAGE = "robot", "vision_language"
ROBOT_COLUMNS = ("image", "instruction", "action", "episode_index")
VISION_LANGUAGE_COLUMNS = ("image", "question", "answer")


def load_columns(path: Path, columns: tuple[str, ...], remedy: str) -> Dataset:
    """A data set from disk; raises `FileNotFoundError` or `ValueError` that says what is missing and what to do."""
    if not (path / "dataset_info.json").is_file():
        raise FileNotFoundError(f"got no data set at {path}, expected a folder written by save_to_disk; {remedy}")
    dataset = load_from_disk(str(path))
    assert isinstance(dataset, Dataset)
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(f"{path}: got columns {dataset.column_names}, expected also {', '.join(missing)}")
    return dataset


def robot_statistics(dataset: Dataset, key: str) -> dict[str, Any]:
    """`norm_stats` of one robot data set."""
    actions = np.asarray(dataset.with_format("numpy")["action"][:], dtype=np.float64)
    episodes = len(set(dataset["episode_index"]))
    try:
        return {key: compute_statistics(actions, num_trajectories=episodes)}
    except ValueError as error:
        raise ValueError(f"robot data set {key!r}: {error}") from error


def robot_rows(
    dataset: Dataset, processor: Any, statistics: dict[str, Any], label_decimals: int | None
) -> tuple[Dataset, dict[str, Any]]:
    """Robot data as prompt/completion rows, and what clipping did to it.

    Args:
        dataset: columns image, instruction, action float [D] in units, episode_index.
        processor: knows the prompt and the action format.
        statistics: the `"action"` entry of the data set.
        label_decimals: decimals kept in the labels; `None` for all.

    Returns:
        The rows, and `{"values": rows, "clipped": [D]}`.
    """
    strings = processor.action_strings
    actions = np.asarray(dataset.with_format("numpy")["action"][:], dtype=np.float64)
    if actions.shape[1] != strings.action_dim or strings.horizon != 1:
        raise ValueError(
            f"got actions of {actions.shape[1]} dimensions, expected actions.action_dim={strings.action_dim} with "
            f"horizon 1 (here {strings.horizon}); correct the recipe or the data set"
        )
    normalized = normalize_actions(actions, statistics).astype(np.float64)
    if label_decimals is not None:
        normalized = np.round(normalized, label_decimals)
    prompts = {text: processor.action_prompt(text) for text in set(dataset["instruction"])}
    # Where the lead-in is no part of the prompt (legacy), the model has to write it.
    lead_in = "" if processor.action_config["lead_in_ids"] else strings.lead_in
    columns = {
        "prompt": [prompts[text] for text in dataset["instruction"]],
        "completion": [lead_in + strings.encode(action) for action in normalized],
    }
    report = {"values": len(actions), "clipped": count_clipped(actions, statistics).tolist()}
    return _rows(dataset, columns, ROBOT), report


def vision_language_rows(dataset: Dataset, processor: Any, name: str) -> Dataset:
    """Question and answer pairs as prompt/completion rows; `source` is `vision_language/NAME`."""
    columns = {
        "prompt": [processor.question_prompt(text) for text in dataset["question"]],
        "completion": [processor.answer_text(text) for text in dataset["answer"]],
    }
    return _rows(dataset, columns, f"{VISION_LANGUAGE}/{name}")


def _rows(dataset: Dataset, columns: dict[str, list[str]], source: str) -> Dataset:
    images = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
    rows = Dataset.from_dict({**columns, "source": [source] * len(dataset)})
    pictures = [[] if image is None else [image] for image in images["image"]]  # without one, a row is text only
    rows = rows.add_column("images", pictures)  # type: ignore[call-arg]
    return rows.cast_column("images", List(Image()))


class HalfAndHalfSampler(Sampler[int]):
    """Indices into the concatenation of all sets, for a whole run.

    Args:
        robot: sizes of the robot sets, which come first in the concatenation.
        vision_language: sizes of the vision-language sets. One of the two kinds may be empty; then there is no mixing.
        length: rows of the run, over all processes.
        seed: of every shuffle.
    """

    def __init__(self, robot: list[int], vision_language: list[int], length: int, seed: int):
        sizes = [*robot, *vision_language]
        if not sizes or min(sizes) < 1:
            raise ValueError(f"got data sets of {sizes} rows, expected at least one row in each and at least one set")
        offsets = np.concatenate(([0], np.cumsum(sizes)[:-1])).tolist()
        self.spans = list(zip(offsets, sizes, strict=True))
        self.robot_sets = list(range(len(robot)))
        self.vision_language_sets = list(range(len(robot), len(sizes)))
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        streams = [self._stream(number) for number in range(len(self.spans))]
        halves = [half for half in (self.robot_sets, self.vision_language_sets) if half]
        for place in range(self.length):
            turn, half = divmod(place, len(halves))
            sets = halves[half]
            yield next(streams[sets[turn % len(sets)]])

    def _stream(self, number: int) -> Iterator[int]:
        """One set without end, in a new order each time round."""
        offset, size = self.spans[number]
        shuffle = np.random.default_rng([self.seed, number])
        while True:
            yield from (int(offset + row) for row in shuffle.permutation(size))


def build_mixture(recipe: Recipe, work_dir: Path, processor: Any, norm_stats: dict[str, Any]) -> tuple[Dataset, Any]:
    """The rows of a recipe in one data set, and a report of sizes and clipping.

    Returns:
        The concatenation (robot sets first) and `{"robot": [sizes], "vision_language": [sizes], "clipping": {...}}`.
    """
    report: dict[str, Any] = {"robot": [], "vision_language": [], "clipping": {}}
    parts = []
    for source in recipe.data.robot:
        dataset = load_columns(work_dir / source.path, ROBOT_COLUMNS, "record or convert it first")
        statistics = norm_stats[source.key]["action"]
        rows, report["clipping"][source.key] = robot_rows(
            dataset, processor, statistics, recipe.actions.label_decimals
        )
        report["robot"].append(len(rows))
        parts.append(rows)
    for source in recipe.data.vision_language:
        dataset = load_columns(work_dir / source.path, VISION_LANGUAGE_COLUMNS, "record or convert it first")
        parts.append(vision_language_rows(dataset, processor, source.name))
        report["vision_language"].append(len(parts[-1]))
    return concatenate_datasets(parts), report
