"""Rows of a JSON array by number: exact places, one block in memory, damage named, names by hash."""

import json
import pickle

import fsspec
import pytest

from gen_vla.training.vision_language_data import json_rows as vision_language_json
from gen_vla.training.vision_language_data.json_rows import JsonRows, JsonRowsError, NameIndex, local_copy, scan_rows


ROWS = [{"id": 0, "text": "plain"}, {"id": 1, "text": "größer ✓ 🤖"}, {"id": 2, "nested": [{"a": "]},{"}]}, 7, "x"]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_row_is_found_where_it_lies(tmp_path, monkeypatch, block, indent, ascii_only):
    monkeypatch.setattr(vision_language_json, "BLOCK_BYTES", block)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    places = list(scan_rows(path))
    assert [row for _, _, row in places] == ROWS
    rows = JsonRows(path, [(offset, length) for offset, length, _ in places])
    assert len(rows) == 5
    assert list(rows.read([3, 1, 1])) == [(3, 7), (1, ROWS[1]), (1, ROWS[1])]
    assert list(pickle.loads(pickle.dumps(rows)).read([2])) == [(2, ROWS[2])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 0}', r"'\{\"id\": 0\}' at byte 0, expected a list of rows"),
        ("", "'' at byte 0, expected a list of rows"),
        ('[{"id": 0}, {"id": ', r"at byte 12, expected a whole row"),
        ('[{"id": 0} {"id": 1}]', r"at byte 11, expected ',' or '\]'"),
        ('[{"id": 0}, {"id": 1}', r"'' at byte 21, expected ',' or '\]'.*cut off"),
    ],
)
def test_a_damaged_file_names_the_place(tmp_path, text, message):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(JsonRowsError, match=message):
        list(scan_rows(path))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("begin", "between", "end"), [("[", ",", "]"), ("", "\n", ""), ("", "\r\n", "\n\n")])
def test_json_lines_and_byte_order_marks(tmp_path, monkeypatch, block, mark, begin, between, end):
    monkeypatch.setattr(vision_language_json, "BLOCK_BYTES", block)
    rows = [{"id": 0, "text": "größer\u2028✓"}, {"id": 1, "nested": [{"a": "}\n{"}]}, {"id": 2}]
    text = mark + begin + between.join(json.dumps(row, ensure_ascii=False) for row in rows) + end
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode())
    places = list(scan_rows(path))
    assert [row for _, _, row in places] == rows
    read = JsonRows(path, [(offset, length) for offset, length, _ in places]).read([2, 0])
    assert list(read) == [(2, rows[2]), (0, rows[0])]


def test_one_line_is_a_row_where_the_name_says_so(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 0}')
    assert [row for _, _, row in scan_rows(tmp_path / "rows.jsonl")] == [{"id": 0}]
    (tmp_path / "rows.jsonl").write_text('{"id": 0}\n{"id": ')
    with pytest.raises(JsonRowsError, match=r"at byte 10, expected a whole row"):
        list(scan_rows(tmp_path / "rows.jsonl"))


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"id": 0}, "\xff\xfe"]')
    with pytest.raises(JsonRowsError, match="expected UTF-8"):
        list(scan_rows(path))


def test_an_index_finds_all_rows_of_a_name():
    index = NameIndex(["a.jpg", "b.jpg", "a.jpg", "c/a.jpg"])
    assert index.find("a.jpg") == [0, 2]
    assert index.find("c/a.jpg") == [3]
    assert index.find("d.jpg") == []
    assert NameIndex([]).find("a.jpg") == []


def test_a_remote_file_is_fetched_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(vision_language_json, "HF_HOME", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/copied/rows.json", b"[1]")
    first = local_copy(memory, "/copied/rows.json")
    assert first.read_bytes() == b"[1]"
    assert first.is_relative_to(tmp_path)
    before = first.stat().st_mtime_ns
    assert local_copy(memory, "/copied/rows.json") == first
    assert first.stat().st_mtime_ns == before
    memory.pipe_file("/copied/rows.json", b"[1, 2]")
    assert local_copy(memory, "/copied/rows.json").read_bytes() == b"[1, 2]"
    assert local_copy(fsspec.filesystem("file"), str(first)) == first
    memory.rm("/copied", recursive=True)
