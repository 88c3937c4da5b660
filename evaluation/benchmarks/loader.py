"""Frames per second and core of the robot readers, beside TensorFlow Datasets and lerobot where they are installed.

Measured in turns within one process, by the seconds of processor time that all its threads use: rows in the order of
the files, the primary camera's picture decoded and resized to 224 x 224 (bicubic), the actions beside it.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.tables import results_table
from gen_vla.processors.image_processing_openvla_plus import resize
from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.provenance.origin import describe_machine
from gen_vla.training.robot_data.lerobot.metadata import INFO as LEROBOT_INFO
from gen_vla.training.robot_data.lerobot.reading import LeRobotReader
from gen_vla.training.robot_data.rlds import RLDSReader
from gen_vla.training.robot_data.source import RobotDataset, open_robot_source


Frames = Callable[[], Iterator[np.ndarray]]  # a pass over the data from its beginning: uint8 [size, size, 3]


def our_frames(source: RobotDataset, size: int) -> Iterator[np.ndarray]:
    """Pictures of the first camera as uint8 [size, size, 3], over and over."""
    while True:
        for row in source.rows(source.shards()):
            yield np.asarray(resize(decode_picture(row["images"][0], row["identity"]), size))


def tfds_frames(reader: RLDSReader, camera: str, size: int, split: str) -> Iterator[np.ndarray]:
    """The same from TensorFlow Datasets, which may use one thread."""
    import tensorflow as tf  # type: ignore[import-not-found]
    import tensorflow_datasets as tfds  # type: ignore[import-not-found]

    if not tf.config.threading.get_intra_op_parallelism_threads():
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    builder = tfds.builder_from_directory(reader.folder.root)
    names = [name.rpartition("/")[2] for name in reader.cameras]
    wanted = camera.rpartition("/")[2]
    skip = {"steps": {"observation": {name: tfds.decode.SkipDecoding() for name in names}}}

    def prepare(step: Any) -> Any:
        picture = tf.io.decode_jpeg(step["observation"][wanted], channels=3)
        resized = tf.image.resize(picture, (size, size), method="bicubic", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8), step["action"]

    config = tfds.ReadConfig(interleave_cycle_length=1)
    episodes = builder.as_dataset(split=split, decoders=skip, read_config=config, shuffle_files=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    steps = episodes.flat_map(lambda episode: episode["steps"]).map(prepare).with_options(options)
    for picture, _ in steps.repeat().as_numpy_iterator():
        yield picture


def lerobot_frames(folder: str, camera: str, size: int) -> Iterator[np.ndarray]:
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset  # type: ignore[import-not-found]

    torch.set_num_threads(1)  # a second one gains little on one picture and waits for work busily
    data = LeRobotDataset("gen-vla/benchmark", root=folder)
    while True:
        for index in range(len(data)):
            row = data[index]
            picture = torch.nn.functional.interpolate(row[camera][None], (size, size), mode="bicubic", antialias=True)
            yield (picture[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def measure_loader(
    path: str | Path, frames: int = 1000, repeats: int = 3, size: int = 224, split: str = "train"
) -> dict[str, Any]:
    """Times every reader that can read a robot data set, in turns. Of each the results have the rates, their median,
    and how far its first picture is from ours (mean absolute difference, of 255). Small data sets are read several
    times."""
    source = open_robot_source(path, key="benchmark", transform=None, split=split)
    passes = _readers(source, size, split)
    runs: dict[str, list[float]] = {name: [] for name in passes}
    firsts: dict[str, np.ndarray] = {}
    for _ in tqdm(range(repeats), desc=source.reader.dataset, unit="turn"):
        for name, start in passes.items():
            stream = start()
            firsts[name] = next(stream)
            runs[name].append(frames_per_core_second(stream, frames))
    ours = firsts["gen-vla"].astype(int)
    readers = {
        name: {
            "frames_per_core_second": round(statistics.median(rates), 1),
            "runs": [round(rate, 1) for rate in rates],
            "first_picture": round(float(np.abs(firsts[name] - ours).mean()), 2),
        }
        for name, rates in runs.items()
    }
    kind = type(source.reader).__name__.removesuffix("Reader")
    labels = {"data": source.reader.dataset, "format": kind, "camera": source.cameras[0]}
    return {**labels, "frames": frames, "readers": readers}


def _readers(source: RobotDataset, size: int, split: str) -> dict[str, Frames]:
    """Passes by reader; the other packages only where they are installed and read the format from this machine."""
    reader, camera = source.reader, source.cameras[0]
    passes: dict[str, Frames] = {"gen-vla": lambda: our_frames(source, size)}
    if isinstance(reader, RLDSReader) and reader.folder.is_local and installed("tensorflow-datasets"):
        passes["tfds"] = lambda: tfds_frames(reader, camera, size, split)
    if isinstance(reader, LeRobotReader) and reader.folder.is_local and installed("lerobot"):
        from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION  # type: ignore[import-not-found]

        stored = reader.folder.read_json(LEROBOT_INFO)["codebase_version"]
        if stored.partition(".")[0] == CODEBASE_VERSION.partition(".")[0]:  # it reads one major version
            passes["lerobot"] = lambda: lerobot_frames(reader.folder.root, camera, size)
    return passes


def frames_per_core_second(stream: Iterator[np.ndarray], frames: int) -> float:
    """Of the next `frames` of a stream, after a tenth as many to warm up."""
    for _ in islice(stream, frames // 10):
        pass
    began = time.process_time()
    count = sum(1 for _ in islice(stream, frames))
    return count / (time.process_time() - began)


def run_loader_benchmark(paths: list[Path], **settings: Any) -> dict[str, Any]:
    packages = ("pillow", "av", "pyarrow", "tensorflow-cpu", "tensorflow-datasets", "lerobot", "torchcodec")
    versions = {name: version(name) for name in packages if installed(name)}
    results = [measure_loader(path, **settings) for path in paths]
    return {"machine": describe_machine(), "versions": versions, "results": results}


def loader_table(results: dict[str, Any]) -> Table:
    rows = []
    for result in results["results"]:
        rates = {name: entry["frames_per_core_second"] for name, entry in result["readers"].items()}
        for name, rate in rates.items():
            beside = "" if name == "gen-vla" else f"{rate / rates['gen-vla']:.2f} x"
            rows.append((result["data"], result["format"], name, f"{rate:,.0f}", beside))
    formats = {result["format"] for result in results["results"]}
    missing = [
        f"{package} is not installed: nothing to compare {name} with"
        for package, name in (("tensorflow-datasets", "RLDS"), ("lerobot", "LeRobot"))
        if name in formats and not installed(package)
    ]
    columns = ("data set", "format", "reader", "frames/s", "beside gen-vla")
    title = "Frames per second and core: read, decoded, resized"
    return results_table(title, columns, rows, left=3, caption="; ".join(missing) or None)


def installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
