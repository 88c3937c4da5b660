"""Folders, zip files and tar archives: the right bytes, few reads, parts joined, damage told apart from absence."""

import io
import pickle
import struct
import zipfile

import fsspec
import pytest
from published_sets import picture, tar

from gen_vla.training.vision_language_data import archives as vision_language_archives
from gen_vla.training.vision_language_data.archives import (
    BAD_CHECKSUM,
    TAR_ERRORS,
    ArchiveError,
    FolderPictures,
    ZipPictures,
    find_archives,
    stream_members,
)
from gen_vla.training.vision_language_data.rows import MISSING_PICTURE, RowError


LOCAL = fsspec.filesystem("file")


@pytest.fixture
def memory():
    """A remote file system, empty."""
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/set", recursive=True)


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_folder_gives_pictures_from_images_or_from_itself(tmp_path):
    (tmp_path / "images" / "coco").mkdir(parents=True)
    (tmp_path / "images" / "coco" / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    pictures = FolderPictures(LOCAL, str(tmp_path / "images" / ".."))
    assert [pictures.read(name) for name in ("coco/a.jpg", "b.jpg", "coco/a.jpg")] == [b"a", b"b", b"a"]


@pytest.mark.parametrize("name", ["c.jpg", "coco", "../secret", "/etc/hostname"])
def test_what_is_no_picture_of_the_folder_is_missing(tmp_path, name):
    (tmp_path / "set" / "coco").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(RowError, match=MISSING_PICTURE):
        FolderPictures(LOCAL, str(tmp_path / "set")).read(name)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_any_picture_in_one_read(memory, monkeypatch, method):
    members = {"a.jpg": picture(1), "images/b.jpg": picture(2), "größe.jpg": picture(3)}
    memory.pipe_file("/set/images.zip", zip_of(members, method))
    pictures = pickle.loads(pickle.dumps(ZipPictures(memory, "/set/images.zip")))
    reads = []
    cat_file = type(memory).cat_file
    monkeypatch.setattr(type(memory), "cat_file", lambda *a, **k: reads.append(a) or cat_file(*a, **k))
    names = ["größe.jpg", "b.jpg", "images/b.jpg", "images/a.jpg"]
    assert [pictures.read(name) for name in names] == [picture(3), picture(2), picture(2), picture(1)]
    assert len(reads) == len(names)
    with pytest.raises(RowError, match=MISSING_PICTURE):
        pictures.read("c.jpg")


def test_a_long_extra_field_takes_a_second_read(memory):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("a.jpg")
        entry.extra = struct.pack("<HH", 0xCAFE, 5000) + bytes(5000)
        archive.writestr(entry, picture(1))
    memory.pipe_file("/set/images.zip", buffer.getvalue())
    assert ZipPictures(memory, "/set/images.zip").read("a.jpg") == picture(1)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_to_a_zip(memory, method):
    whole = zip_of({"a.jpg": picture(1), "b.jpg": picture(2)}, method)
    memory.pipe_file("/set/images.zip", whole[:200] + bytes([whole[200] ^ 0x10]) + whole[201:])
    pictures = ZipPictures(memory, "/set/images.zip")
    with pytest.raises(RowError, match=BAD_CHECKSUM):
        pictures.read("a.jpg")
    assert pictures.read("b.jpg") == picture(2)
    memory.pipe_file("/set/images.zip", whole[:-30])
    with pytest.raises(ArchiveError, match=r"images\.zip.*no whole zip file.*fetch it again"):
        ZipPictures(memory, "/set/images.zip")


def names_in(folder, *names: str) -> dict[str, list[str]]:
    for name in names:
        (folder / name).touch()
    return {stem: [p.rsplit("/", 1)[-1] for p in paths] for stem, paths in find_archives(LOCAL, str(folder)).items()}


def test_archives_and_their_parts_are_found_in_order(tmp_path):
    published = ["coco.tar.gz", "region_ref.tar.gz.part_01", "region_ref.tar.gz.part_00", "README.md", "x.tar"]
    assert names_in(tmp_path, *published) == {
        "coco": ["coco.tar.gz"],
        "region_ref": ["region_ref.tar.gz.part_00", "region_ref.tar.gz.part_01"],
        "x": ["x.tar"],
    }


@pytest.mark.parametrize(
    "names",
    [
        ("a.tar.gz.part_aa", "a.tar.gz.part_ab"),
        ("a.tar.gz.partaa", "a.tar.gz.partab"),
        ("a.tar.aa", "a.tar.ab"),
        ("a.tgz.000", "a.tgz.001"),
        ("a.tar.gz.part_1", "a.tar.gz.part_2"),
    ],
)
def test_other_ways_to_count_parts(tmp_path, names):
    assert names_in(tmp_path, *names) == {"a": list(names)}


@pytest.mark.parametrize(
    "names",
    [
        ("a.tar.gz.part_00", "a.tar.gz.part_02"),
        ("a.tar.gz.part_01", "a.tar.gz.part_03"),
        ("a.tar.gz.part_02",),
        ("a.tar.gz.part_ab",),
        ("a.tar.gz", "a.tar.gz.part_00"),
        ("a.tar.gz.part_0", "a.tar.gz.part_01"),
    ],
)
def test_a_missing_part_is_an_error_before_anything_is_read(tmp_path, names):
    with pytest.raises(ArchiveError, match=r"of a, expected them all.*fetch the missing"):
        names_in(tmp_path, *names)


MEMBERS = {f"region_ref/{number}.png": picture(number, "PNG") for number in range(20)}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_an_archive_in_parts_streams_as_if_it_were_whole(memory, packed, parts):
    data = tar(MEMBERS, packed)
    size = -(-len(data) // parts)
    paths = [f"/set/region_ref.tar.gz.part_{part:02d}" for part in range(parts)]
    for part, path in enumerate(paths):
        memory.pipe_file(path, data[part * size : (part + 1) * size])
    assert {name: file.read() for name, file in stream_members(memory, paths)} == MEMBERS


def test_a_stream_reads_no_more_than_it_needs(memory, monkeypatch):
    monkeypatch.setattr(vision_language_archives, "STREAM_BYTES", 1024)
    parts = [tar({"a/0.png": picture(0, "PNG", (200, 200))}, packed=False), tar({"a/1.png": picture(1)}, packed=False)]
    for number, data in enumerate(parts):
        memory.pipe_file(f"/set/a.tar.part_{number}", data)
    opened = []
    original = type(memory).open
    monkeypatch.setattr(type(memory), "open", lambda *a, **k: opened.append(a[1]) or original(*a, **k))
    name, _ = next(stream_members(memory, ["/set/a.tar.part_0", "/set/a.tar.part_1"]))
    assert name == "a/0.png"
    assert opened == ["/set/a.tar.part_0"]


@pytest.mark.parametrize("packed", [True, False])
def test_a_cut_archive_gives_what_comes_before_the_cut(memory, monkeypatch, packed):
    monkeypatch.setattr(vision_language_archives, "STREAM_BYTES", 1024)  # the last buffer before the cut is lost
    data = tar(MEMBERS, packed)
    memory.pipe_file("/set/a.tar.gz", data[: len(data) // 2])
    stream, read = stream_members(memory, ["/set/a.tar.gz"]), {}
    with pytest.raises(TAR_ERRORS):
        read.update((name, file.read()) for name, file in stream)
    assert 5 <= len(read) <= 15
    assert all(MEMBERS[name] == data for name, data in read.items())
