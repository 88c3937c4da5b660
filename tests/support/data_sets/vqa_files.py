"""Made-up questions in the layouts the VQA tasks are published in, columns and types alike, with tiny pictures."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from tiny_models import picture


WORDS = Value("string")


def write_parquet(path: Path, rows: list[dict[str, Any]], **types: Any) -> None:
    """Rows as one parquet file, as `push_to_hub` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(types)).to_parquet(path)


def write_soft(folder: Path, split: str, count: int) -> None:
    """TextVQA's or VizWiz's columns that matter; everyone answers "two"."""
    rows = [
        {"image": picture(row), "question_id": str(row), "question": "how MANY?", "answers": ["two"] * 10}
        for row in range(count)
    ]
    types = {"image": Image(), "question_id": WORDS, "question": WORDS, "answers": List(WORDS)}
    write_parquet(folder / f"data/{split}-00000-of-00001.parquet", rows, **types)


def write_pope(folder: Path, count: int) -> None:
    """Yes and no in turn, three categories in turn; a configuration of one category lies beside."""
    rows = [
        {
            "question_id": str(row),
            "question": "Is there a dog? ",
            "answer": ("yes", "no")[row % 2],
            "category": ("adversarial", "popular", "random")[row % 3],
            "image": picture(row),
        }
        for row in range(count)
    ]
    types = {"question_id": WORDS, "question": WORDS, "answer": WORDS, "category": WORDS, "image": Image()}
    write_parquet(folder / "data/test-00000-of-00001.parquet", rows, **types)
    write_parquet(folder / "Full/adversarial-00000-of-00001.parquet", rows[:1], **types)


def write_gqa(folder: Path, count: int) -> None:
    """Questions, and two pictures they share, in a table of their own."""
    questions = [
        {"id": str(row), "imageId": f"n{row % 2}", "question": "Which?", "answer": "two"} for row in range(count)
    ]
    pictures = [{"id": f"n{row}", "image": picture(row)} for row in (1, 0)]
    name = "testdev-00000-of-00001.parquet"
    types = {"id": WORDS, "imageId": WORDS, "question": WORDS, "answer": WORDS}
    write_parquet(folder / "testdev_balanced_instructions" / name, questions, **types)
    write_parquet(folder / "testdev_balanced_images" / name, pictures, id=WORDS, image=Image())


def write_vsr(folder: Path, count: int) -> None:
    """Statements as JSON lines, pictures as files; statement 0 is true."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(count):
        picture(row).save(folder / "images" / f"{row:012}.jpg")
        link = f"http://images.cocodataset.org/train2017/{row:012}.jpg"
        lines.append(
            {"image": f"{row:012}.jpg", "image_link": link, "caption": "The cat is on it.", "label": (row + 1) % 2}
        )
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_scenes(folder: Path, count: int) -> None:
    """Questions as `metaworld_recording` records them, of different lengths."""
    rows = [
        {"image": picture(row), "question": "How many?" + " Two?" * row, "answer": "two", "kind": "ab"[row % 2]}
        for row in range(count)
    ]
    types = {"image": Image(), "question": WORDS, "answer": WORDS, "kind": WORDS}
    Dataset.from_list(rows, features=Features(types)).save_to_disk(str(folder))


def write_all(root: Path, count: int = 6) -> Path:
    """A folder for every task."""
    write_soft(root / "textvqa", "validation", count)
    write_soft(root / "vizwiz", "val", count)
    write_pope(root / "pope", count)
    write_gqa(root / "gqa", count)
    write_vsr(root / "vsr", count)
    write_scenes(root / "scenes", count)
    return root
