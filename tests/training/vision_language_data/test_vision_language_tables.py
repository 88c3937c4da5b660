"""LLaVA-OneVision, VQASynth and recorded questions: exact rows from nested columns, lazily, damage named."""

import io
import pickle
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image
from published_sets import ONEVISION, VQASYNTH, conversation, picture, write_parquet

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.vision_language_data import rows as vision_language_rows
from gen_vla.training.vision_language_data.rows import EMPTY_ANSWER, MISSING_PICTURE, NO_CONVERSATION, WRONG_ORDER
from gen_vla.training.vision_language_data.tables import UNREADABLE, RecordedSource, TableSource


LOCAL = fsspec.filesystem("file")
SPLIT_NAME = "train-00000-of-00001.parquet"


def all_rows(source: Any) -> list[dict[str, Any]]:
    return list(source.rows(source.shards()))


def onevision_row(number: int, question: str = "<image>\nWhat?", answer: str = "A can.", **changed: Any) -> dict:
    image = {"bytes": picture(number), "path": f"{number}.jpg"}
    row = {"id": str(number), "image": image, "conversations": conversation(question, answer), "data_source": "x"}
    return row | changed


def open_tables(*paths: Any, layout: Any = "onevision", problems: RowProblems | None = None) -> TableSource:
    return TableSource(layout, LOCAL, list(map(str, paths)), layout, problems or RowProblems(limit_share=1.0))


def part(kind: str, text: str | None = None, index: int | None = None) -> dict[str, Any]:
    return {"type": kind, "text": text, "index": index}


def test_onevision_row_for_row_with_a_text_only_one(tmp_path):
    path = tmp_path / "magpie" / SPLIT_NAME
    text_only = onevision_row(1, "2 + 2?", "4", image=None)
    write_parquet(path, [onevision_row(0), text_only, onevision_row(2, "What?\n<image>")], ONEVISION)
    source = open_tables(path)
    assert source.shards() == [f"{SPLIT_NAME}:0-2", f"{SPLIT_NAME}:2-3"]
    assert source.count_rows() == 3
    expected = [([{"bytes": picture(n), "path": f"{n}.jpg"}], "What?", "A can.") for n in range(3)]
    expected[1] = ([], "2 + 2?", "4")
    rows = [
        {"images": images, "turns": [{"question": asked, "answer": said}], "identity": f"{SPLIT_NAME} row {number}"}
        for number, (images, asked, said) in enumerate(expected)
    ]
    assert all_rows(source) == rows
    assert list(pickle.loads(pickle.dumps(source)).rows(source.shards()[1:])) == rows[2:]


def test_bad_onevision_rows_are_counted(tmp_path):
    path = tmp_path / SPLIT_NAME
    rows = [
        onevision_row(0, image=None),
        onevision_row(1, image={"bytes": None, "path": "1.jpg"}),
        onevision_row(2, answer=" "),
        onevision_row(3, conversations=conversation("One?", "1", "Two?")),
        onevision_row(4, conversations=None),
        onevision_row(5),
    ]
    write_parquet(path, rows, ONEVISION, row_group_size=10)
    problems = RowProblems(limit_share=1.0)
    (good,) = all_rows(open_tables(path, problems=problems))
    assert good["identity"].endswith("row 5")
    expected = {MISSING_PICTURE: 2, EMPTY_ANSWER: 1, WRONG_ORDER: 1, NO_CONVERSATION: 1}
    assert problems.report()["by_reason"] == expected


def test_vqasynth_row_for_row(tmp_path):
    messages = [
        {"role": "user", "content": [part("image", index=0), part("text", "How far is the can?\n")]},
        {"role": "assistant", "content": [part("text", "The can is 0.53 meters away.")]},
        {"role": "user", "content": [part("text", "And the cup?")]},
        {"role": "assistant", "content": [part("text", "Twice as far.")]},
    ]
    path = tmp_path / "data" / SPLIT_NAME
    row = {"messages": messages, "images": [{"bytes": picture(0, "PNG"), "path": None}]}
    write_parquet(path, [row], VQASYNTH)
    assert all_rows(open_tables(path, layout="vqasynth")) == [
        {
            "images": [{"bytes": picture(0, "PNG"), "path": None}],
            "turns": [
                {"question": "How far is the can?", "answer": "The can is 0.53 meters away."},
                {"question": "And the cup?", "answer": "Twice as far."},
            ],
            "identity": f"{SPLIT_NAME} row 0",
        }
    ]


def test_pictures_of_vqasynth_come_in_the_order_in_which_they_are_named(tmp_path):
    def row(*indices: int | None) -> dict[str, Any]:
        asked = {"role": "user", "content": [*(part("image", index=i) for i in indices), part("text", "Which?")]}
        answer = {"role": "assistant", "content": [part("text", "That one.")]}
        return {"messages": [asked, answer], "images": [{"bytes": picture(n), "path": None} for n in (0, 1)]}

    path = tmp_path / "train.parquet"
    write_parquet(path, [row(1, 0), row(None), row(2), row()], VQASYNTH)
    problems = RowProblems(limit_share=1.0)
    rows = all_rows(open_tables(path, layout="vqasynth", problems=problems))
    shown = [[image["bytes"] for image in row["images"]] for row in rows]
    assert shown == [[picture(1), picture(0)], [picture(0), picture(1)], [picture(0), picture(1)]]
    assert problems.report()["examples"] == [f"train.parquet row 2: {MISSING_PICTURE}"]


def test_several_files_keep_their_folder_in_the_name_of_a_shard(tmp_path):
    paths = [tmp_path / config / SPLIT_NAME for config in ("a(x,y)", "b")]
    for number, path in enumerate(paths):
        write_parquet(path, [onevision_row(number)], ONEVISION)
    source = open_tables(*paths)
    assert source.shards() == [f"{config}/{SPLIT_NAME}:0-1" for config in ("a(x,y)", "b")]


def test_a_missing_column_and_damage_are_errors_when_opened(tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet(path, [{"id": "0"}], pa.schema([("id", pa.string())]))
    with pytest.raises(ValueError, match=r"train\.parquet with columns \['id'\], expected also image, conversations"):
        open_tables(path)
    write_parquet(path, [onevision_row(0)], ONEVISION)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train\.parquet, which is no whole parquet file.*fetch it again"):
        open_tables(path)
    write_parquet(path, [], ONEVISION)
    with pytest.raises(ValueError, match="1 parquet files without a row"):
        open_tables(path)


def test_a_damaged_row_group_costs_its_rows_and_no_others(tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet(path, [onevision_row(number) for number in range(4)], ONEVISION)
    column = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    data[column.dictionary_page_offset or column.data_page_offset] ^= 0xFF
    path.write_bytes(bytes(data))
    problems = RowProblems(limit_share=1.0)
    rows = all_rows(open_tables(path, problems=problems))
    assert [row["identity"] for row in rows] == ["train.parquet row 2", "train.parquet row 3"]
    report = problems.report()
    assert (report["seen"], report["skipped"], report["by_reason"]) == (2, 2, {UNREADABLE: 2})
    assert report["examples"] == [f"train.parquet rows 0 to 1: {UNREADABLE}"]


def test_a_remote_parquet_file_is_read_in_parts(tmp_path):
    """Of ten row groups the first one is fetched, and the footer; the bytes asked for are counted."""
    rows = [
        onevision_row(number, image={"bytes": picture(number, "PNG", (256, 256)), "path": None})
        for number in range(20)
    ]
    write_parquet(tmp_path / "train.parquet", rows, ONEVISION)
    data = (tmp_path / "train.parquet").read_bytes()
    read = []

    class Metered(fsspec.get_filesystem_class("memory")):
        cachable = False

        def _open(self, path, mode="rb", **options):
            file = io.BytesIO(data)
            file.read = lambda size=-1: read.append(size) or io.BytesIO.read(file, size)
            return file

    source = TableSource("onevision", Metered(), ["/train.parquet"], "onevision", RowProblems())
    assert min(read) > 0
    assert sum(read) < len(data) // 10
    read.clear()
    assert len(list(source.rows(source.shards()[:1]))) == 2
    assert min(read) > 0
    assert sum(read) < len(data) // 5


def recorded(folder, rows: list[dict[str, Any]], shards: int = 1):
    dataset = Dataset.from_list(rows).cast_column("image", Image())
    dataset.save_to_disk(folder, num_shards=shards)
    return folder


def question(number: int, answer: str = "two") -> dict[str, Any]:
    image = {"bytes": picture(number, "PNG"), "path": None} if number != 1 else None
    return {"image": image, "question": f"How many {number}?", "answer": answer, "kind": "count", "seed": number}


def test_recorded_questions_row_for_row(tmp_path):
    path = recorded(tmp_path / "questions", [question(0), question(1), question(2, ""), question(3)], shards=2)
    problems = RowProblems(limit_share=1.0)
    source = pickle.loads(pickle.dumps(RecordedSource("scenes", path, problems)))
    assert source.count_rows() == 4
    assert source.shards()[0] == "scenes:0-1"
    assert all_rows(source) == [
        {
            "images": [] if number == 1 else [{"bytes": picture(number, "PNG"), "path": None}],
            "turns": [{"question": f"How many {number}?", "answer": "two"}],
            "identity": f"scenes row {number}",
        }
        for number in (0, 1, 3)
    ]
    assert source.problems.report()["by_reason"] == {EMPTY_ANSWER: 1}


def test_ranges_of_recorded_questions_cross_the_batches_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(vision_language_rows, "SHARDS_WANTED", 3)
    path = recorded(tmp_path / "questions", [question(number) for number in range(50)], shards=4)
    source = RecordedSource("scenes", path, RowProblems())
    assert source.shards() == [f"scenes:{start}" for start in ("0-17", "17-34", "34-50")]
    asked = [row["turns"][0]["question"] for row in source.rows(source.shards()[1:2])]
    assert asked == [f"How many {number}?" for number in range(17, 34)]
    assert [row["turns"][0]["question"] for row in all_rows(source)] == [f"How many {n}?" for n in range(50)]


def test_recorded_questions_that_lack_a_column_or_are_cut_off(tmp_path):
    folder = recorded(tmp_path / "questions", [question(0)])
    (path,) = folder.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"questions that cannot be read .*record or fetch it again"):
        RecordedSource("scenes", folder, RowProblems())
    folder = recorded(tmp_path / "wrong", [{"image": None, "question": "What?"}])
    with pytest.raises(ValueError, match="with columns image, question, expected also answer"):
        RecordedSource("scenes", folder, RowProblems())
