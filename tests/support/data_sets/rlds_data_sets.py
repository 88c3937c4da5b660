"""Made-up episodes written as RLDS data sets, the way TensorFlow Datasets lays them out, without TensorFlow.

Source: features.json and dataset_info.json of BridgeData V2 and RT-1; what is written here, TensorFlow Datasets itself
reads (see `tests/fixtures/robot_readings`).
"""

import json
import struct
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


def text_feature() -> dict[str, Any]:
    """A text in features.json."""
    return {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}


def image_feature(height: int, width: int) -> dict[str, Any]:
    """A picture in features.json."""
    shape = {"dimensions": [str(height), str(width), "3"]}
    return {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"},
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
    records = [_fractal_record(e) if fractal else _bridge_record(e) for e in episodes]
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
    tree = _fractal_features(episodes[0]) if fractal else _bridge_features(episodes[0])
    (version / "features.json").write_text(json.dumps(tree))
    return version


def _bridge_record(episode: Episode) -> bytes:
    length = len(episode.actions)
    features: dict[str, Any] = {
        "steps/action": episode.actions.reshape(-1),
        "steps/observation/state": episode.states.reshape(-1),
        "steps/language_instruction": [episode.instruction.encode()] * length,
        "steps/is_first": (np.arange(length) == 0).astype(np.int64),
        "steps/is_last": (np.arange(length) == length - 1).astype(np.int64),
        "episode_metadata/file_path": [b"/somewhere/out.npy"],
    }
    for camera, pictures in episode.pictures.items():
        features[f"steps/observation/{camera}"] = [encode(picture) for picture in pictures]
    return example(features)


def _bridge_features(episode: Episode) -> dict[str, Any]:
    cameras = {camera: image_feature(*p.shape[1:3]) for camera, p in episode.pictures.items()}
    steps = {
        "action": tensor_feature((7,)),
        "language_instruction": text_feature(),
        "is_first": tensor_feature(dtype="bool"),
        "is_last": tensor_feature(dtype="bool"),
        "observation": features_dict({**cameras, "state": tensor_feature((7,))}),
    }
    return _episode_features(steps, {"file_path": text_feature()})


def _fractal_record(episode: Episode) -> bytes:
    length, actions = len(episode.actions), episode.actions
    first = next(iter(episode.pictures.values()))
    features: dict[str, Any] = {
        "steps/action/world_vector": actions[:, :3].reshape(-1),
        "steps/action/rotation_delta": actions[:, 3:6].reshape(-1),
        "steps/action/gripper_closedness_action": actions[:, 6],
        "steps/action/terminate_episode": np.zeros(3 * length, dtype=np.int64),
        "steps/observation/image": [encode(picture) for picture in first],
        "steps/observation/natural_language_instruction": [episode.instruction.encode()] * length,
        "steps/observation/base_pose_tool_reached": episode.states.reshape(-1),
        "steps/observation/gripper_closed": actions[:, 6],
        "steps/is_first": (np.arange(length) == 0).astype(np.int64),
        "steps/is_last": (np.arange(length) == length - 1).astype(np.int64),
    }
    return example(features)


def _fractal_features(episode: Episode) -> dict[str, Any]:
    first = next(iter(episode.pictures.values()))
    action = {
        "world_vector": tensor_feature((3,)),
        "rotation_delta": tensor_feature((3,)),
        "gripper_closedness_action": tensor_feature((1,)),
        "terminate_episode": tensor_feature((3,), "int32"),
    }
    observation = {
        "image": image_feature(*first.shape[1:3]),
        "natural_language_instruction": text_feature(),
        "base_pose_tool_reached": tensor_feature((7,)),
        "gripper_closed": tensor_feature((1,)),
    }
    steps = {"action": features_dict(action), "observation": features_dict(observation)}
    return _episode_features(
        {**steps, "is_first": tensor_feature(dtype="bool"), "is_last": tensor_feature(dtype="bool")}
    )


def _episode_features(steps: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    sequence = {
        "pythonClassName": "tensorflow_datasets.core.features.dataset_feature.Dataset",
        "sequence": {"feature": features_dict(steps), "length": "-1"},
    }
    return features_dict({"steps": sequence, **({"episode_metadata": features_dict(more)} if more else {})})
