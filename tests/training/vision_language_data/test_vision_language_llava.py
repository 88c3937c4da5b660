"""LLaVA rows from folders, zip files and tar archives in parts: exact rows, shards, problems by name."""

import pickle
from collections import Counter
from typing import Any

import fsspec
import numpy as np
import pytest
from published_sets import conversation, picture, tar, write_llava, write_robopoint

from gen_vla.training.mixing.data_source import DataSource
from gen_vla.training.mixing.encoded_pictures import NO_PICTURE
from gen_vla.training.mixing.skipped_rows import RowProblems, TooManyBadRows
from gen_vla.training.vision_language_data import llava as vision_language_llava
from gen_vla.training.vision_language_data.archives import FolderPictures, ZipPictures
from gen_vla.training.vision_language_data.llava import DAMAGED_ARCHIVE, TEXT_ONLY, ArchivedLlavaSource, LlavaSource
from gen_vla.training.vision_language_data.rows import EMPTY_ANSWER, MISSING_PICTURE, NO_CONVERSATION, row_ranges


LOCAL = fsspec.filesystem("file")


def all_rows(source: DataSource) -> list[dict[str, Any]]:
    return list(source.rows(source.shards()))


def one(image: str | None, question: str, answer: str, **more: Any) -> dict[str, Any]:
    """A row of one question."""
    return {**({"image": image} if image else {}), "conversations": conversation(question, answer), **more}


def captions(count: int) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    names = [f"GCC_train_{number:09d}.jpg" for number in range(count)]
    rows = [one(name, "Describe it.\n<image>", f"caption {n}", id=name[:-4]) for n, name in enumerate(names)]
    return rows, {name: picture(number) for number, name in enumerate(names)}


def llava(folder, rows, pictures, zipped=False, problems: RowProblems | None = None) -> LlavaSource:
    write_llava(folder, rows, pictures, zipped)
    reader = ZipPictures(LOCAL, str(folder / "images.zip")) if zipped else FolderPictures(LOCAL, str(folder))
    return LlavaSource("llava", folder / "chat.json", reader.read, problems or RowProblems(limit_share=1.0))


@pytest.mark.parametrize("zipped", [True, False])
def test_captions_of_cc3m_row_for_row(tmp_path, zipped):
    source = llava(tmp_path / "cc3m", *captions(3), zipped)
    assert source.count_rows() == 3
    assert all_rows(source) == [
        {
            "images": [{"bytes": picture(number), "path": f"GCC_train_00000000{number}.jpg"}],
            "turns": [{"question": "Describe it.", "answer": f"caption {number}"}],
            "identity": f"chat.json row {number} GCC_train_00000000{number}.jpg",
        }
        for number in range(3)
    ]
    assert source.problems.report()["seen"] == 3


def test_several_pictures_text_only_rows_and_bad_rows(tmp_path):
    rows: list[Any] = [
        {"image": ["a.jpg", "b.jpg"], "conversations": conversation("<image><image>\nWhich?", "The second.")},
        one(None, "2 + 2?", "4"),
        one("gone.jpg", "<image>\nWhat?", "A can."),
        one("page.jpg", "<image>\nWhat?", "A can."),
        one("a.jpg", "<image>\nWhat?", ""),
        "no row",
        {"image": "b.jpg"},
    ]
    source = llava(tmp_path, rows, {"a.jpg": picture(1), "b.jpg": picture(2), "page.jpg": b"<html>404</html>"})
    good = all_rows(source)
    assert [[image["bytes"] for image in row["images"]] for row in good] == [[picture(1), picture(2)], []]
    assert [row["turns"][0]["question"] for row in good] == ["Which?", "2 + 2?"]
    report = source.problems.report()
    assert report["by_reason"] == {NO_CONVERSATION: 2, MISSING_PICTURE: 1, NO_PICTURE: 1, EMPTY_ANSWER: 1}
    assert report["examples"][0] == f"chat.json row 2 gone.jpg: {MISSING_PICTURE}"


def test_past_the_share_of_bad_rows_the_run_stops(tmp_path):
    rows, pictures = captions(8)
    problems = RowProblems(limit_share=0.2, minimum_rows=5)
    source = llava(tmp_path, rows, dict(list(pictures.items())[:5]), True, problems)
    with pytest.raises(TooManyBadRows, match=r"row 6 GCC_train_000000006\.jpg: missing picture"):
        all_rows(source)


def test_shards_divide_the_rows_and_are_read_without_the_others(tmp_path):
    source = llava(tmp_path, *captions(130))
    assert source.shards()[:2] == ["chat.json:0-3", "chat.json:3-6"]
    assert len(source.shards()) == 44
    halves = [source.shards()[::2], source.shards()[1::2]]
    copies = [pickle.loads(pickle.dumps(source)) for _ in halves]
    read = [row["identity"] for half, copy in zip(halves, copies) for row in copy.rows(half)]
    assert sorted(read) == sorted(row["identity"] for row in all_rows(source))
    asked: list[str] = []
    read_picture = source.read
    source.read = lambda name: asked.append(name) or read_picture(name)
    next(source.rows(["chat.json:126-129"]))
    assert asked == ["GCC_train_000000126.jpg"]


def test_ranges_are_small_for_small_sets_and_bounded_for_large_ones(tmp_path):
    assert row_ranges(3) == [range(0, 1), range(1, 2), range(2, 3)]
    assert row_ranges(0) == []
    assert [len(r) for r in row_ranges(200_500)][-2:] == [1000, 500]
    with pytest.raises(ValueError, match="without a row"):
        llava(tmp_path, [], {})


POINTS = "[(0.461, 0.527), (0.498, 0.521)]"


def robopoint_rows() -> list[dict[str, Any]]:
    """As published: several rows of one picture, COCO with its sub-folder, rows without a picture in between."""
    chat = conversation("What is Python?", "A language.", "And a snake?", "Too.")
    return [
        one("region_ref/7.png", "<image>\nPinpoint free space.", POINTS, id="region_ref/7_left"),
        {"id": "chat_0", "conversations": chat},
        one("coco/train2017/000000033471.jpg", "<image>\nWhat colour?", "Red.", id="000000033471"),
        one("region_ref/7.png", "And to the right?\n<image>", "[(0.9, 0.1)]", id="region_ref/7_right"),
        one("region_ref/3.png", "<image>\nWhere?", "[(0.2, 0.25)]", id="region_ref/3_left"),
    ]


ARCHIVES = {
    "region_ref": {f"region_ref/{number}.png": picture(number, "PNG") for number in (3, 5, 7)},
    "coco": {"coco/train2017/000000033471.jpg": picture(33)},
}


def robopoint(folder, configs=None, rows=None, archives=None, parts=None, **changed) -> ArchivedLlavaSource:
    archives = archives or {name: tar(members) for name, members in ARCHIVES.items()} | changed
    write_robopoint(folder, rows or robopoint_rows(), archives, parts or {"region_ref": 3})
    json_path, problems = folder / "robopoint_1432k.json", RowProblems(limit_share=1.0)
    return ArchivedLlavaSource("robopoint", json_path, LOCAL, str(folder / "images"), problems, configs)


def test_robopoint_in_parts_comes_in_the_order_of_the_archive(tmp_path):
    source = robopoint(tmp_path / "set")
    ranges = ["region_ref.tar:0-1", "region_ref.tar:1-2", "region_ref.tar:2-3"]
    assert source.shards() == ["coco.tar:0-1", *ranges, f"{TEXT_ONLY}:0-1"]
    assert source.count_rows() == 5
    rows = list(source.rows(ranges))
    assert [(row["images"], row["turns"], row["identity"]) for row in rows] == [
        (
            [{"bytes": picture(number, "PNG"), "path": f"region_ref/{number}.png"}],
            [{"question": question, "answer": answer}],
            f"robopoint_1432k.json row {row} region_ref/{number}.png",
        )
        for number, question, answer, row in (
            (3, "Where?", "[(0.2, 0.25)]", 4),
            (7, "Pinpoint free space.", POINTS, 0),
            (7, "And to the right?", "[(0.9, 0.1)]", 3),
        )
    ]
    (text_row,) = pickle.loads(pickle.dumps(source)).rows([f"{TEXT_ONLY}:0-1"])
    assert text_row["images"] == []
    assert [turn["answer"] for turn in text_row["turns"]] == ["A language.", "Too."]
    (coco,) = source.rows(["coco.tar:0-1"])
    assert coco["images"][0]["bytes"] == picture(33)


@pytest.mark.parametrize("member", ["train2017/000000033471.jpg", "./images/coco/train2017/000000033471.jpg"])
def test_folders_above_the_archives_own_do_not_matter(tmp_path, member):
    source = robopoint(tmp_path / "set", coco=tar({member: picture(33)}, packed=False))
    assert [row["images"][0]["bytes"] for row in source.rows(["coco.tar:0-1"])] == [picture(33)]


@pytest.mark.parametrize("member", ["a.jpg", "images/a.jpg", "./images/a.jpg"])
def test_a_single_archive_holds_pictures_without_a_folder(tmp_path, member):
    rows = [one("a.jpg", "<image>\nWhat?", "A can.")]
    (row,) = all_rows(robopoint(tmp_path, rows=rows, archives={"images": tar({member: picture(1)})}))
    assert row["images"] == [{"bytes": picture(1), "path": "a.jpg"}]


def test_configs_choose_archives_and_rows_without_a_picture(tmp_path):
    chosen = robopoint(tmp_path / "a", configs=["region_ref"])
    assert {shard.split(":")[0] for shard in chosen.shards()} == {"region_ref.tar"}
    assert chosen.count_rows() == len(all_rows(chosen)) == 3
    texts = robopoint(tmp_path / "b", configs=[TEXT_ONLY])
    assert [row["images"] for row in all_rows(texts)] == [[]]
    with pytest.raises(ValueError, match=r"unknown config 'region'; did you mean 'region_ref'\? known: coco"):
        robopoint(tmp_path / "c", configs=["region"])


def test_an_archive_that_was_not_fetched_is_an_error_when_opened(tmp_path):
    rows = [*robopoint_rows(), one("gqa/images/1.jpg", "<image>\nWhat?", "A can.")]
    with pytest.raises(ValueError, match=r"1 rows with pictures in gqa, of which there is no archive; fetch it, or"):
        robopoint(tmp_path / "a", rows=rows)
    assert robopoint(tmp_path / "b", rows=rows, configs=["coco"]).count_rows() == 1


def test_pictures_that_are_not_in_their_archive_are_named(tmp_path):
    source = robopoint(tmp_path / "set", coco=tar({"coco/train2017/other.jpg": picture(1)}))
    assert list(source.rows(["coco.tar:0-1"])) == []
    named = f"robopoint_1432k.json row 2 coco/train2017/000000033471.jpg: {MISSING_PICTURE}"
    assert source.problems.report()["examples"] == [named]


def test_a_cut_archive_costs_the_rows_behind_the_cut(tmp_path):
    noise = np.random.default_rng(0).bytes(4_000_000)
    members = {"region_ref/3.png": picture(3, "PNG"), "region_ref/5.png": noise, "region_ref/7.png": picture(7)}
    source = robopoint(tmp_path / "set", region_ref=tar(members)[:3_000_000])
    rows = list(source.rows([shard for shard in source.shards() if "region" in shard]))
    assert [row["images"][0]["path"] for row in rows] == ["region_ref/3.png"]
    assert source.problems.report()["by_reason"] == {DAMAGED_ARCHIVE: 2}


def test_a_picture_is_unpacked_once_for_all_of_its_rows_and_not_at_all_for_none(tmp_path, monkeypatch):
    read = []
    original = vision_language_llava.stream_members

    def counting(*arguments):
        for name, file in original(*arguments):
            reader = file.read
            monkeypatch.setattr(file, "read", lambda reader=reader, name=name: read.append(name) or reader())
            yield name, file

    monkeypatch.setattr(vision_language_llava, "stream_members", counting)
    assert len(all_rows(robopoint(tmp_path / "set", configs=["region_ref"]))) == 3
    assert read == ["region_ref/3.png", "region_ref/7.png"]


def test_readers_divide_every_archive_and_each_reads_it_once(tmp_path, monkeypatch):
    """Of 120 rows in two archives and 60 without a picture, three readers get a third each, well mixed."""
    rows, archives = [], {}
    for stem, count in (("gqa", 90), ("vg", 30)):
        names = [f"{stem}/{number}.jpg" for number in range(count)]
        archives[stem] = tar({name: picture(number) for number, name in enumerate(reversed(names))})
        rows += [one(name, "<image>\nWhat?", name) for name in names]
    rows += [one(None, "2 + 2?", str(number)) for number in range(60)]
    source = robopoint(tmp_path, rows=rows, archives=archives, parts={"gqa": 2})
    streamed = []
    original = vision_language_llava.stream_members
    monkeypatch.setattr(
        vision_language_llava, "stream_members", lambda *a: streamed.append(a[1][0][-16:]) or original(*a)
    )
    answers = []
    for reader in range(3):
        own = [row["turns"][0]["answer"] for row in source.rows(source.shards()[reader::3])]
        assert len(streamed) == 2 * (reader + 1)
        assert 55 <= len(own) <= 65
        answers += own
        kinds = ["".join(filter(str.isalpha, answer)).removesuffix("jpg") for answer in own]
        for start in range(0, 48, 12):
            stretch = Counter(kinds[start : start + 12])
            assert 5 <= stretch["gqa"] <= 7
            assert 1 <= stretch["vg"] <= 3
    assert sorted(answers) == sorted(row["conversations"][1]["value"] for row in rows)
