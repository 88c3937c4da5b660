"""Folders on this machine and elsewhere."""

import os

import counting_filesystem
import pytest

from gen_vla.training.data_folder import DataFolder


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


def test_broken_json_is_named(folder):
    with pytest.raises(ValueError, match=r"meta/broken.json that is no JSON"):
        folder.read_json("meta/broken.json")
    with pytest.raises(ValueError, match=r"meta/broken.jsonl whose line 2 is no JSON"):
        folder.read_json_lines("meta/broken.jsonl")


def test_only_local_files_have_a_path(folder):
    path = folder.local_path("meta/info.json")
    assert (path is None) == folder.path.startswith("counted")
    assert folder.describe("meta/info.json").startswith(folder.path)


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="hf://datasets"):
        DataFolder(tmp_path / "nothing")


def test_when_files_were_changed(folder, tmp_path):
    changed = folder.changed()
    if not folder.is_local:
        assert changed == {}
        return
    assert list(changed) == sorted(folder.sizes())
    os.utime(tmp_path / "meta" / "info.json", ns=(5, 5))
    assert folder.changed(["meta/info.json"]) == {"meta/info.json": 5}
    assert folder.changed() == changed | {"meta/info.json": 5}
