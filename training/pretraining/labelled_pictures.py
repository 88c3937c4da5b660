"""Batches of recorded pictures with a label per image token, mirrored and shifted at random."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gen_vla.training.pretraining.token_heads import TokenTargets
from gen_vla.training.storage.json_files import read_json
from gen_vla.training.storage.recordings import METADATA_FILE, load_recording
from gen_vla.training.vision_language_data.token_labels import token_labels


class LabelledPictures(Dataset):
    """The rows of recordings of questions, by number; `classes` is how many colours and shapes they name."""

    def __init__(self, folders: Sequence[Path]):
        columns = ["image", "objects", "handle", "opening"]
        self.recordings = [load_recording(folder, columns).select_columns(columns) for folder in folders]
        self.classes = _classes(folders)
        self.numbers = [(part, row) for part, rows in enumerate(self.recordings) for row in range(len(rows))]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> dict[str, Any]:
        part, row = self.numbers[number]
        return self.recordings[part][row]


def _classes(folders: Sequence[Path]) -> tuple[int, int]:
    found = {folder: read_json(folder / METADATA_FILE) for folder in folders}
    named = {folder: (record["colours"], record["shapes"]) for folder, record in found.items()}
    first = named[folders[0]]
    for folder, names in named.items():
        if names != first:
            raise ValueError(f"got {folder} with colours and shapes {names}, expected those of {folders[0]}, {first}")
    return len(first[0]), len(first[1])


class LabelCollator:
    """Rows -> `pixel_values` float32 [B, 3 x encoders, H, W] and the fields of `TokenTargets`.

    Args:
        grid: patches a side.
        largest_shift: pixels that a picture moves at most each way, its edge repeated; 0 to leave it as it is.
            Pictures are then mirrored half of the time, too.
    """

    def __init__(self, image_processor: Any, grid: int, colours: int, shapes: int, largest_shift: int):
        self.image_processor, self.grid = image_processor, grid
        self.handle = {"colour": colours, "shape": shapes}
        self.largest_shift = largest_shift

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pictures, objects = [], []
        for row in rows:
            (u, v), picture = row["handle"], np.asarray(row["image"])
            there = [{**self.handle, "u": u, "v": v}, *row["objects"]]
            if self.largest_shift:
                picture, there = self._moved(picture, there)
            pictures.append(picture)
            objects.append(there)
        labels = token_labels(objects, self.grid)
        openings = torch.tensor([row["opening"] for row in rows], dtype=torch.float32)
        colours, shapes, places = map(torch.from_numpy, labels)
        targets = TokenTargets(colours=colours, shapes=shapes, places=places, openings=openings)
        return {**self.image_processor(pictures, return_tensors="pt"), **targets._asdict()}

    def _moved(self, picture: np.ndarray, objects: list[dict[str, Any]]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """A picture [H, W, 3] and its objects, mirrored or not, and shifted; torch's random state decides."""
        most = self.largest_shift
        right, down, mirrored = torch.randint(-most, most + 1, (3,)).tolist()
        if mirrored > 0:
            picture, objects = picture[:, ::-1], [{**each, "u": 1.0 - each["u"]} for each in objects]
        height, width = picture.shape[:2]
        padded = np.pad(picture, ((most, most), (most, most), (0, 0)), mode="edge")
        picture = padded[most - down : most - down + height, most - right : most - right + width]
        moved = {"u": right / width, "v": down / height}
        return picture, [{**each, **{axis: each[axis] + by for axis, by in moved.items()}} for each in objects]
