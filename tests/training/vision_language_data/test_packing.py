"""Packed sets: the rows of the raw ones, bytes that do not depend on stops and shards, and what is refused."""

import io
import json
import os
import time
from multiprocessing import get_context
from pathlib import Path
from threading import RLock
from typing import Any

import counting_filesystem
import psutil
import pytest
from hub_stand_in import HubStandIn
from huggingface_hub import HfFileSystem
from PIL import Image
from published_sets import ONEVISION, conversation, picture, tar, write_parquet, write_robopoint
from table_data import SETS, mini_recipe, write_table_data
from tqdm import tqdm

from gen_vla.commands.main import main
from gen_vla.processors.rgb_pictures import to_rgb
from gen_vla.training.mixing.row_stream import BufferSize, RowStream, load_frames
from gen_vla.training.mixing.skipped_rows import RowProblems, TooManyBadRows
from gen_vla.training.recipes.packing import pack_recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.vision_language_data import packing
from gen_vla.training.vision_language_data import source as source_module
from gen_vla.training.vision_language_data.packed import PackedSource
from gen_vla.training.vision_language_data.source import network_cost, open_vision_language_source


SOURCE = {"source": {"path": "x", "revision": None, "format": "onevision", "configs": None}}


def opened(folder: Path | str, **settings: Any) -> Any:
    return open_vision_language_source(folder, name="set", problems=RowProblems(1.0, name="set"), **settings)


def all_rows(source: Any) -> list[dict[str, Any]]:
    return list(source.rows(source.shards()))


def pack(source: Any, folder: Path, side: int | None = None, **settings: Any) -> Any:
    return packing.pack_set(source, folder, SOURCE, side, **settings)


def pack_alone(source: Any, folder: Path) -> None:
    """As a process that was not forked: one killed with the lock of its parent's progress bars would keep it."""
    tqdm.set_lock(RLock())
    pack(source, folder, 8)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def onevision(folder: Path, rows: int, size: tuple[int, int] = (24, 16), **changed: Any) -> Path:
    """Rows with a picture each, in row groups of 8; `changed` columns of every third."""
    made = []
    for number in range(rows):
        kind = ("JPEG", "PNG", "WEBP")[number % 3]
        image = {"bytes": picture(number, kind, size), "path": f"{number}.{kind.lower()}"}
        said = conversation("<image>\nWhat?", f"no. {number}", "Sure?", "yes" * (number % 5 + 1))
        row = {"id": str(number), "image": image, "conversations": said, "data_source": "x"}
        made.append(row | (changed if number % 3 == 0 else {}))
    write_parquet(folder / "train-00000-of-00001.parquet", made, ONEVISION, row_group_size=8)
    return folder


def archives(folder: Path, rows: int) -> Path:
    """RoboPoint's layout: two tar archives, and rows without a picture."""
    made: list[dict[str, Any]] = []
    for number in range(rows):
        row: dict[str, Any] = {"id": str(number), "conversations": conversation("What is 1 + 1?", str(number))}
        if number % 4:
            row["image"] = f"{('coco', 'lvis')[number % 2]}/{number}.jpg"
        made.append(row)
    names = [row["image"] for row in made if "image" in row]
    held: dict[str, dict[str, bytes]] = {"coco": {}, "lvis": {}}
    for number, name in enumerate(names):
        held[name.split("/")[0]][name] = picture(number)
    return write_robopoint(folder, made, {stem: tar(pictures) for stem, pictures in held.items()}, {"coco": 2})


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "ROWS_PER_FILE", 16)
    monkeypatch.setattr(packing, "ROWS_PER_GROUP", 4)


@pytest.mark.parametrize("name", SETS)
def test_a_packed_row_is_the_raw_row(tmp_path: Path, name: str) -> None:
    raw = opened(write_table_data(tmp_path) / name)
    manifest = pack(raw, tmp_path / "packed", side=16)
    packed = opened(tmp_path / "packed")
    assert isinstance(packed, PackedSource)
    assert all_rows(packed) == all_rows(raw)
    assert manifest["rows"] == packed.count_rows() == len(all_rows(raw))
    assert manifest["re_encoded"] == 0


def test_larger_pictures_keep_their_shape_and_lossless_ones_their_pixels(tmp_path: Path) -> None:
    raw = opened(onevision(tmp_path / "raw", 6, (60, 40)))
    assert pack(raw, tmp_path / "kept", side=30)["re_encoded"] == 0  # not much larger
    assert pack(raw, tmp_path / "packed", side=20)["re_encoded"] == 6
    for before, after in zip(all_rows(raw), all_rows(opened(tmp_path / "packed")), strict=True):
        (old,), (new,) = before.pop("images"), after.pop("images")
        assert after == before
        assert new["path"] == old["path"]
        shown = Image.open(io.BytesIO(new["bytes"]))
        assert shown.size == (30, 20)
        assert shown.format == ("PNG" if old["path"].endswith("png") else "JPEG")
        if shown.format == "PNG":
            assert to_rgb(new["bytes"]).tobytes() == to_rgb(old["bytes"]).resize((30, 20), 3).tobytes()


@pytest.mark.parametrize(("write", "workers"), [(onevision, 1), (archives, 2)])
def test_shards_make_the_same_files_and_an_incomplete_set_is_refused(tmp_path, small_files, write, workers) -> None:
    raw = opened(write(tmp_path / "raw", 90))
    whole = pack(raw, tmp_path / "whole")
    parts = tmp_path / "parts"
    assert pack(raw, parts, shard=(1, 2)) is None
    with pytest.raises(ValueError, match=r"with \d of \d units, expected all; missing are 0, 2.*--shard"):
        opened(parts)
    assert pack(raw, parts, shard=(0, 2), workers=workers) == whole
    assert files(parts) == files(tmp_path / "whole")
    assert sorted(row["identity"] for row in all_rows(opened(parts))) == sorted(r["identity"] for r in all_rows(raw))
    (parts / "manifest.json").unlink()  # as on the Hub, where no process saw all units
    assert opened(parts).manifest == whole


@pytest.mark.parametrize("write", [onevision, archives])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, small_files, write) -> None:
    raw, folder = write(tmp_path / "raw", 300), tmp_path / "killed"
    whole = pack(opened(raw), tmp_path / "whole", side=8)
    for stop in (1, 5, 9):
        process = get_context("fork").Process(target=pack_alone, args=(opened(raw), folder))
        process.start()
        while process.is_alive() and len(list(folder.glob("*.parquet"))) < stop:
            time.sleep(0.001)
        process.kill()
        process.join()
    assert not (folder / "manifest.json").exists()
    (folder / ".00001-0000.parquet.1").write_bytes(b"half a file")
    assert pack(opened(raw), folder, side=8) == whole
    assert files(folder) == files(tmp_path / "whole")


def test_workers_end_with_a_process_that_was_killed() -> None:
    context = get_context("fork")
    numbers = context.SimpleQueue()
    process = context.Process(target=with_a_worker, args=(numbers,))
    process.start()
    worker = psutil.Process(numbers.get())
    process.kill()
    worker.wait(timeout=20)


def with_a_worker(numbers: Any) -> None:
    worker = get_context("fork").Process(target=waiting, args=(numbers,))
    worker.start()
    worker.join()


def waiting(numbers: Any) -> None:
    packing._end_with_parent()
    numbers.put(os.getpid())
    time.sleep(600)


def test_what_is_there_is_not_made_again(tmp_path, small_files) -> None:
    raw, folder = opened(onevision(tmp_path / "raw", 40)), tmp_path / "packed"
    pack(raw, folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    pack(raw, folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")} == times
    with pytest.raises(ValueError, match="side was None and is 8; delete it, or pack elsewhere"):
        pack(raw, folder, side=8)


def test_bad_rows_are_counted_once_and_too_many_stop(tmp_path, small_files) -> None:
    damaged = io.BytesIO(picture(0, "PNG")).getvalue()
    damaged = damaged[:60] + b"\0" * 40 + damaged[100:]  # its end is there
    folder = onevision(tmp_path / "raw", 60, image={"bytes": damaged, "path": "d.png"})
    pack(opened(folder), tmp_path / "packed", shard=(1, 2))
    manifest = pack(opened(folder), tmp_path / "packed")
    assert (manifest["rows"], manifest["problems"]["seen"]) == (40, 40)
    assert manifest["problems"]["by_reason"] == {"picture that does not decode": 20}
    strict = open_vision_language_source(folder, name="set")
    with pytest.raises(TooManyBadRows, match="got 20 bad rows among 60"):
        pack(strict, tmp_path / "strict")


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path, small_files) -> None:
    pack(opened(onevision(tmp_path / "raw", 8)), tmp_path / "packed")
    file = tmp_path / "packed" / "00000-0000.parquet"
    content = bytearray(file.read_bytes())
    place = content.index(picture(1, "PNG")[:60]) + 50
    content[place] ^= 255  # one bit of a picture that would still decode, or not
    file.write_bytes(content)
    packed = opened(tmp_path / "packed")
    assert [row["identity"].split()[-1] for row in all_rows(packed)] == ["4", "5", "6", "7"]
    assert packed.problems.report()["skipped"] == 4


def test_a_resumed_stream_seeks(tmp_path, small_files) -> None:
    """The rows after a stop are the same, and of those before it no picture is read."""
    pack(opened(onevision(tmp_path / "raw", 64, (96, 64))), tmp_path / "packed")
    filesystem = counting_filesystem.register()
    source = opened(f"counted://{tmp_path / 'packed'}").undecoded()

    def stream(skipping: bool) -> RowStream:
        return RowStream(source, (0, 1), [7], BufferSize(4), skipping=skipping)

    first, resumed = stream(False), stream(True)
    whole = [first.take(30) for _ in range(60)]
    filesystem.fetched.clear()
    for _ in range(50):
        resumed.take(30)
    skipped = sum(filesystem.fetched.values())
    resumed.stop_skipping()
    rest = [resumed.take(30) for _ in range(10)]
    assert rest == whole[50:60]
    needed = sum(len(row["images"][0]["bytes"]) for row in whole[:50])
    assert skipped < needed / 4


@pytest.mark.parametrize(("name", "requests"), [("robopoint", 16), ("onevision", 3), ("llava", 4)])
def test_what_a_raw_set_costs_over_the_network(tmp_path, monkeypatch, name, requests) -> None:
    raw = write_table_data(tmp_path) / name
    (whole,) = [p for p in raw.rglob("*") if p.suffix in (".parquet", ".zip")] or [raw / "images"]
    weight = sum(p.stat().st_size for p in ([whole] if whole.is_file() else whole.iterdir()))
    monkeypatch.setattr(source_module, "BLOCK_BYTES", -(-weight // 2))
    sentence = network_cost(opened(raw), str(raw), readers=8)
    assert f"in {requests} requests for each pass of 8 readers" in sentence


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_data(tmp_path_factory.mktemp("tables"))


def test_the_command_and_a_run_on_what_it_packed(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = [f"--set=data.vision_language.{number}.path={path}" for number, path in enumerate(SETS)]
    hub = "got no packed set at .*packed/llava, expected hf://.* packed there: run gen-vla pack"
    with pytest.raises(FileNotFoundError, match=hub):
        open_data(mini_recipe("openvla_plus_bridge", data__packed="packed", **HUB), tables)
    command = ["pack", "openvla_plus_bridge", "--work-dir", str(tables), "--output", str(tables / "packed"), *raw]
    assert main([*command, "--shard", "4/4"]) == 2
    assert "expected I/N with I from 0 to N - 1" in capsys.readouterr().err
    assert main(command) == 0
    assert "robopoint: 4 rows" in capsys.readouterr().out
    check = ["train", "openvla_plus_bridge", "--work-dir", str(tables), "--check", *raw]
    assert main(check) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "packed from vqasynth, pictures made for 224 pixels a side" in shown
    assert main(["train", "openvla_plus_bridge", "--mini", "--work-dir", str(tables), "--set=data.packed=packed"]) == 0
    log = json.loads((tables / "mini-openvla-plus-bridge" / "training_log.json").read_text())
    (data,) = [entry for entry in log["provenance"]["data"] if entry["name"] == "vision_language/onevision"]
    assert data["packed_from"] == {"path": "onevision", "revision": None, "format": "onevision", "configs": None}
    assert log["data"]["vision_language"] == [4, 4, 4, 4]


def test_a_packed_set_on_the_hub_is_read_as_from_the_disk(tables: Path, tmp_path: Path, hub: HubStandIn) -> None:
    HfFileSystem.clear_instance_cache()
    raw = [f"--set=data.vision_language.{number}.path={path}" for number, path in enumerate(SETS)]
    target = "hf://datasets/gen-vla/packed/questions"
    command = ["pack", "openvla_plus_bridge", f"--work-dir={tables}", f"--output={target}", "--private", *raw]
    assert main(command) == 0
    sent = hub.requests("PUT", "/storage/")
    assert main(command) == 0
    assert hub.requests("PUT", "/storage/") == sent > 0
    assert hub.storage.repositories["gen-vla/packed"].private
    here, there = (
        open_data(mini_recipe("openvla_plus_bridge", data__packed=place, **HUB), tables)
        for place in (str(tables / "packed" / "gen-vla" / "packed"), target)
    )
    assert there.origins["vision_language/llava"]["revision"] == hub.storage.repositories["gen-vla/packed"].sha("main")
    for name in (f"vision_language/{each}" for each in SETS):
        assert there.readings[name].format == "packed"
        ours, read = (list(map(load_frames, all_rows(opened.streams[name]))) for opened in (here, there))
        assert read == ours != []


HUB = {f"data__vision_language__{number}__path": f"hf://datasets/a/{name}" for number, name in enumerate(SETS)}


def test_what_the_recipe_does_not_ask_for_is_refused(tables: Path, tmp_path: Path) -> None:
    recipe = mini_recipe("openvla_plus_bridge", data__packed=str(tmp_path))
    pack_recipe(recipe, tables, tmp_path, side=32, shard=(0, 1), workers=1)
    assert set(open_data(recipe, tables).streams) == {"robot/bridge_orig", *(f"vision_language/{n}" for n in SETS)}
    for setting, value, message in (
        ("data__image_size", 64, "pictures packed at 32 pixels a side"),
        ("data__vision_language__2__configs", ["chart"], "got configs None packed"),
    ):
        with pytest.raises(ValueError, match=message):
            open_data(mini_recipe("openvla_plus_bridge", data__packed=str(tmp_path), **{setting: value}), tables)
