"""Labelled pictures to probe a vision tower with.

digits    scikit-learn's 1,797 handwritten digits, which come with it: works offline
cifar10   the test split of uoft-cs/cifar10 on the Hub, which the paper uses
PATH      a data set saved to disk with columns `image` and `label`, or a folder with one of pictures per class; or
          questions of `gen-vla record`: the shape of each object, at the image token where it is
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gen_vla.evaluation.simulation.layouts import SHAPES
from gen_vla.processors.rgb_pictures import to_rgb


CIFAR10 = "uoft-cs/cifar10"


@dataclass(frozen=True)
class LabelledPictures:
    """`labels` int64 [n] are indices into `classes`; every class has pictures. `places` float [n, 2], where there are
    any, say what of each picture the label is about: right and down, 0..1.
    """

    name: str
    images: list[Image.Image]
    labels: np.ndarray
    classes: list[str]
    places: np.ndarray | None = None


def load_pictures(source: str, samples: int = 2000) -> LabelledPictures:
    """At most `samples` pictures, as many of each class as there are if it has few, the rest shared evenly; raises
    `ValueError` if there is nothing at `source`, a column is missing, or there are fewer than two classes."""
    images, labels, classes, *places = _digits() if source == "digits" else _data_set(source)
    if len(classes) < 2:
        raise ValueError(f"{source}: got pictures of {len(classes)} class, expected at least two to tell apart")
    chosen = balanced_choice(labels, samples, seed=0)
    about = (each[chosen] for each in places)
    return LabelledPictures(source, [to_rgb(images[int(i)]) for i in chosen], labels[chosen], classes, *about)


def balanced_choice(labels: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Increasing indices int64 of at most `samples` rows: of every class one more in turn, drawn by `seed`."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        place[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(place[order], kind="stable")][:samples])


def _digits() -> tuple[Any, np.ndarray, list[str]]:
    from sklearn.datasets import load_digits

    pixels, labels = (np.asarray(values) for values in load_digits(return_X_y=True))
    grey = np.round(pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    return [Image.fromarray(image) for image in grey], labels.astype(np.int64), [str(digit) for digit in range(10)]


def _data_set(source: str) -> tuple[Any, ...]:
    import datasets

    folder = Path(source)
    if source == "cifar10":
        rows = datasets.load_dataset(CIFAR10, split="test").rename_column("img", "image")
    elif not folder.is_dir():
        raise ValueError(f"got --data {source}, expected digits, cifar10, or a folder of labelled pictures")
    elif (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        rows = datasets.load_from_disk(source)
    else:
        rows = datasets.load_dataset("imagefolder", data_dir=source, split="train")
    if isinstance(rows, datasets.DatasetDict):
        rows = rows["test" if "test" in rows else next(iter(rows))]
    if {"image", "objects"} <= set(rows.column_names):  # type: ignore[arg-type]
        return _objects(rows)
    missing = {"image", "label"} - set(rows.column_names)  # type: ignore[arg-type]
    if missing:
        raise ValueError(f"{source}: got columns {rows.column_names}, expected image and label")
    labels = rows["label"][:]
    names = getattr(rows.features["label"], "names", None)  # type: ignore[union-attr]
    found = sorted(set(labels))
    classes = [str(names[label] if names else label) for label in found]
    return rows["image"], np.array([found.index(label) for label in labels], dtype=np.int64), classes


def _objects(rows: Any) -> tuple[Any, np.ndarray, list[str], np.ndarray]:
    """Every object of recorded scenes that is in its picture."""
    found = [
        (number, thing["shape"], (thing["u"], thing["v"]))
        for number, things in enumerate(rows["objects"])
        for thing in things
        if 0 <= thing["u"] < 1 and 0 <= thing["v"] < 1
    ]
    shapes, places = [shape for _, shape, _ in found], np.array([place for *_, place in found])
    kinds, labels = np.unique(shapes, return_inverse=True)
    images = rows.select([number for number, *_ in found])["image"]
    return images, labels, [SHAPES[kind] for kind in kinds], places
