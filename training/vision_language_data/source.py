"""Opens a vision-language data set in the layout in which it was published.

    llava      chat.json or .jsonl; images.zip, images/  liuhaotian/LLaVA-CC3M-Pretrain-595K
    robopoint  robopoint_*.json; images/*.tar.gz         wentao-yuan/robopoint-data (two archives come in parts)
    onevision  CONFIG/train-*.parquet                    lmms-lab/LLaVA-OneVision-Data
    vqasynth   data/train-*.parquet                      remyxai/vqasynth_spacellava
    recorded   state.json, data-*.arrow                  this project's own questions
    packed     packing.json, *.parquet                   any of these, made ready by gen-vla pack (`packing.py`)

Paths are local, or `hf://datasets/OWNER/NAME[@REVISION]`, or anything else fsspec reads. Of a remote set the JSON file
(or a recorded set) is fetched once and kept; pictures and parquet columns are read as rows ask for them.
"""

from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.spec import AbstractBufferedFile

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.storage.data_folder import DataFolder
from gen_vla.training.vision_language_data.archives import FolderPictures, ZipPictures, find_archives
from gen_vla.training.vision_language_data.json_rows import local_copy
from gen_vla.training.vision_language_data.llava import ArchivedLlavaSource, LlavaSource, check_configs
from gen_vla.training.vision_language_data.packed import PACKING, PackedSource
from gen_vla.training.vision_language_data.rows import ConversationSource
from gen_vla.training.vision_language_data.tables import COLUMNS, RecordedSource, TableSource, missing_columns


Format = Literal["auto", "llava", "vqasynth", "onevision", "robopoint", "recorded", "packed"]
JSON_NAMES = {"llava": "chat", "robopoint": "robopoint"}  # how the name of the JSON file begins
OTHER_SPLITS = ("test", "validation", "val")
BLOCK_BYTES = AbstractBufferedFile.DEFAULT_BLOCK_SIZE  # of a remote file, fetched with one request


def open_vision_language_source(
    path: str | Path,
    *,
    name: str,
    format: Format = "auto",
    configs: list[str] | None = None,
    problems: RowProblems | None = None,
) -> ConversationSource:
    """A vision-language data set as a source of rows.

    Args:
        path: the set's folder, or the JSON file of LLaVA rows in it; local or with a protocol such as `hf://`.
        configs: folders to use of LLaVA-OneVision; archives to use of RoboPoint, `"text-only"` for its rows without a
            picture. `None` for all.

    Raises:
        ValueError: if the files are not in that layout, are damaged, or hold no row. Bad rows are skipped and counted.
        FileNotFoundError: if there is nothing at `path`.
    """
    found = find_format(path, format)
    filesystem, root = url_to_fs(str(path))
    root = root.rstrip("/")
    problems = problems or RowProblems(name=name)
    if configs is not None and found not in ("onevision", "robopoint"):
        raise ValueError(
            f"{name!r}: got configs {configs} for format {found!r}, expected them for onevision, robopoint"
        )
    if found == "packed":
        return PackedSource(name, DataFolder(path), problems)
    if found == "recorded":
        return RecordedSource(name, path, problems)
    if found in ("llava", "robopoint"):
        return _open_llava(filesystem, root, name, found, configs, problems)
    assert found in ("vqasynth", "onevision")
    files = _parquet_files(filesystem, root, name, configs)
    folder = root.rsplit("/", 1)[0] if filesystem.isfile(root) else root
    return TableSource(name, filesystem, files, found, problems, FolderPictures(filesystem, folder).read)


def network_cost(source: ConversationSource, path: str, readers: int) -> str:
    """What one pass of so many loader processes over a remote set as it was published costs, in a sentence."""
    filesystem, root = url_to_fs(path)
    if isinstance(source, ArchivedLlavaSource):  # every reader unpacks them all
        parts = [part for parts in source.archives.values() for part in parts]
        size = readers * sum(filesystem.size(part) for part in parts)
        requests = -(-size // BLOCK_BYTES)
    elif isinstance(source, TableSource):
        size = sum(filesystem.size(file) for file in source.paths)
        requests = len(source.paths) + -(-size // BLOCK_BYTES)
    else:  # a request for each picture
        size, requests = filesystem.du(root), source.count_rows()
    return (
        f"read over the network as it was published: about {size / 1e9:,.1f} GB in {requests:,} requests for each "
        f"pass of {readers} readers; gen-vla pack does it once"
    )


def find_format(path: str | Path, format: Format = "auto") -> Format:
    """The layout of the data set at `path`: the one that was asked for, or what its files say."""
    filesystem, root = url_to_fs(str(path))
    if not filesystem.exists(root):
        raise FileNotFoundError(f"got no vision-language data set at {path}, expected a folder in a published layout")
    return _detect(filesystem, root.rstrip("/")) if format == "auto" else format


def _detect(filesystem: AbstractFileSystem, root: str) -> Format:
    entries = [root] if filesystem.isfile(root) else filesystem.ls(root, detail=False)
    names = [entry.rsplit("/", 1)[-1] for entry in entries]
    if "state.json" in names:
        return "recorded"
    if PACKING in names:
        return "packed"
    for layout in ("robopoint", "llava"):
        if any(_is_json_of(layout, entry) for entry in names):
            return layout
    if any(entry.endswith((".json", ".jsonl")) and filesystem.isfile(root) for entry in names):
        return "llava"
    files = [entry for entry in filesystem.find(root) if entry.endswith(".parquet")]
    if files:
        with filesystem.open(files[0], "rb") as file:
            columns = pq.read_schema(file).names
        layout: Format = "onevision" if "conversations" in columns else "vqasynth"
        if not missing_columns(layout, columns):
            return layout
        raise ValueError(f"got {files[0]} with columns {columns}, expected those of vqasynth or onevision: {COLUMNS}")
    raise ValueError(
        f"got {root} with {', '.join(sorted(names)[:8]) or 'nothing'} in it, expected chat.json, robopoint_*.json, "
        "parquet files, or a data set that save_to_disk or gen-vla pack wrote; name the JSON file itself if it is "
        "called otherwise"
    )


def _is_json_of(layout: str, name: str) -> bool:
    return name.endswith((".json", ".jsonl")) and name.startswith(JSON_NAMES[layout])


def _open_llava(
    filesystem: AbstractFileSystem, root: str, name: str, layout: str, configs: list[str] | None, problems: RowProblems
) -> ConversationSource:
    if filesystem.isfile(root):
        json_path, root = root, root.rsplit("/", 1)[0]
    else:
        names = sorted(entry.rsplit("/", 1)[-1] for entry in filesystem.ls(root, detail=False))
        names = [entry for entry in names if _is_json_of(layout, entry)]
        if len(names) != 1:
            raise ValueError(
                f"got JSON files {', '.join(names) or 'none'} in {root}, expected one {JSON_NAMES[layout]}*.json; "
                "name the file itself"
            )
        json_path = f"{root}/{names[0]}"
    rows_path = local_copy(filesystem, json_path)
    for folder in (f"{root}/images", root):
        if filesystem.isdir(folder) and find_archives(filesystem, folder):
            return ArchivedLlavaSource(name, rows_path, filesystem, folder, problems, configs)
    if configs is not None:
        raise ValueError(
            f"{name!r}: got configs {configs} for unpacked pictures, expected tar archives in {root}/images"
        )
    zipped = f"{root}/images.zip"
    pictures = ZipPictures(filesystem, zipped) if filesystem.isfile(zipped) else FolderPictures(filesystem, root)
    return LlavaSource(name, rows_path, pictures.read, problems)


def _parquet_files(filesystem: AbstractFileSystem, root: str, name: str, configs: list[str] | None) -> list[str]:
    files = [root] if filesystem.isfile(root) else sorted(filesystem.find(root))
    files = [file for file in files if file.endswith(".parquet")]
    folders = {file: file.removeprefix(f"{root}/").split("/")[0] for file in files}
    check_configs(name, configs, sorted(set(folders.values())))
    wanted = [file for file in files if configs is None or folders[file] in configs]
    training = [file for file in wanted if not _is_other_split(file.removeprefix(f"{root}/"))]
    if not training:
        raise ValueError(f"{name!r}: got no parquet file of training data in {root}, expected some train-*.parquet")
    return training


def _is_other_split(path: str) -> bool:
    """Whether a file is named `test-00000-of-00001.parquet`, or lies in a folder `test`; also for validation."""
    *folders, file = path.split("/")
    return any(folder in OTHER_SPLITS for folder in folders[-1:]) or file.split("-")[0].split(".")[0] in OTHER_SPLITS
