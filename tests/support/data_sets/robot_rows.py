"""Robot data sets in tests: written in any format, read, and looked at by `gen-vla train --check`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rlds_data_sets import write_rlds
from robot_data_sets import Episode, write_lerobot, write_recording

from gen_vla.commands.main import main
from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.robot_data.source import RobotDataset, open_robot_source


FORMATS = ("rlds", "v2.0", "v2.1", "v3.0", "recording")


def write(folder: Path, form: str, episodes: list[Episode]) -> Path:
    """A data set in one of `FORMATS` -> its folder."""
    if form == "rlds":
        return write_rlds(folder, episodes, name="mine", shards=2)
    if form == "recording":
        return write_recording(folder / "recording", episodes)
    return write_lerobot(folder / "lerobot", episodes, form)


def read_rows(folder: Path, **settings: Any) -> tuple[list[dict[str, Any]], RobotDataset]:
    """All rows, however many are bad, and the data set."""
    dataset = open_robot_source(folder, key="x", **{"problems": RowProblems(limit_share=1.0), **settings})
    return list(dataset.rows(dataset.shards())), dataset


def places(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Episode and step of each row."""
    return [(row["episode_index"], row["step_index"]) for row in rows]


def grey(picture: Any) -> float:
    """The mean of a picture, encoded or not."""
    opened = Image.open(io.BytesIO(picture["bytes"])) if isinstance(picture, dict) else picture
    return float(np.asarray(opened.convert("RGB")).mean())


def greys(rows: list[dict[str, Any]]) -> dict[int, list[int]]:
    """The mean of each row's picture by episode; `make_episodes` makes it 40 * episode + 5 * step."""
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(row["episode_index"], []).append(round(grey(row["images"][0])))
    return found


def check(folder: Path, capsys: Any, setting: str = "") -> tuple[int, str, str]:
    """What `gen-vla train --check` returns and prints about a data set."""
    recipe = folder.parent / "my.yaml"
    source = f"{{path: {folder.name}, key: k{setting}}}"
    recipe.write_text(f"extends: openvla_plus_bridge\nname: my\ndescription: d\ndata:\n  robot:\n    - {source}\n")
    arguments = ["train", str(recipe), "--work-dir", str(folder.parent), "--check", "--set", "data.co_training=[]"]
    code = main(arguments)
    printed = capsys.readouterr()
    return code, " ".join(printed.out.split()), printed.err
