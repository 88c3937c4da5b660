"""Writes data sets whose rows are as large as real ones, to measure loading with:

    python tests/support/data_sets/large_sets.py FOLDER
    gen-vla train FOLDER/two_cameras.yaml --work-dir FOLDER --rehearse 7 --set data.num_workers=8
    gen-vla pack FOLDER/published.yaml --work-dir FOLDER --output FOLDER/packed
    gen-vla train openvla_plus_bridge --work-dir FOLDER --rehearse 3
    python -m gen_vla.training.planning.reading FOLDER/published.yaml --work-dir FOLDER
    python -m gen_vla.training.planning.reading FOLDER/small_files.yaml --work-dir FOLDER

`two_cameras.yaml`: a LeRobot set of two cameras, 640 x 480 pixels at 30 Hz, AV1, ten seconds an episode (videos are
links to a few), and questions about pictures of that size. `bridge_orig`: RLDS of four cameras, 256 pixels a side.
`published.yaml`: the vision-language sets of the paper in their published layouts, rows and pictures as large as
theirs, answers from a few words to hundreds.
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
from published_sets import ONEVISION, VQASYNTH, conversation, tar, write_llava, write_parquet, write_robopoint
from rlds_data_sets import write_rlds
from robot_data_sets import Episode, encode, write_lerobot


HERTZ, STEPS, EPISODES, DIFFERENT = 30, 300, 128, 4
SIZE = (640, 480)
BRIDGE_EPISODES, BRIDGE_STEPS, BRIDGE_SHARDS = 512, 36, 64


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
    write_lerobot(folder, moving(draw, EPISODES, STEPS, shown), "v2.1", codec="libsvtav1")


def moving(draw: np.random.Generator, count: int, steps: int, shown: list[dict[str, np.ndarray]]) -> list[Episode]:
    """Episodes of random moves and a gripper that show what there is in turn."""
    episodes = []
    for number in range(count):
        actions = draw.normal(0, 0.1, (steps, 7)).astype(np.float32)
        actions[:, 6] = draw.integers(0, 2, steps)
        episodes.append(Episode(f"put block {number % 20} away", actions, actions, shown[number % len(shown)]))
    return episodes


def write_bridge(folder: Path) -> None:
    """Bridge's shards, of some episodes each."""
    shown = []
    for number in range(8):
        wide = frames(20 + number, BRIDGE_STEPS)
        shown.append({f"image_{n}": wide[:, 50 * n :][:, :256, 100 * n :][:, :, :256] for n in range(4)})
    write_rlds(folder, moving(np.random.default_rng(2), BRIDGE_EPISODES, BRIDGE_STEPS, shown), shards=BRIDGE_SHARDS)


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


def words(draw: np.random.Generator, median: float, spread: float) -> str:
    """A sentence whose number of words is log-normal, 1,000 at most."""
    return " ".join(["word"] * min(int(draw.lognormal(np.log(median), spread)) + 1, 1000))


def write_published(folder: Path, rows: int = 3000) -> None:
    """LLaVA (a zip of small pictures), LLaVA-OneVision (parquet, one picture in four PNG), RoboPoint (two tar.gz, one
    in parts) and VQASynth (parquet, several questions a row)."""
    shown, draw = frames(11, 48), np.random.default_rng(3)
    photos = []
    for frame in shown:  # 110 kB, as photographs of this size have
        buffer = io.BytesIO()
        Picture.fromarray(frame).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    small = [encode(np.asarray(Picture.fromarray(frame).resize((336, 252))), "JPEG") for frame in shown]
    charts = [encode(frame, "PNG") for frame in shown[:12]]
    asked = "<image>\nWhat is in this picture?"
    captions = [conversation(asked, words(draw, 10, 0.3)) for _ in range(rows)]
    write_llava(
        folder / "llava",
        [{"id": str(n), "image": f"{n}.jpg", "conversations": captions[n]} for n in range(rows)],
        {f"{n}.jpg": small[n % 48] for n in range(rows)},
        zipped=True,
    )
    # A number behind a picture's end makes each another one: parquet stores equal ones once.
    made = [(charts[n % 12] if n % 4 == 0 else photos[n % 48]) + b"%08d" % n for n in range(rows)]
    written = [
        {
            "id": str(n),
            "image": {"bytes": data, "path": None},
            "conversations": conversation(asked, words(draw, 40, 1.2)),
            "data_source": "x",
        }
        for n, data in enumerate(made)
    ]
    write_parquet(folder / "onevision" / "all" / "train-00000-of-00001.parquet", written, ONEVISION, 1000)
    names = [f"{('coco', 'lvis')[n % 2]}/{n}.jpg" for n in range(rows)]
    held: dict[str, dict[str, bytes]] = {"coco": {}, "lvis": {}}
    for n, name in enumerate(names):
        held[name[:4]][name] = photos[n % 48]
    points = ["[" + ", ".join(["(0.461, 0.527)"] * int(draw.integers(1, 12))) + "]" for _ in range(rows)]
    pointing = [
        {"id": name, "image": name, "conversations": conversation("<image>\nWhere is the can?", place)}
        for name, place in zip(names, points)
    ]
    packed = {stem: tar(pictures) for stem, pictures in held.items()}
    write_robopoint(folder / "robopoint", pointing, packed, {"lvis": 3})
    write_parquet(
        folder / "vqasynth" / "data" / "train-00000-of-00001.parquet",
        [spatial_row(draw, photos[n % 48] + b"%08d" % n) for n in range(rows)],
        VQASYNTH,
        1000,
    )


def spatial_row(draw: np.random.Generator, picture: bytes) -> dict[str, Any]:
    """A picture and some questions about distances in it."""

    def part(kind: str, text: str | None = None) -> dict[str, Any]:
        return {"index": 0 if kind == "image" else None, "text": text, "type": kind}

    messages = []
    for turn in range(int(draw.integers(2, 8))):
        asked = [part("text", "How far is the left can from the box?")]
        messages.append({"role": "user", "content": asked if turn else [part("image"), *asked]})
        messages.append({"role": "assistant", "content": [part("text", words(draw, 12, 0.5))]})
    return {"messages": messages, "images": [{"bytes": picture, "path": None}]}


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


def write_recipe(folder: Path, name: str, extends: str = "openvla_plus_bridge", **settings: Any) -> None:
    recipe = {"extends": extends, "name": name.replace("_", "-"), "description": "To measure reading.", **settings}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def main(target: str) -> None:
    folder = Path(target)
    write_published(folder)
    sets = [{"path": name, "name": name} for name in ("llava", "vqasynth", "onevision", "robopoint")]
    write_recipe(folder, "published", data={"vision_language": sets, "robot": []})
    write_bridge(folder)
    write_small_files(folder / "small_files")
    few = [{"path": "small_files", "key": "small_files"}]
    write_recipe(folder, "small_files", data={"robot": few, "vision_language": []})
    write_robot(folder / "robot")
    write_questions(folder / "questions")
    data = {
        "robot": [{"path": "robot", "key": "my_robot", "cameras": ["top", "wrist"]}],
        "vision_language": [{"path": "questions", "name": "questions"}],
    }
    model = {"initial_model": "paligemma-3b-pt-224-plus"}  # need not be there
    write_recipe(folder, "two_cameras", "plus_my_robot", data=data, model=model)


if __name__ == "__main__":
    main(*sys.argv[1:])
