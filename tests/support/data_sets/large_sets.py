"""Writes data sets whose rows are as large as real ones, to measure loading with:

    PYTHONPATH=tests/support:tests/support/data_sets python tests/support/data_sets/large_sets.py FOLDER
    python -m gen_vla.training.planning.loading FOLDER/large.yaml --work-dir FOLDER --loaders 8

A LeRobot set of two cameras, 640 x 480 pixels at 50 Hz, ten seconds an episode (videos are links to a few), and
questions about pictures of that size.
"""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import robot_data_sets
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from robot_data_sets import Episode, encode, write_lerobot


HERTZ, STEPS, EPISODES, DIFFERENT = 50, 500, 128, 1
SIZE = (640, 480)


def frames(seed: int, count: int) -> np.ndarray:
    """A view that wanders over a smooth landscape with grain: uint8 [count, 480, 640, 3]."""
    draw = np.random.default_rng(seed)
    coarse = Picture.fromarray(draw.integers(0, 256, (80, 100, 3), dtype=np.uint8))
    wide = np.asarray(coarse.resize((1000, 800), Picture.Resampling.BICUBIC)).astype(np.int16)
    wide = (wide + draw.integers(-6, 7, wide.shape)).clip(0, 255).astype(np.uint8)
    places = (150 * (1 + np.sin(np.arange(count) / 60 + seed))).astype(int)
    return np.stack([wide[place : place + SIZE[1], place : place + SIZE[0]] for place in places])


def write_robot(folder: Path) -> None:
    draw = np.random.default_rng(0)
    shown = [{camera: frames(2 * n + p, STEPS) for p, camera in enumerate(("top", "wrist"))} for n in range(DIFFERENT)]
    written: dict[int, Path] = {}
    plain = partial(robot_data_sets.write_video, fps=HERTZ)

    def write_or_link(path: Path, pictures: Any, codec: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if id(pictures) in written:
            os.link(written[id(pictures)], path)
            return
        plain(path, pictures, codec)
        written[id(pictures)] = path

    def stats(episode: Episode) -> dict[str, Any]:  # of one frame, which takes megabytes instead of gigabytes
        return whole(replace(episode, pictures={name: shown[:1] for name, shown in episode.pictures.items()}))

    whole, robot_data_sets._stats = robot_data_sets._stats, stats
    robot_data_sets.write_video, robot_data_sets.FPS = write_or_link, HERTZ  # type: ignore[assignment]
    episodes = []
    for number in range(EPISODES):
        actions = draw.normal(0, 0.1, (STEPS, 7)).astype(np.float32)
        actions[:, 6] = draw.integers(0, 2, STEPS)
        episodes.append(Episode(f"put block {number % 20} away", actions, actions, shown[number % DIFFERENT]))
    write_lerobot(folder, episodes, "v2.1")


def write_questions(folder: Path, rows: int = 4000) -> None:
    """Answers as long as conversations are: most of a few words, some of hundreds."""
    draw = np.random.default_rng(1)
    pictures = [encode(frame, "JPEG") for frame in frames(9, 64)]
    lengths = np.exp(draw.normal(3.5, 1.2, rows)).astype(int) + 1
    data = {
        "image": [{"bytes": pictures[row % len(pictures)], "path": None} for row in range(rows)],
        "question": ["what is in this picture?"] * rows,
        "answer": [" ".join(["word"] * min(length, 1500)) for length in lengths],
    }
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_dict(data, features=features).save_to_disk(str(folder))


def main(target: str) -> None:
    folder = Path(target)
    write_robot(folder / "robot")
    write_questions(folder / "questions")
    recipe = {
        "extends": "openvla_plus_bridge",
        "name": "large",
        "description": "Two cameras at 50 Hz.",
        "data": {
            "robot": [{"path": "robot", "key": "large", "cameras": ["top", "wrist"]}],
            "vision_language": [{"path": "questions", "name": "questions"}],
            "image_augmentation": {},
        },
    }
    (folder / "large.yaml").write_text(yaml.safe_dump(recipe))


if __name__ == "__main__":
    main(*sys.argv[1:])
