"""The data sets of the paper's tables, a few rows each, in the real formats: what every recipe's mini run reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from published_sets import ONEVISION, VQASYNTH, conversation, picture, tar, write_llava, write_parquet, write_robopoint
from rlds_data_sets import write_rlds
from robot_data_sets import make_episodes

from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import Recipe


INSTRUCTIONS = ("pick coke can", "open top drawer", "move apple near sponge")
SETS = ("llava", "vqasynth", "onevision", "robopoint")


def write_table_data(folder: Path) -> Path:
    """RT-1 and Bridge as RLDS, and the four vision-language sets, each in its published layout."""
    episodes = [replace(e, instruction=INSTRUCTIONS[n]) for n, e in enumerate(make_episodes(3, 6, size=16))]
    write_rlds(folder, episodes, "fractal20220817_data", shards=2)
    write_rlds(folder, episodes, "bridge_orig", shards=2)
    rows = [
        {"id": str(n), "image": f"{n}.jpg", "conversations": conversation("Describe it.\n<image>", f"a can, no. {n}")}
        for n in range(4)
    ]
    write_llava(folder / "llava", rows, {f"{n}.jpg": picture(n) for n in range(4)}, zipped=True)
    points = conversation("<image>\nWhere is the can?", "[(0.46, 0.53)]", "And the cup?", "[(0.12, 0.93)]")
    pointing = [{"id": str(n), "image": f"coco/{n}.jpg", "conversations": points} for n in range(4)]
    pictures = {f"coco/{n}.jpg": picture(10 + n) for n in range(4)}
    write_robopoint(folder / "robopoint", pointing, {"coco": tar(pictures)}, {"coco": 2})
    write_parquet(folder / "onevision" / "chart" / "train-00000-of-00001.parquet", onevision_rows(), ONEVISION)
    write_parquet(folder / "vqasynth" / "data" / "train-00000-of-00001.parquet", vqasynth_rows(), VQASYNTH)
    return folder


def onevision_rows() -> list[dict[str, Any]]:
    """Rows about a chart, one of them without a picture."""
    rows = []
    for number in range(4):
        image = {"bytes": picture(20 + number), "path": f"{number}.jpg"} if number else None
        asked = "How high is the bar?\n<image>" if number else "2 + 2?"
        said = conversation(asked, str(number))
        rows.append({"id": str(number), "image": image, "conversations": said, "data_source": "chart"})
    return rows


def vqasynth_rows() -> list[dict[str, Any]]:
    """Rows about distances."""

    def part(kind: str, text: str | None = None) -> dict[str, Any]:
        return {"index": 0 if kind == "image" else None, "text": text, "type": kind}

    return [
        {
            "messages": [
                {"role": "user", "content": [part("image"), part("text", "How far is the can?")]},
                {"role": "assistant", "content": [part("text", f"{number} meters away.")]},
            ],
            "images": [{"bytes": picture(30 + number, "PNG"), "path": None}],
        }
        for number in range(4)
    ]


def mini_recipe(name: str, **changes: Any) -> Recipe:
    """A shipped recipe at mini size, reading `write_table_data`; `changes` by dotted name with `__` for the point."""
    overrides: dict[str, Any] = {f"data.vision_language.{n}.path": path for n, path in enumerate(SETS)}
    return load_recipe(name, {**overrides, **{k.replace("__", "."): v for k, v in changes.items()}}, mini=True)
