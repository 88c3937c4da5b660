"""Writes data sets whose rows are as large as real ones, to measure loading with:

    python tests/support/data_sets/large_sets.py FOLDER
    gen-vla train FOLDER/large.yaml --work-dir FOLDER --rehearse 3 --set data.num_workers=8

A LeRobot set of two cameras, 640 x 480 pixels at 50 Hz, ten seconds an episode (videos are links to a few), and
questions about pictures of that size. Two further recipes are for

    python -m gen_vla.training.planning.reading FOLDER/published.yaml --work-dir FOLDER
    python -m gen_vla.training.planning.reading FOLDER/small_files.yaml --work-dir FOLDER

`published.yaml`: three vision-language sets in their published layouts, rows and pictures as large as theirs.
`small_files.yaml`: a LeRobot v2.1 set of 53,000 episodes like Bridge, each in a file of its own.
"""

import io
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import robot_data_sets
import yaml
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from published_sets import ONEVISION, conversation, tar, write_llava, write_parquet, write_robopoint
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


def write_published(folder: Path, rows: int = 3000) -> None:
    """LLaVA (a zip of small pictures), LLaVA-OneVision (parquet, one picture in four PNG), RoboPoint (two tar.gz)."""
    shown = frames(11, 48)
    photos = []
    for frame in shown:  # 110 kB, as photographs of this size have
        buffer = io.BytesIO()
        Picture.fromarray(frame).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    small = [encode(np.asarray(Picture.fromarray(frame).resize((336, 252))), "JPEG") for frame in shown]
    charts = [encode(frame, "PNG") for frame in shown[:12]]
    asked = conversation("<image>\nWhat is in this picture?", "A table with several objects on it. " * 12)
    write_llava(
        folder / "llava",
        [{"id": str(n), "image": f"{n}.jpg", "conversations": asked} for n in range(rows)],
        {f"{n}.jpg": small[n % 48] for n in range(rows)},
        zipped=True,
    )
    # A number behind a picture's end makes each another one: parquet stores equal ones once.
    made = [(charts[n % 12] if n % 4 == 0 else photos[n % 48]) + b"%08d" % n for n in range(rows)]
    written = [
        {"id": str(n), "image": {"bytes": data, "path": None}, "conversations": asked, "data_source": "x"}
        for n, data in enumerate(made)
    ]
    write_parquet(folder / "onevision" / "all" / "train-00000-of-00001.parquet", written, ONEVISION, 1000)
    names = [f"{('coco', 'lvis')[n % 2]}/{n}.jpg" for n in range(rows)]
    points = conversation("<image>\nWhere is the can?", "[(0.461, 0.527), (0.498, 0.521)]")
    held: dict[str, dict[str, bytes]] = {"coco": {}, "lvis": {}}
    for n, name in enumerate(names):
        held[name[:4]][name] = photos[n % 48]
    pointing = [{"id": name, "image": name, "conversations": points} for name in names]
    write_robopoint(folder / "robopoint", pointing, {stem: tar(pictures) for stem, pictures in held.items()}, {})


def write_small_files(folder: Path, episodes: int = 53_000, steps: int = 36) -> None:
    """Bridge's size: an episode's steps in a parquet file and a video (a link to one of a few) of their own."""
    few = robot_data_sets.make_episodes(2, steps)
    write_lerobot(folder, few, "v2.1")
    info = json.loads((folder / "meta/info.json").read_text())
    info |= {"total_episodes": episodes, "total_frames": episodes * steps, "splits": {"train": f"0:{episodes}"}}
    (folder / "meta/info.json").write_text(json.dumps(info))
    data, video = (str(info[name]) for name in ("data_path", "video_path"))
    table = pq.read_table(folder / data.format(episode_chunk=0, episode_index=0))
    column = table.schema.get_field_index("episode_index")
    mark, buffer = 0x7A7B7C7D7E7F, io.BytesIO()  # stands for the number of an episode, wherever the file has it
    pq.write_table(
        table.set_column(column, "episode_index", pa.array([mark] * steps, pa.int64())), buffer, compression="NONE"
    )
    marked = buffer.getvalue()
    (camera,) = (name for name, feature in info["features"].items() if feature["dtype"] == "video")
    first = folder / video.format(video_key=camera, episode_chunk=0, episode_index=0)
    entries = []
    for number in range(episodes):
        place = {"episode_chunk": number // info["chunks_size"], "episode_index": number}
        file, shown = folder / data.format(**place), folder / video.format(video_key=camera, **place)
        file.parent.mkdir(parents=True, exist_ok=True)
        shown.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(marked.replace(mark.to_bytes(8, "little"), number.to_bytes(8, "little")))
        if shown != first:
            shown.unlink(missing_ok=True)
            os.link(first, shown)
        entries.append(json.dumps({"episode_index": number, "tasks": [few[0].instruction], "length": steps}))
    (folder / "meta/episodes.jsonl").write_text("\n".join(entries) + "\n")


def write_recipe(folder: Path, name: str, **data: Any) -> None:
    recipe = {"extends": "openvla_plus_bridge", "name": name, "description": "To measure reading.", "data": data}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def main(target: str) -> None:
    folder = Path(target)
    write_published(folder)
    names = ("llava", "onevision", "robopoint")
    write_recipe(folder, "published", vision_language=[{"path": name, "name": name} for name in names], robot=[])
    write_small_files(folder / "small_files")
    write_recipe(folder, "small_files", robot=[{"path": "small_files", "key": "small_files"}], vision_language=[])
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
