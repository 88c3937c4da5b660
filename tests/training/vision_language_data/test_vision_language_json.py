"""Rows of a JSON file by number: exact places, one block in memory, damage named, names by hash."""

import json
import pickle

import fsspec
import pytest

from gen_vla.training.vision_language_data import json_rows as vision_language_json
from gen_vla.training.vision_language_data.json_rows import JsonRows, JsonRowsError, NameIndex, local_copy, scan_rows


OBJECTS = [{"id": 0, "text": "größer\u2028✓ 🤖"}, {"id": 1, "nested": [{"a": "]}\n,{"}]}, {"id": 2}]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("rows", "begin", "between", "end", "settings"),
    [
        ([*OBJECTS, 7, "x"], "[", ",", "]", {}),
        ([*OBJECTS, 7, "x"], "[\n", " ,\n", "\n]\n", {"indent": 2}),
        (OBJECTS, "[", ",", "]", {"ensure_ascii": False}),
        (OBJECTS, "", "\n", "", {"ensure_ascii": False}),
        (OBJECTS, "", "\r\n", "\n\n", {}),
    ],
)
def test_every_row_is_found_where_it_lies(tmp_path, monkeypatch, block, mark, rows, begin, between, end, settings):
    monkeypatch.setattr(vision_language_json, "BLOCK_BYTES", block)
    path = tmp_path / "rows.json"
    path.write_bytes((mark + begin + between.join(json.dumps(row, **settings) for row in rows) + end).encode())
    places = list(scan_rows(path))
    assert [row for _, _, row in places] == rows
    found = JsonRows(path, [(offset, length) for offset, length, _ in places])
    assert len(found) == len(rows)
    assert list(found.read([2, 1, 1])) == [(2, rows[2]), (1, rows[1]), (1, rows[1])]
    assert list(pickle.loads(pickle.dumps(found)).read([0])) == [(0, rows[0])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b'{"id": 0}', r"'\{\"id\": 0\}' at byte 0, expected a list of rows"),
        ("rows.json", b"", "'' at byte 0, expected a list of rows"),
        ("rows.json", b'[{"id": 0}, {"id": ', r"at byte 12, expected a whole row"),
        ("rows.json", b'[{"id": 0} {"id": 1}]', r"at byte 11, expected ',' or '\]'"),
        ("rows.json", b'[{"id": 0}, {"id": 1}', r"'' at byte 21, expected ',' or '\]'.*cut off"),
        ("rows.json", b'[{"id": 0}, "\xff\xfe"]', "expected UTF-8"),
        ("rows.jsonl", b'{"id": 0}\n{"id": ', r"at byte 10, expected a whole row"),
    ],
)
def test_a_damaged_file_names_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JsonRowsError, match=message):
        list(scan_rows(tmp_path / name))


def test_one_line_is_a_row_where_the_name_says_so(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 0}')
    assert [row for _, _, row in scan_rows(tmp_path / "rows.jsonl")] == [{"id": 0}]


def test_an_index_finds_all_rows_of_a_name():
    index = NameIndex(["a.jpg", "b.jpg", "a.jpg", "c/a.jpg"])
    assert [index.find(name) for name in ("a.jpg", "c/a.jpg", "d.jpg")] == [[0, 2], [3], []]
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
