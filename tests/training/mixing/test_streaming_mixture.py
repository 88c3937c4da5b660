"""The streamed mixture: exact halves on every process and worker, every row once per pass, resumed exactly."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import counting_filesystem
import numpy as np
import pytest
from robot_data_sets import make_episodes, write_lerobot
from table_data import mini_recipe, write_table_data
from tiny_models import tiny_processor, tiny_statistics
from tiny_runs import Witness, noise, read_log, weights_hash
from torch.utils.data import DataLoader

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.checkpoints import load_model
from gen_vla.training.mixing.encoded_pictures import HeldPictures
from gen_vla.training.mixing.mixture import Turns
from gen_vla.training.mixing.prepared_rows import RowPreparer
from gen_vla.training.mixing.row_stream import CHARACTERS_PER_PICTURE, BufferSize, RowStream, shared_shards
from gen_vla.training.mixing.skipped_rows import RowProblems, TooManyBadRows
from gen_vla.training.mixing.streaming_mixture import Reader, RunShape, StreamingMixture
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.run import run_recipe


class Files:
    """A source whose "files" hold numbered rows; it remembers which of them were opened."""

    def __init__(self, name: str, files: int, rows_per_file: int, broken: tuple[int, ...] = ()):
        self.name, self.files, self.rows_per_file, self.broken = name, files, rows_per_file, broken
        self.opened: list[str] = []
        self.lanes = 1
        self.problems = RowProblems()

    def shards(self) -> list[str]:
        return [str(number) for number in range(self.files)]

    def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            self.opened.append(shard)
            for row in range(self.rows_per_file):
                number = int(shard) * self.rows_per_file + row
                bad = number in self.broken
                yield {
                    "images": [{"bytes": b"no picture", "path": None} if bad else noise(number)],
                    "turns": [{"question": "which?", "answer": str(number)}],
                    "identity": f"{self.name} {number}",
                }

    def count_rows(self) -> int | None:
        return self.files * self.rows_per_file


def stream(source: Files, number: int = 0, total: int = 1, buffer: int = 4, seed: int = 0) -> RowStream:
    return RowStream(source, (number, total), [seed, 0], BufferSize(buffer))


def taken(rows: RowStream, count: int) -> list[int]:
    return [int(rows.take()["turns"][0]["answer"]) for _ in range(count)]


# ---- one set, one reader
def test_every_row_once_per_pass_in_another_order_each_time() -> None:
    rows = stream(Files("s", 4, 5))
    passes = [taken(rows, 20) for _ in range(3)]
    assert all(sorted(one) == list(range(20)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert taken(stream(Files("s", 4, 5)), 60) == list(chain(*passes))
    assert taken(stream(Files("s", 4, 5), seed=1), 20) != passes[0]


def test_without_a_buffer_files_are_shuffled_and_their_rows_are_not() -> None:
    rows = taken(stream(Files("s", 4, 3), buffer=1), 12)
    files = [rows[start : start + 3] for start in range(0, 12, 3)]
    assert sorted(files) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_readers_divide_the_files_and_open_no_others() -> None:
    sources = [Files("s", 5, 3) for _ in range(2)]
    seen = [set(taken(stream(source, number, 2), 30)) for number, source in enumerate(sources)]
    assert seen[0] | seen[1] == set(range(15))
    assert not seen[0] & seen[1]
    assert [set(source.opened) for source in sources] == [{"0", "2", "4"}, {"1", "3"}]


def test_with_fewer_files_than_readers_the_rows_are_divided() -> None:
    seen = [Counter(taken(stream(Files("s", 2, 6), number, 3), 8)) for number in range(3)]
    assert [set(one.values()) for one in seen] == [{2}] * 3  # four rows each, twice
    assert sorted(chain(*seen)) == list(range(12))


def test_a_reader_without_a_row_raises() -> None:
    with pytest.raises(ValueError, match=r"data set s without a row for reader 3 of 4, expected at least one; use"):
        stream(Files("s", 1, 3), 3, 4).take()


@pytest.mark.parametrize("buffer", [1, 4, 100])
def test_looking_ahead_takes_nothing(buffer: int) -> None:
    rows, plain = stream(Files("s", 2, 4), buffer=buffer), taken(stream(Files("s", 2, 4), buffer=buffer), 24)
    for place in range(24):
        ahead = [int(row["turns"][0]["answer"]) for row in rows.ahead()]
        left = 8 - place % 8
        assert sorted(ahead[:left]) == sorted(plain[place : place + left]), "all that is left of the pass"
        assert sorted(ahead[left:]) in ([], list(range(8))), "and behind it the next one"
        assert taken(rows, 1) == plain[place : place + 1]


def test_a_row_of_a_wanted_length_is_near_it_and_every_row_still_comes_once() -> None:
    rows = stream(Files("s", 4, 50), buffer=100)
    lengths = [row["length"] for row in (rows.take(CHARACTERS_PER_PICTURE + len("which?") + 1) for _ in range(5))]
    assert lengths == [CHARACTERS_PER_PICTURE + len("which?") + 1] * 5, "rows 0 to 9 have one digit"
    rows = stream(Files("s", 4, 50), buffer=100)
    numbers = [int(rows.take(1007 + place % 3)["turns"][0]["answer"]) for place in range(200)]
    assert sorted(numbers) == list(range(200))


def test_rows_of_similar_length_are_padded_less() -> None:
    """Answers of a log-normal length, as those of conversations: how much of a micro-batch is padding."""
    lengths = np.exp(np.random.default_rng(0).normal(5.0, 1.0, 4000)).astype(int) + 1

    class Talks(Files):
        def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
            for row in super().rows(shards):
                number = int(row["turns"][0]["answer"])
                yield {**row, "turns": [{"question": "", "answer": "a" * int(lengths[number])}], "number": number}

    def padding(streams: Reader | RowStream) -> tuple[float, list[int]]:
        batches = []
        for batch in range(500):
            some = [streams.take(0, batch) if isinstance(streams, Reader) else streams.take() for _ in range(8)]
            batches.append([(lengths[row["number"]], row["number"]) for row in some])
        filled = sum(length for batch in batches for length, _ in batch)
        seen = [number for batch in batches for _, number in batch]
        return 1 - filled / sum(8 * max(length for length, _ in batch) for batch in batches), seen

    def talks() -> RowStream:
        return RowStream(Talks("s", 40, 100), (0, 1), [0, 0], BufferSize(1000))

    (plain, seen), (alike, again) = (
        padding(talks()),
        padding(Reader([talks()], Turns([], [1.0]), np.random.default_rng(3))),
    )
    assert plain > 0.5
    assert alike < 0.25
    assert sorted(seen) == sorted(again) == list(range(4000)), "every row comes once in a pass"


@pytest.mark.parametrize("initial", [1, 3, 10])
def test_a_buffer_that_fills_slowly_gives_every_row_once_per_pass(initial: int) -> None:
    rows = RowStream(Files("s", 4, 10), (0, 1), [0, 0], BufferSize(10), initial=initial)
    assert [sorted(taken(rows, 40)) for _ in range(2)] == [list(range(40))] * 2
    assert len(rows.kept) == 0
    taken(rows, 12)
    assert len(rows.kept) == 9, "full but for the row that was taken"


@pytest.mark.parametrize(
    ("shards", "readers", "lanes", "sharing"),
    [(8, 8, 1, 1), (6, 8, 1, 2), (1, 4, 1, 4), (50, 8, 16, 4), (128, 8, 16, 1), (12, 2, 16, 2), (3, 1, 16, 1)],
)
def test_as_few_readers_as_possible_share_shards(shards: int, readers: int, lanes: int, sharing: int) -> None:
    names = [str(number) for number in range(shards)]
    divided = [shared_shards(names, (number, readers), lanes) for number in range(readers)]
    assert {each for _, each in divided} == {sharing}
    assert Counter(shard for own, _ in divided for shard in own) == dict.fromkeys(names, sharing)


class Episodes(Files):
    """Files of several episodes each; rows know theirs."""

    def __init__(self, *args: Any, episodes: int = 1, **settings: Any):
        super().__init__(*args, **settings)
        self.lanes, self.episodes = 16, episodes

    def rows(self, shards: list[str]) -> Iterator[dict[str, Any]]:
        length = self.rows_per_file // self.episodes
        for row in super().rows(shards):
            yield {**row, "episode_index": int(row["turns"][0]["answer"]) // length}


@pytest.mark.parametrize(("files", "episodes", "readers"), [(128, 1, 8), (50, 1, 8), (32, 8, 2), (10, 1, 1)])
def test_the_robot_rows_of_a_micro_batch_are_of_different_episodes(files: int, episodes: int, readers: int) -> None:
    """Episodes of ten seconds at 50 Hz; a buffer that holds no more rows than one of them has."""
    for number in {0, readers - 1}:
        source = Episodes("s", files, 500 * episodes, episodes=episodes)
        rows = RowStream(source, (number, readers), [0, 0], BufferSize(500, 16))
        distinct = [len({rows.take()["episode_index"] for _ in range(8)}) for _ in range(400)]
        assert sum(distinct) / len(distinct) >= 7.5
        assert sum(distinct[:20]) / 20 >= 7.5, "from the beginning"


@pytest.mark.parametrize("readers", [1, 4])
def test_every_row_of_lanes_comes_once_per_pass(readers: int) -> None:
    def passes(times: int) -> Counter[int]:
        streams = [RowStream(Episodes("s", 9, 20), (n, readers), [0, 0], BufferSize(30, 16)) for n in range(readers)]
        own = 180 // readers
        return Counter(number for rows in streams for number in taken(rows, times * own))

    assert passes(1) == dict.fromkeys(range(180), 1)
    assert passes(2) == dict.fromkeys(range(180), 2)


# ---- the mixture
def mixture(llama_like: Any, **settings: Any) -> StreamingMixture:
    broken = settings.pop("broken", ())
    names = [f"vision_language/{name}" for name in "abc"]  # nothing here asks what a row's kind is
    sources = {name: Files(name, 6, 4, broken if place == 0 else ()) for place, name in enumerate(names)}
    buffers = dict.fromkeys(sources, BufferSize(settings.pop("buffer", 4)))
    weights = settings.pop("weights", [1.0])
    turns = Turns(weights, [1.0] * (3 - len(weights)))
    settings = {"turns": turns, "batch_size": 4, "buffers": buffers, **settings}
    return StreamingMixture(sources, prepare=RowPreparer(tiny_processor(llama_like), {}), **settings)  # type: ignore[arg-type]


def batches(rows: StreamingMixture, count: int, **settings: Any) -> list[list[str]]:
    """`set:row` of each batch, through a real loader."""

    def names(batch: list[Any]) -> list[str]:
        return [f"{row['source'][-1]}:{row['completion'].strip()}" for row in batch]

    return list(islice(DataLoader(rows, batch_size=rows.batch_size, collate_fn=names, **settings), count))


def test_the_first_kind_takes_every_other_place_and_the_sets_of_the_second_take_turns(llama_like: Any) -> None:
    sets = [[entry[0] for entry in batch] for batch in batches(mixture(llama_like), 4)]
    assert sets == [["a", "b", "a", "c"]] * 4
    odd = [[entry[0] for entry in batch] for batch in batches(mixture(llama_like, batch_size=2), 4)]
    assert odd == [["a", "b"], ["a", "c"]] * 2
    weighted = mixture(llama_like, weights=[3.0, 1.0])
    assert "".join(entry[0] for batch in batches(weighted, 4) for entry in batch[::2]) == "aabaaaba"


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_processes_and_workers_see_disjoint_rows_and_the_same_sets(llama_like: Any, workers: int) -> None:
    loaders = [
        batches(mixture(llama_like, rank=rank, processes=2, workers=workers), 6, num_workers=workers)
        for rank in range(2)
    ]
    for seen in loaders:
        assert all([entry[0] == "a" for entry in batch] == [True, False, True, False] for batch in seen)
    rows = [{entry for batch in seen for entry in batch} for seen in loaders]
    assert not rows[0] & rows[1]
    again = batches(mixture(llama_like, rank=0, processes=2, workers=workers), 6, num_workers=workers)
    assert again == loaders[0]


@pytest.mark.parametrize(("workers", "start"), [(0, 1), (0, 5), (2, 3), (2, 4), (3, 2)])
def test_a_resumed_run_sees_the_rows_of_an_uninterrupted_one(llama_like: Any, workers: int, start: int) -> None:
    settings = {"rank": 1, "processes": 2, "workers": workers, "broken": (2, 9), "max_bad_share": 1.0}
    whole = batches(mixture(llama_like, **settings), 9, num_workers=workers)
    rest = batches(mixture(llama_like, **settings, start=start), 9 - start, num_workers=workers)
    assert rest == whole[start:]


def in_order(llama_like: Any, processes: int, workers: int, size: int, steps: int, **settings: Any) -> list[str]:
    """The rows of a run of 24 a step, from place to place, as its processes learn them."""
    settings |= {
        "processes": processes,
        "workers": workers,
        "batch_size": size,
        "broken": (2, 9),
        "max_bad_share": 1.0,
    }
    seen = [
        batches(mixture(llama_like, rank=rank, **settings), steps * 24 // size // processes, num_workers=workers)
        for rank in range(processes)
    ]
    return [row for together in zip(*seen, strict=True) for batch in together for row in batch]


@pytest.mark.parametrize(
    ("began", "now"),
    [
        ((1, 0, 4), (2, 0, 4)),  # processes, workers, batch size
        ((1, 0, 4), (2, 0, 2)),
        ((2, 0, 4), (1, 0, 12)),
        ((3, 0, 2), (2, 0, 4)),
        ((2, 2, 2), (1, 0, 6)),
        ((2, 0, 6), (2, 2, 2)),
    ],
)
def test_a_run_resumed_in_another_shape_sees_exactly_the_rows_that_are_left(llama_like, began, now):
    whole = in_order(llama_like, *began, steps=3)
    start, shape = 24 // now[0] // now[2], RunShape(began[0], began[2], num_workers=began[1])
    assert in_order(llama_like, *now, steps=2, start=start, began=shape) == whole[24:]
    assert in_order(llama_like, *now, steps=2, start=start) != whole[24:]  # what `began` is for


def test_what_is_skipped_is_not_decoded(llama_like: Any) -> None:
    rows = mixture(llama_like, broken=tuple(range(24)), start=10**6, max_bad_share=0.0)
    stopped = rows.__iter__()
    source = rows.sources["vision_language/a"]
    assert isinstance(source, Files)
    rows.start = 3
    rows.problems["vision_language/a"].minimum_rows = 1
    with pytest.raises(TooManyBadRows, match=r"got 1 bad rows among 1, expected at most 0.00%: picture that does not"):
        next(stopped)  # the first row that is decoded is the first bad one counted
    assert len(source.opened) >= 2


def test_the_next_row_of_the_same_set_stands_in_and_keeps_its_own_place(llama_like: Any) -> None:
    plain = list(chain(*batches(mixture(llama_like), 6)))
    place = 4
    broken = (int(plain[place].partition(":")[2]),)
    mixed = mixture(llama_like, broken=broken, max_bad_share=1.0)
    got = list(islice(iter(mixed), len(plain)))
    names = [f"{row['source'][-1]}:{row['completion'].strip()}" for row in got]
    assert names[place] in [entry for entry in plain[place + 1 :] if entry[0] == "a"]
    assert [*names[:place], *names[place + 1 :]] == [*plain[:place], *plain[place + 1 :]]
    assert [row["replaced"] for row in got].index(True) == place
    report = mixed.problems["vision_language/a"].report()
    assert report["examples"] == [f"vision_language/a {broken[0]}: picture that does not decode"]


def test_few_files_are_said_once(llama_like: Any, caplog: pytest.LogCaptureFixture) -> None:
    mixture(llama_like, processes=4, workers=2)
    assert "vision_language/a has 6 shards for 8 readers (4 processes with 2 workers)" in caplog.text
    caplog.clear()
    mixture(llama_like, processes=4, workers=2, rank=1)
    mixture(llama_like, processes=3, workers=2)
    assert not caplog.text


# ---- videos
def write_videos(folder: Path, version: str) -> Path:
    """Twelve episodes of 4 steps; the video with the third one lacks its last frames."""
    episodes = make_episodes(12, 4, size=64)
    whole = write_lerobot(folder / "whole", episodes, version)
    episodes[2].pictures["image_0"] = episodes[2].pictures["image_0"][:3]
    short = write_lerobot(folder / "short", episodes, version)
    if version == "v2.1":
        name = "videos/chunk-000/observation.images.image_0/episode_000002.mp4"
        (whole / name).write_bytes((short / name).read_bytes())
    return whole


def video_mixture(llama_like: Any, path: str, **settings: Any) -> StreamingMixture:
    problems = RowProblems(limit_share=1.0)
    source = open_robot_source(path, key="mine", problems=problems).undecoded()
    processor = tiny_processor(llama_like, ActionStringProcessor(action_dim=7, decimals=4))
    prepare = RowPreparer(processor, {"mine": tiny_statistics(7)})
    buffers = {"robot/mine": BufferSize(settings.pop("buffer", 6), settings.pop("lanes", 1))}
    settings = {"batch_size": 3, "buffers": buffers, "max_bad_share": 1.0, **settings}
    return StreamingMixture({"robot/mine": source}, Turns([1.0]), prepare, **settings)


def prepared(rows: StreamingMixture, count: int) -> list[tuple[str, str, bool, bytes]]:
    """Everything of each prepared row, pixels included."""
    whole = [(r["identity"], r["completion"], r["replaced"], r["images"][0].tobytes()) for r in islice(rows, count)]
    return [(identity.rpartition("/")[2], *rest) for identity, *rest in whole]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(("start", "buffer", "lanes"), [(1, 6, 1), (5, 1, 1), (9, 6, 4), (40, 11, 16)])  # 114 a pass
def test_a_resumed_stream_of_videos_gives_the_same_pixels(llama_like, tmp_path, version, start, buffer, lanes):
    path, held = str(write_videos(tmp_path, version)), {"robot/mine": HeldPictures(32)}
    settings: dict[str, Any] = {"buffer": buffer, "lanes": lanes, "holds": held}
    whole = prepared(video_mixture(llama_like, path, **settings), 3 * (start + 6))
    rest = prepared(video_mixture(llama_like, path, **settings, start=start), 3 * 6)
    assert rest == whole[3 * start :]


def test_frames_that_are_skipped_are_not_decoded(llama_like: Any, tmp_path: Path) -> None:
    filesystem = counting_filesystem.register()
    rows = video_mixture(llama_like, f"counted://{write_videos(tmp_path, 'v2.1')}", start=36)
    filesystem.fetched.clear()
    (first,) = prepared(rows, 1)
    videos = {name for name in filesystem.fetched if name.endswith(".mp4")}
    assert len(filesystem.fetched) - len(videos) == 12  # the tables of nearly a whole pass were read
    assert len(videos) <= 2  # and the videos of what lies in the buffer
    assert first[0].partition(".")[0] + ".mp4" in videos


def test_a_frame_that_a_video_lacks_is_replaced_counted_and_named(llama_like: Any, tmp_path: Path) -> None:
    rows = video_mixture(llama_like, str(write_videos(tmp_path, "v2.1")))
    got = prepared(rows, 114)
    assert sum(replaced for _, _, replaced, _ in got) == 3  # 6 steps, of which the video has 3
    report = rows.problems["robot/mine"].report()
    assert (report["seen"], report["by_reason"]) == (111, {"frame that a video lacks": 3})
    assert all("episode_000002.parquet episode 2 step" in example for example in report["examples"])


# ---- in a run
def test_a_streamed_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table_data(tmp_path)
    changes = {"training__save_steps": 2, "training__steps": 4}
    recipe = mini_recipe("openvla_plus_bridge", **changes)
    whole = run_recipe(recipe, tmp_path, progress=False)
    (whole / "checkpoints" / "checkpoint-4").rename(tmp_path / "put-away")
    expected = weights_hash(load_model(whole))
    witness = Witness().watch(monkeypatch)
    again = run_recipe(recipe, tmp_path, resume=True, callbacks=[witness], progress=False)
    assert len(witness.batches) == 2
    assert weights_hash(load_model(again)) == expected
    finished = run_recipe(recipe, tmp_path, resume=True, progress=False)
    assert len(witness.batches) == 2, "there was nothing left to train"
    assert weights_hash(load_model(finished)) == expected


def test_tables_of_published_sets_are_written_once_and_train(tmp_path: Path) -> None:
    """The same recipe without streaming: rows come from tables on the disk."""
    write_table_data(tmp_path)
    recipe = mini_recipe("openvla_plus_bridge", data__streaming=False)
    folder = run_recipe(recipe, tmp_path, progress=False)
    data = read_log(folder)["data"]
    assert data["robot"] == [15]  # 6, 7 and 8 steps, of which the transform leaves two less
    assert data["vision_language"] == [4, 4, 4, 4]
    assert len(list((tmp_path / "rows").glob("*.arrow"))) == 5
