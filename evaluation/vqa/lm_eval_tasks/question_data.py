"""Where the questions and pictures of each task come from: files on this machine, or a data set on the Hub.

README.md in this folder shows the layouts. A task's YAML names its `repository` and the `files` of its split in it;
`vqa_data/<name>/` is read where it exists. Missing columns and pictures are reported before a model is loaded. Imports
nothing of this package, so that plain lm-eval can load it from a checkout:

    lm_eval --include_path evaluation/vqa/lm_eval_tasks --tasks gen_vla_pope --metadata '{"local": "vqa_data"}' ...
"""

import glob
import runpy
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset


QUESTION_FILES = ("questions.parquet", "questions.jsonl")
MISSING_SHOWN = 3
# lm-eval loads this file by its path, where this package may not be installed.
to_rgb = runpy.run_path(str(Path(__file__).resolve().parents[3] / "processors" / "rgb_pictures.py"))["to_rgb"]


def load_questions(
    *,
    name: str,
    files: str,
    columns: list[str],
    repository: str | None = None,
    picture_files: str | None = None,
    obtain: str = "",
    local: str | None = None,
    **_: Any,
) -> dict[str, Dataset]:
    """lm-eval's call for a task's data, with what its YAML and `--metadata` say -> `{"test": Dataset}`; `picture`
    opens a row's picture.

    Args:
        name: the task, and its folder below `local`.
        files: the questions' files in the published layout, a pattern relative to repository or folder.
        columns: what every row must have.
        repository: the data set's Hub id; `None` where none is published.
        picture_files: a table of its own that holds the pictures (columns id, image), joined by the column imageId.
        obtain: where to get what may be missing, in words; ends the error. DIR in it stands for `local`.
        local: a folder with one folder per task.

    Raises:
        ValueError: if a file cannot be read or has no rows, or a column is missing.
        FileNotFoundError: if nothing can be read, or pictures are missing.
    """
    folder = Path(local) / name if local else None
    obtain = obtain.replace("DIR", local or "DIR")
    rows = read_rows(folder, repository, files, f"the questions of task {name}", obtain)
    if picture_files and "image" not in rows.column_names:
        check_columns(rows, [*columns, "imageId"], name)
        pictures = read_rows(folder, repository, picture_files, f"the pictures of task {name}", obtain)
        return {"test": join_pictures(rows, pictures)}
    check_columns(rows, [*columns, "image"], name)
    return {"test": with_pictures(rows, folder, name, obtain)}


def picture(doc: dict[str, Any]) -> list[Any]:
    """lm-eval's call for a question's pictures: one, RGB, as the models' processor reads it."""
    return [to_rgb(doc["image"])]


def read_rows(folder: Path | None, repository: str | None, files: str, what: str, obtain: str) -> Dataset:
    """A table from `folder` where it holds one, else from the Hub; pictures are not opened yet."""
    if folder is not None and (rows := read_folder(folder, files)) is not None:
        return rows
    expected = f"{folder or 'DIR/<task> of --local DIR'} to hold {' or '.join((files, *QUESTION_FILES))}"
    if repository is None:
        raise FileNotFoundError(f"got no file with {what}, expected {expected}. {obtain}".strip())
    try:
        return read_table(f"hf://datasets/{repository}/{files}")
    except Exception as error:  # what the Hub's client raises has no common class below this one
        raise FileNotFoundError(
            f"got neither a file with {what} nor an answer from the Hub for {repository} ({error}), expected a "
            f"connection to it, or {expected}. {obtain}".strip()
        ) from error


def read_folder(folder: Path, files: str) -> Dataset | None:
    """The first of: a saved data set, the published layout's files, one of `QUESTION_FILES`; `None` without any."""
    saved = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    found = next((name for name in (files, *QUESTION_FILES) if any(folder.glob(name))), None)
    try:
        if saved:
            return datasets.load_from_disk(str(folder))  # type: ignore[return-value]
        return read_table(f"{glob.escape(str(folder))}/{found}") if found else None
    except Exception as error:  # what its readers raise has no common class below this one
        raise ValueError(
            f"got {folder if saved else folder / str(found)}, which could not be read ({error.__cause__ or error}), "
            "expected a saved data set or whole parquet or JSON lines files, with at least one row; fetch it again"
        ) from error


def read_table(files: str) -> Dataset:
    """Rows of parquet or JSON lines files, a path or address that may hold a `*`."""
    kind = "json" if files.endswith((".json", ".jsonl")) else "parquet"
    return datasets.load_dataset(kind, data_files={"test": files}, split="test")  # type: ignore[return-value]


def check_columns(rows: Dataset, columns: list[str], name: str) -> None:
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"got columns {', '.join(rows.column_names)} for task {name}, expected {', '.join(columns)}; "
            f"missing: {', '.join(missing)}"
        )


def with_pictures(rows: Dataset, folder: Path | None, name: str, obtain: str) -> Dataset:
    """Rows whose column `image` opens as a picture, whether it holds the bytes or a file's name."""
    feature = rows.features["image"]
    if not isinstance(feature, datasets.Value):
        return rows if isinstance(feature, datasets.Image) else rows.cast_column("image", datasets.Image())
    names = rows["image"][:]
    places = [] if folder is None else [folder / "images", folder]
    found = {file: [str((place / file).absolute()) for place in places if (place / file).is_file()] for file in names}
    if missing := [file for file, paths in found.items() if not paths]:
        where = folder / "images" if folder else f"DIR/{name}/images of --local DIR"
        shown = ", ".join(missing[:MISSING_SHOWN]) + (", ..." if len(missing) > MISSING_SHOWN else "")
        raise FileNotFoundError(
            f"got {len(missing)} of {len(found)} pictures of task {name} missing ({shown}), "
            f"expected them in {where}. {obtain}".strip()
        )
    images = [found[file][0] for file in names]
    return rows.remove_columns("image").add_column("image", images).cast_column("image", datasets.Image())  # type: ignore[call-arg]


def join_pictures(questions: Dataset, pictures: Dataset) -> Dataset:
    """Questions with the picture whose `id` is their `imageId`, opened only when a row is asked for."""
    place = {identity: row for row, identity in enumerate(pictures["id"])}
    missing = sorted({identity for identity in questions["imageId"] if identity not in place})
    if missing:
        shown = ", ".join(missing[:MISSING_SHOWN])
        raise FileNotFoundError(
            f"got questions about {len(missing)} pictures that are not in the table of pictures ({shown}), "
            "expected every imageId among its ids; the two tables belong to different splits"
        )

    def opened(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "image": [pictures[place[identity]]["image"] for identity in batch["imageId"]]}

    return questions.with_transform(opened)
