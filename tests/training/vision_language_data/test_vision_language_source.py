"""Opening a published set: the layout is told from the files, local and remote, and what is missing is named."""

import itertools
import json
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image
from published_sets import ONEVISION, VQASYNTH, conversation, picture, tar, write_llava, write_parquet, write_robopoint

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.vision_language_data import json_rows as vision_language_json
from gen_vla.training.vision_language_data.source import open_vision_language_source


SPLIT_NAME = "train-00000-of-00001.parquet"


def llava_rows(*names: str) -> list[dict[str, Any]]:
    return [{"id": n, "image": n, "conversations": conversation("<image>\nWhat?", f"It is {n}.")} for n in names]


def onevision_rows(answer: str) -> list[dict[str, Any]]:
    image = {"bytes": picture(0), "path": None}
    return [{"id": "0", "image": image, "conversations": conversation("<image>What?", answer), "data_source": "x"}]


def write_set(layout: str, folder) -> None:
    """Each set answers `It is a.jpg.` for one row."""
    image = {"bytes": picture(0), "path": None}
    if layout in ("llava", "unpacked"):
        write_llava(folder, llava_rows("a.jpg"), {"a.jpg": picture(0)}, zipped=layout == "llava")
    elif layout == "robopoint":
        write_robopoint(folder, llava_rows("coco/a.jpg"), {"coco": tar({"coco/a.jpg": picture(0)})}, {"coco": 2})
    elif layout == "robopoint_unpacked":
        write_llava(folder, llava_rows("coco/a.jpg"), {"coco/a.jpg": picture(0)}, False, "robopoint_1432k.json")
    elif layout == "onevision":
        write_parquet(folder / "aokvqa(cauldron,llava_format)" / SPLIT_NAME, onevision_rows("It is a.jpg."), ONEVISION)
    elif layout == "vqasynth":
        asked = {"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": "What?"}]}
        said = {"role": "assistant", "content": [{"type": "text", "text": "It is a.jpg."}]}
        row = {"messages": [asked, said], "images": [image]}
        write_parquet(folder / "data" / SPLIT_NAME, [row], VQASYNTH)
        write_parquet(folder / "data" / "test-00000-of-00001.parquet", [row, row], VQASYNTH)
    else:
        row = {"image": image, "question": "What?", "answer": "It is a.jpg."}
        Dataset.from_list([row]).cast_column("image", Image()).save_to_disk(folder)


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A remote file system, and a cache of this test alone."""
    monkeypatch.setattr(vision_language_json, "HF_HOME", str(tmp_path / "cache"))
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    if filesystem.exists("/there"):
        filesystem.rm("/there", recursive=True)


LAYOUTS = ("llava", "unpacked", "robopoint", "robopoint_unpacked", "onevision", "vqasynth", "recorded")


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_here_and_elsewhere(tmp_path, memory, layout, remote):
    write_set(layout, tmp_path / "set")
    if remote:
        memory.put(str(tmp_path / "set"), "/there", recursive=True)
    source = open_vision_language_source("memory://there" if remote else tmp_path / "set", name="mine")
    assert (source.name, source.count_rows()) == ("mine", 1)
    (row,) = source.rows(source.shards())
    assert [image["bytes"] for image in row["images"]] == [picture(0)]
    (turn,) = row["turns"]
    assert turn["question"] == "What?"
    assert turn["answer"].startswith("It is ")


def test_json_lines_with_messages_are_rows(tmp_path):
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It is a.jpg."}]
    folder = write_llava(tmp_path, [], {"a.jpg": picture(0)}, False, "chat.jsonl")
    (folder / "chat.jsonl").write_text(json.dumps({"images": ["a.jpg"], "messages": messages}) + "\n")
    (row,) = (source := open_vision_language_source(folder, name="mine")).rows(source.shards())
    assert [image["bytes"] for image in row["images"]] == [picture(0)]
    assert row["turns"] == [{"question": "What?", "answer": "It is a.jpg."}]


def test_parquet_rows_may_name_files_and_columns_may_have_other_names(tmp_path):
    rows = [{"images": ["a.jpg"], "conversations": conversation("What?", "A can.")}] * 2
    rows.append({"images": ["gone.jpg"], "conversations": conversation("What?", "A can.")})
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / SPLIT_NAME)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(picture(0))
    problems = RowProblems(limit_share=1.0)
    source = open_vision_language_source(tmp_path, name="mine", problems=problems)
    read = list(source.rows(source.shards()))
    assert [row["images"] for row in read] == [[{"bytes": picture(0), "path": "a.jpg"}]] * 2
    assert problems.report()["by_reason"] == {"missing picture": 1}


def test_the_json_file_itself_can_be_named(tmp_path):
    folder = write_llava(tmp_path, llava_rows("a.jpg"), {"a.jpg": picture(0)}, True, "my_rows.json")
    source = open_vision_language_source(folder / "my_rows.json", name="mine")
    assert [row["identity"] for row in source.rows(source.shards())] == ["my_rows.json row 0 a.jpg"]
    with pytest.raises(ValueError, match=r"with images\.zip, my_rows\.json in it, expected chat\.json, robopoint_"):
        open_vision_language_source(folder, name="mine")


def test_configs_of_onevision_are_its_folders(tmp_path):
    for config in ("chart2text(cauldron)", "sharegpt4o"):
        write_parquet(tmp_path / config / SPLIT_NAME, onevision_rows(config), ONEVISION)
    source = open_vision_language_source(tmp_path, name="onevision", configs=["sharegpt4o"])
    assert [row["turns"][0]["answer"] for row in source.rows(source.shards())] == ["sharegpt4o"]
    assert open_vision_language_source(tmp_path, name="onevision").count_rows() == 2
    with pytest.raises(ValueError, match=r"config 'sharegpt4'; did you mean 'sharegpt4o'\? known: chart2text"):
        open_vision_language_source(tmp_path, name="onevision", configs=["sharegpt4"])


def test_settings_that_mean_nothing_for_a_layout_are_errors(tmp_path):
    write_set("llava", tmp_path / "set")
    with pytest.raises(ValueError, match=r"configs .* for format 'llava', expected them for onevision, robopoint"):
        open_vision_language_source(tmp_path / "set", name="llava", configs=["a"])
    write_set("robopoint_unpacked", tmp_path / "unpacked")
    with pytest.raises(ValueError, match="for unpacked pictures, expected tar archives"):
        open_vision_language_source(tmp_path / "unpacked", name="robopoint", configs=["coco"])


def test_nothing_there_and_nothing_known(tmp_path):
    with pytest.raises(FileNotFoundError, match="no vision-language data set at"):
        open_vision_language_source(tmp_path / "nowhere", name="x")
    messages: dict[Any, str] = {
        "auto": r"with nothing in it, expected chat\.json",
        "llava": "JSON files none in .*expected one chat",
        "onevision": "no parquet file of training data",
    }
    for format, message in messages.items():
        with pytest.raises(ValueError, match=message):
            open_vision_language_source(tmp_path, name="x", format=format)
    with pytest.raises(FileNotFoundError, match=r"no data set at .*written by save_to_disk"):
        open_vision_language_source(tmp_path, name="x", format="recorded")


def test_only_what_rows_ask_for_is_fetched(tmp_path, memory, monkeypatch):
    """Of a remote LLaVA set: the JSON once, the zip's table of contents, and the picture of the row that is read."""
    names = [f"{number}.png" for number in range(50)]
    pictures = {name: picture(number, "PNG", (128, 128)) for number, name in enumerate(names)}
    folder = write_llava(tmp_path / "set", llava_rows(*names), pictures, zipped=True)
    memory.put(str(folder), "/there", recursive=True)
    fetched: list[int] = []
    cat_file = type(memory).cat_file

    def counting(self, path, start=None, end=None, **options):
        data = cat_file(self, path, start, end, **options)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(type(memory), "cat_file", counting)
    source = open_vision_language_source("memory://there", name="llava")
    assert sum(fetched) == 0
    rows = list(itertools.islice(source.rows(source.shards()), 2))
    assert [row["turns"][0]["answer"] for row in rows] == ["It is 0.png.", "It is 1.png."]
    assert len(fetched) == 2
    assert sum(fetched) < (folder / "images.zip").stat().st_size // 20
    assert json.loads(next((tmp_path / "cache").rglob("chat.json")).read_text()) == llava_rows(*names)
