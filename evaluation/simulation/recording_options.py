"""The command line that all recorders of simulated data share.

Decides: its options and what is printed. Refuses to know: environments, what is recorded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


NOT_PRINTED = ("layouts", "provenance")  # of the metadata: hundreds of digests, and what is known on the spot


def recording_parser(description: str, *, episodes: int, image_size: int) -> argparse.ArgumentParser:
    """Options of a recorder; `episodes` per task and `image_size` in pixels are its defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("content", choices=("demonstrations", "questions"))
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--episodes-per-task", type=int, default=episodes, help="demonstrations: successes to keep")
    parser.add_argument("--count", type=int, default=4000, help="questions: how many")
    parser.add_argument("--seed", type=int, default=0, help="first seed; questions from 1000000 on are held out")
    parser.add_argument("--workers", type=int, default=2, help="processes (the data do not depend on it)")
    parser.add_argument("--image-size", type=int, default=image_size, help="pixels a side")
    parser.add_argument("--clean", action="store_true", help="demonstrations: do not disturb the expert")
    parser.add_argument("--paraphrase", action="store_true", help="demonstrations: several wordings per task")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished data set")
    return parser


def record_and_print(
    chosen: argparse.Namespace,
    record_demonstrations: Callable[..., dict[str, Any]],
    record_questions: Callable[..., dict[str, Any]],
    **looks: Any,
) -> int:
    """Records one data set and prints its metadata -> the exit code.

    Args:
        chosen: what `recording_parser` read.
        looks: more options for `record_demonstrations`.
    """
    shared = {name: getattr(chosen, name) for name in ("seed", "workers", "image_size", "overwrite")}
    if chosen.content == "questions":
        metadata = record_questions(chosen.output_dir, chosen.count, **shared)
    else:
        options = {"noise": not chosen.clean, "paraphrase": chosen.paraphrase, **looks, **shared}
        metadata = record_demonstrations(chosen.output_dir, chosen.episodes_per_task, **options)
    print(json.dumps({key: value for key, value in metadata.items() if key not in NOT_PRINTED}, indent=2))
    return 0
