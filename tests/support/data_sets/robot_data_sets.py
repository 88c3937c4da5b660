"""Made-up episodes, written as LeRobot data sets v2.0, v2.1, v3.0 or as a recording of this project.

Source: lerobot's documentation of its formats and the metadata of published data sets; what is written here, lerobot
itself reads (see `tests/fixtures/robot_readings`). RLDS: `rlds_data_sets.py`.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


FPS = 5


@dataclass
class Episode:
    """instruction; actions, states float32 [S, D]; pictures uint8 [S, H, W, 3] by camera.

    `columns`, where given, are what a LeRobot data set stores in place of "observation.state" and "action".
    """

    instruction: str
    actions: np.ndarray
    states: np.ndarray
    pictures: dict[str, np.ndarray]
    columns: dict[str, np.ndarray] | None = None

    def stored(self) -> dict[str, np.ndarray]:
        """What a LeRobot data set stores, float32 [S, D] by name."""
        return self.columns or {"observation.state": self.states, "action": self.actions}


def make_episodes(
    count: int = 3, length: int = 6, cameras: tuple[str, ...] = ("image_0",), size: int = 64, seed: int = 0
) -> list[Episode]:
    """Episodes of `length`, `length` + 1, ... steps. A picture's grey says episode and step: 40 * episode + 5 * step.

    Every camera after the first is 3 brighter. Actions and states are random; the gripper, last, is 0 or 1.
    """
    random = np.random.default_rng(seed)
    episodes = []
    for number in range(count):
        steps = length + number
        actions = random.normal(0, 0.1, (steps, 7)).astype(np.float32)
        actions[:, 6] = random.integers(0, 2, steps)
        states = random.normal(0, 1, (steps, 7)).astype(np.float32)
        greys = (40 * number + 5 * np.arange(steps))[:, None, None, None]
        pictures = {
            camera: np.broadcast_to(greys + 3 * place, (steps, size, size, 3)).astype(np.uint8)
            for place, camera in enumerate(cameras)
        }
        episodes.append(Episode(f"put block {number} on the plate", actions, states, pictures))
    return episodes


def encode(picture: np.ndarray, kind: str = "JPEG") -> bytes:
    """An encoded picture."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


def write_lerobot(
    folder: Path, episodes: list[Episode], version: str = "v2.1", kind: str = "video", codec: str = "libx264"
) -> Path:
    """A LeRobot data set; `kind` of the cameras is "video" or "image" -> the folder.

    v3.0: the first episodes share a data file with a row group each and a video file, the last has its own of both.
    """
    (folder / "meta").mkdir(parents=True)
    tasks = list(dict.fromkeys(episode.instruction for episode in episodes))
    tables = _tables(episodes, tasks, kind)
    info = _info(episodes, tasks, version, kind, codec)
    video = codec if kind == "video" else None
    if version == "v3.0":
        _write_v3(folder, episodes, tables, tasks, video)
    else:
        _write_v2(folder, episodes, tables, tasks, version, video)
    (folder / "meta" / "info.json").write_text(json.dumps(info, indent=4))
    return folder


def camera_feature(camera: str) -> str:
    """The name of a camera's feature: "image_0" is lerobot's "observation.images.image_0", "video.image" stays."""
    return camera if "." in camera else f"observation.images.{camera}"


def _info(episodes: list[Episode], tasks: list[str], version: str, kind: str, codec: str) -> dict[str, Any]:
    total = sum(len(episode.actions) for episode in episodes)
    features: dict[str, Any] = {}
    for camera, pictures in episodes[0].pictures.items():
        shape = list(pictures.shape[1:])
        feature: dict[str, Any] = {"dtype": kind, "shape": shape, "names": ["height", "width", "rgb"]}
        if kind == "video":
            about = {"video.fps": float(FPS), "video.height": shape[0], "video.width": shape[1], "video.channels": 3}
            about |= {"video.codec": "h264" if codec == "libx264" else "av1", "video.pix_fmt": "yuv420p"}
            feature["info"] = {**about, "video.is_depth_map": False, "has_audio": False}
        features[camera_feature(camera)] = feature
    for name, values in episodes[0].stored().items():
        features[name] = {"dtype": "float32", "shape": [values.shape[1]], "names": None}
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": version,
        "robot_type": "widowx",
        "total_episodes": len(episodes),
        "total_frames": total,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes)}"},
        "features": features,
    }
    if version == "v3.0":
        info |= {"data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
        info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    else:
        videos = len(episodes) * len(episodes[0].pictures) if kind == "video" else 0
        info |= {"total_videos": videos, "total_chunks": 1}
        info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    return {**info, "video_path": video if kind == "video" else None}


def _tables(episodes: list[Episode], tasks: list[str], kind: str) -> list[pa.Table]:
    tables, index = [], 0
    for number, episode in enumerate(episodes):
        length = len(episode.actions)
        columns: dict[str, Any] = {
            name: pa.array(values.tolist(), pa.list_(pa.float32(), values.shape[1]))
            for name, values in episode.stored().items()
        }
        columns |= {
            "timestamp": pa.array(np.arange(length) / FPS, pa.float32()),
            "frame_index": pa.array(range(length), pa.int64()),
            "episode_index": pa.array([number] * length, pa.int64()),
            "index": pa.array(range(index, index + length), pa.int64()),
            "task_index": pa.array([tasks.index(episode.instruction)] * length, pa.int64()),
        }
        if kind == "image":
            for camera, pictures in episode.pictures.items():
                values = [{"bytes": encode(p, "PNG"), "path": f"frame-{i:06d}.png"} for i, p in enumerate(pictures)]
                column = pa.array(values, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
                columns = {camera_feature(camera): column, **columns}
        table = pa.table(columns)
        tables.append(table.replace_schema_metadata({"huggingface": _features_of(table)}))
        index += length
    return tables


def _features_of(table: pa.Table) -> str:
    """What `datasets` notes in a parquet file, in the words that its versions 3 to 5 know."""
    features: dict[str, Any] = {}
    for field in table.schema:
        if pa.types.is_struct(field.type):
            features[field.name] = {"_type": "Image"}
        elif pa.types.is_fixed_size_list(field.type):
            value = {"dtype": "float32", "_type": "Value"}
            features[field.name] = {"feature": value, "length": field.type.list_size, "_type": "Sequence"}
        else:
            kind = "float32" if pa.types.is_floating(field.type) else "int64"
            features[field.name] = {"dtype": kind, "_type": "Value"}
    return json.dumps({"info": {"features": features}})


def _write_v2(
    folder: Path, episodes: list[Episode], tables: list[pa.Table], tasks: list[str], version: str, codec: str | None
) -> None:
    (folder / "data" / "chunk-000").mkdir(parents=True)
    for number, (episode, table) in enumerate(zip(episodes, tables, strict=True)):
        pq.write_table(table, folder / "data" / "chunk-000" / f"episode_{number:06d}.parquet")
        for camera, pictures in episode.pictures.items() if codec else ():
            target = folder / "videos" / "chunk-000" / camera_feature(camera) / f"episode_{number:06d}.mp4"
            write_video(target, pictures, codec or "")
    lines = [{"episode_index": n, "tasks": [e.instruction], "length": len(e.actions)} for n, e in enumerate(episodes)]
    _write_lines(folder / "meta" / "episodes.jsonl", lines)
    _write_lines(folder / "meta" / "tasks.jsonl", [{"task_index": n, "task": t} for n, t in enumerate(tasks)])
    if version == "v2.1":
        lines = [{"episode_index": number, "stats": _stats(episode)} for number, episode in enumerate(episodes)]
        _write_lines(folder / "meta" / "episodes_stats.jsonl", lines)
    else:
        (folder / "meta" / "stats.json").write_text(json.dumps(_stats(episodes[0])))


def _write_v3(
    folder: Path, episodes: list[Episode], tables: list[pa.Table], tasks: list[str], codec: str | None
) -> None:
    last = len(episodes) - 1
    files = [int(last > 0 and number == last) for number in range(len(episodes))]
    rows, index, starts = [], 0, [0.0, 0.0]
    for number, (episode, file) in enumerate(zip(episodes, files, strict=True)):
        length = len(episode.actions)
        row = {"episode_index": number, "tasks": [episode.instruction], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": file}
        row |= {"dataset_from_index": index, "dataset_to_index": index + length}
        for camera in episode.pictures if codec else ():
            key = f"videos/{camera_feature(camera)}"
            row |= {f"{key}/chunk_index": 0, f"{key}/file_index": file}
            row |= {f"{key}/from_timestamp": starts[file], f"{key}/to_timestamp": starts[file] + length / FPS}
        rows.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        starts[file] += length / FPS
        index += length
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    # The text is the index, which pandas stores as "__index_level_0__".
    pd.DataFrame({"task_index": range(len(tasks))}, index=tasks).to_parquet(folder / "meta" / "tasks.parquet")
    (folder / "meta" / "stats.json").write_text(json.dumps(_stats(episodes[0])))
    (folder / "data" / "chunk-000").mkdir(parents=True)
    for file in sorted(set(files)):
        members = [number for number in range(len(episodes)) if files[number] == file]
        with pq.ParquetWriter(folder / "data" / "chunk-000" / f"file-{file:03d}.parquet", tables[0].schema) as writer:
            for number in members:
                writer.write_table(tables[number])
        for camera in episodes[0].pictures if codec else ():
            pictures = np.concatenate([episodes[number].pictures[camera] for number in members])
            target = folder / "videos" / camera_feature(camera) / "chunk-000" / f"file-{file:03d}.mp4"
            write_video(target, pictures, codec or "")


def _stats(episode: Episode) -> dict[str, Any]:
    columns = episode.stored()
    kinds = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
    stats = {n: {k: f(v, axis=0).tolist() for k, f in kinds.items()} | {"count": [len(v)]} for n, v in columns.items()}
    for camera, pictures in episode.pictures.items():
        scaled = pictures / 255.0
        stats[camera_feature(camera)] = {
            **{k: f(scaled, axis=(0, 1, 2)).reshape(3, 1, 1).tolist() for k, f in kinds.items()},
            "count": [len(pictures)],
        }
    return stats


def _write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_video(
    path: Path, pictures: np.ndarray, codec: str = "libx264", fps: int = FPS, group: int = 2, first: int = 0
) -> None:
    """Pictures uint8 [S, H, W, 3] as an mp4 with a key frame every two frames, as lerobot writes them, or `group`.

    Its time begins `first` frames late.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": str(group), "crf": "18"}
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = first + number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_recording(folder: Path, episodes: list[Episode]) -> Path:
    """A folder as `gen_vla.evaluation.recording` leaves it -> the folder."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    rows = [
        {
            "image": {"bytes": encode(picture, "PNG"), "path": None},
            "instruction": episode.instruction,
            "action": action.tolist(),
            "episode_index": number,
        }
        for number, episode in enumerate(episodes)
        for picture, action in zip(next(iter(episode.pictures.values())), episode.actions, strict=True)
    ]
    actions = List(Value("float32"), length=7)
    kinds = {"image": ImageFeature(), "instruction": Value("string"), "action": actions}
    Dataset.from_list(rows, features=Features({**kinds, "episode_index": Value("int64")})).save_to_disk(str(folder))
    return folder


def edit_info(folder: Path, **changes: Any) -> None:
    """Changes meta/info.json of a LeRobot data set."""
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_lines(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Changes a file of JSON lines, such as meta/episodes.jsonl of v2.1."""
    _write_lines(path, change([json.loads(line) for line in path.read_text().splitlines()]))


def edit_episodes(folder: Path, change: Callable[[pd.DataFrame], Any]) -> None:
    """Changes meta/episodes of v3.0."""
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


def edit_rows(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Changes every data file."""
    for path in sorted((folder / "data").rglob("*.parquet")):
        pq.write_table(change(pq.read_table(path)), path)


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """A table with another column of this name."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, name, values).replace_schema_metadata(None)
