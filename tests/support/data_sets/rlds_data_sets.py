"""Made-up episodes written as RLDS data sets, the way TensorFlow Datasets lays them out, without TensorFlow.

Source: features.json and dataset_info.json of BridgeData V2 and RT-1; what is written here, TensorFlow Datasets itself
reads (see `tests/fixtures/robot_readings`).
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from robot_data_sets import Episode, encode


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def framed(body: bytes) -> bytes:
    """One TFRecord record."""
    length = struct.pack("<Q", len(body))
    return length + struct.pack("<I", masked_crc(length)) + body + struct.pack("<I", masked_crc(body))


def varint(number: int) -> bytes:
    """Protocol buffers' integer."""
    number &= (1 << 64) - 1
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def message(field: int, body: bytes) -> bytes:
    """A field of bytes."""
    return varint(field << 3 | 2) + varint(len(body)) + body


def example(features: dict[str, list[bytes] | np.ndarray]) -> bytes:
    """A serialised tf.train.Example: bytes lists, float32 and int64 arrays."""
    entries = []
    for name, values in features.items():
        if isinstance(values, list):
            feature = message(1, b"".join(message(1, value) for value in values))
        elif values.dtype == np.float32:
            feature = message(2, message(1, values.astype("<f4").tobytes()))
        else:
            feature = message(3, message(1, b"".join(varint(int(value)) for value in values.reshape(-1))))
        entries.append(message(1, message(1, name.encode()) + message(2, feature)))
    return message(1, b"".join(entries))


def tensor_feature(shape: tuple[int, ...] = (), dtype: str = "float32") -> dict[str, Any]:
    """A tensor in features.json."""
    kind = "tensor_feature.Tensor" if shape else "scalar.Scalar"
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    return {
        "pythonClassName": f"tensorflow_datasets.core.features.{kind}",
        "tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"},
    }


def features_dict(features: dict[str, Any]) -> dict[str, Any]:
    """A dictionary of features in features.json."""
    name = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    return {"pythonClassName": name, "featuresDict": {"features": features}}


def write_rlds(
    folder: Path, episodes: list[Episode], name: str = "bridge_orig", shards: int = 1, split: str = "train"
) -> Path:
    """Bridge's layout; or RT-1's where the name is fractal20220817_data -> the version's folder."""
    fractal = name.startswith("fractal")
    version = folder / name / ("0.1.0" if fractal else "1.0.0")
    version.mkdir(parents=True, exist_ok=True)
    parts = [list(part) for part in np.array_split(np.arange(len(episodes)), shards)]
    steps = [_fractal_steps(episode) if fractal else _bridge_steps(episode) for episode in episodes]
    records = [example({f"steps/{key}": _stored(values) for key, values in each.items()}) for each in steps]
    for number, part in enumerate(parts):
        file = version / f"{name}-{split}.tfrecord-{number:05d}-of-{shards:05d}"
        file.write_bytes(b"".join(framed(records[index]) for index in part))
    entry = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "numBytes": str(sum(map(len, records))),
        "shardLengths": [str(len(part)) for part in parts],
    }
    info = {"fileFormat": "tfrecord", "name": name, "splits": [entry], "version": version.name}
    (version / "dataset_info.json").write_text(json.dumps(info))
    (version / "features.json").write_text(json.dumps(_features(steps[0])))
    return version


def _bridge_steps(episode: Episode) -> dict[str, Any]:
    """Arrays [S, ...] by name, pictures among them, and texts."""
    number = np.arange(len(episode.actions))
    return {
        "action": episode.actions,
        "language_instruction": [episode.instruction] * len(number),
        "is_first": number == 0,
        "is_last": number == len(number) - 1,
        **{f"observation/{camera}": pictures for camera, pictures in episode.pictures.items()},
        "observation/state": episode.states,
    }


def _fractal_steps(episode: Episode) -> dict[str, Any]:
    number, actions = np.arange(len(episode.actions)), episode.actions
    return {
        "action/world_vector": actions[:, :3],
        "action/rotation_delta": actions[:, 3:6],
        "action/gripper_closedness_action": actions[:, 6:],
        "action/terminate_episode": np.zeros((len(number), 3), dtype=np.int32),
        "observation/image": next(iter(episode.pictures.values())),
        "observation/natural_language_instruction": [episode.instruction] * len(number),
        "observation/base_pose_tool_reached": episode.states,
        "observation/gripper_closed": actions[:, 6:],
        "is_first": number == 0,
        "is_last": number == len(number) - 1,
    }


def _stored(values: Any) -> list[bytes] | np.ndarray:
    if isinstance(values, list):
        return [text.encode() for text in values]
    return [encode(picture) for picture in values] if values.ndim == 4 else values.reshape(-1)


def _features(steps: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, values in steps.items():
        if isinstance(values, list):
            kind = "tensorflow_datasets.core.features.text_feature.Text"
            feature: dict[str, Any] = {"pythonClassName": kind, "text": {}}
        elif values.ndim == 4:
            shape = {"dimensions": [str(size) for size in values.shape[1:]]}
            image = {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"}
            feature = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image", "image": image}
        else:
            feature = tensor_feature(values.shape[1:], str(values.dtype))
        group, _, last = name.rpartition("/")
        (tree.setdefault(group, {}) if group else tree)[last] = feature
    nested = {name: node if "pythonClassName" in node else features_dict(node) for name, node in tree.items()}
    kind = "tensorflow_datasets.core.features.dataset_feature.Dataset"
    sequence = {"pythonClassName": kind, "sequence": {"feature": features_dict(nested), "length": "-1"}}
    return features_dict({"steps": sequence})


def edit_features(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes features.json, given the features of a step by name; "observation" is the features in it."""
    path = folder / "features.json"
    tree = json.loads(path.read_text())
    steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    change({**steps, "observation": steps["observation"]["featuresDict"]["features"]})
    path.write_text(json.dumps(tree))
