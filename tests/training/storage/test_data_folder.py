"""Folders on this machine and elsewhere."""

import json
import os

import counting_filesystem
import pytest

from gen_vla.training.storage.data_folder import DataFolder


@pytest.fixture(params=["", "counted://"])
def folder(request, tmp_path):
    counting_filesystem.register()
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"fps": 5}')
    (tmp_path / "meta" / "lines.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "meta" / "broken.json").write_text('{"fps"')
    (tmp_path / "meta" / "broken.jsonl").write_text('{"a": 1}\n{"a"')
    return DataFolder(f"{request.param}{tmp_path}")


def test_files_are_found_and_read(folder):
    assert folder.exists("meta/info.json")
    assert not folder.exists("meta/none.json")
    assert folder.read_json("meta/info.json") == {"fps": 5}
    assert folder.read_json_lines("meta/lines.jsonl") == [{"a": 1}, {"a": 2}]
    assert folder.glob("*/*.jsonl") == ["meta/broken.jsonl", "meta/lines.jsonl"]
    assert folder.sizes("meta")["meta/info.json"] == 10
    assert folder.sizes() == folder.sizes("meta")
    assert folder.subfolder("meta").read_json("info.json") == {"fps": 5}
    with folder.open("meta/info.json") as file:
        file.seek(2)
        assert file.read(3) == b"fps"
    path = folder.local_path("meta/info.json")
    assert (path is None) == folder.path.startswith("counted")
    assert folder.describe("meta/info.json").startswith(folder.path)
    with pytest.raises(ValueError, match=r"meta/broken.json that is no JSON"):
        folder.read_json("meta/broken.json")
    with pytest.raises(ValueError, match=r"meta/broken.jsonl whose line 2 is no JSON"):
        folder.read_json_lines("meta/broken.jsonl")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_at_newlines_alone(tmp_path, separator, end):
    entries = [{"task": f"pick up{separator}the cup"}, {"task": "go"}]
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    if ord(separator) < 32:  # which JSON escapes
        lines = [line.replace(separator, f"\\u{ord(separator):04x}") for line in lines]
    (tmp_path / "lines.jsonl").write_bytes(end.join([*lines, ""]).encode())
    assert DataFolder(tmp_path).read_json_lines("lines.jsonl") == entries


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "info.json").write_bytes(b"\xef\xbb\xbf{}")
    assert DataFolder(tmp_path).read_json("info.json") == {}


@pytest.mark.parametrize("name", ["data [v2]", "a*b", "what?", "50%", "a#b", "a::b", "{a}"])
def test_a_folder_of_any_name(tmp_path, name):
    (tmp_path / name / "below").mkdir(parents=True)
    (tmp_path / name / "below" / "x.json").write_text("1")
    folder = DataFolder(tmp_path / name)
    assert folder.glob("*/x.json") == ["below/x.json"]
    assert folder.sizes() == {"below/x.json": 1}
    assert folder.subfolder("below").read_json("x.json") == 1


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="hf://datasets"):
        DataFolder(tmp_path / "nothing")


def test_when_files_were_changed(folder, tmp_path):
    changed = folder.changed()
    assert list(changed) == sorted(folder.sizes())
    os.utime(tmp_path / "meta" / "info.json", ns=(5, 5))
    if not folder.is_local:  # the time that the other file system gives
        assert {name for name, mark in folder.changed().items() if mark != changed[name]} == {"meta/info.json"}
        assert list(folder.changed(["meta/info.json"])) == ["meta/info.json"]
        return
    assert folder.changed(["meta/info.json"]) == {"meta/info.json": 5}
    assert folder.changed() == changed | {"meta/info.json": 5}
