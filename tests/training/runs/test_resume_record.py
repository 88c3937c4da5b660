"""A run resumed on other processes learns the rows that are left; other data, batches and statistics are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from tiny_runs import (
    logged_steps,
    run_tiny,
    watch_places,
    write_questions,
    write_robot_data,
)

from gen_vla.training.mixing.row_stream import BufferSize
from gen_vla.training.resume_record import record_buffers


SETTINGS: dict[str, Any] = {"training__steps": 4, "training__save_steps": 2}  # of 4 rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The work folder of a run of one process, without its last checkpoint, and the rows of its second half."""
    work_dir = tmp_path_factory.mktemp("resumed")
    write_robot_data(work_dir / "robot", rows=16)
    write_questions(work_dir / "questions", rows=16)
    with pytest.MonkeyPatch.context() as patch:
        places = watch_places(patch)
        run_tiny(work_dir, **SETTINGS)
    assert [place for place, _ in places] == list(range(16))
    shutil.rmtree(work_dir / "tiny" / "checkpoints" / "checkpoint-4")
    return work_dir, places[8:]


@pytest.fixture
def stopped(finished: tuple[Path, list[Any]], tmp_path: Path) -> Path:
    """A copy of its work folder."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def resume(work_dir: Path, **changes: Any) -> Path:
    return run_tiny(work_dir, resume=True, **{**SETTINGS, **changes})


def losses(work_dir: Path) -> list[float]:
    return [entry["loss"] for entry in logged_steps(work_dir / "tiny")]


def test_accumulated_batches_in_place_of_large_ones(finished, stopped, monkeypatch):
    whole, places = losses(finished[0]), watch_places(monkeypatch)
    resume(stopped, training__batch_size=2, training__gradient_accumulation_steps=2, data__num_workers=0)
    assert places == finished[1]
    assert losses(stopped) == pytest.approx(whole, rel=1e-4)


def test_another_number_of_rows_a_step_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = "processes 1 x batch_size 4 x gradient_accumulation_steps 1 = 4 rows a step"
    with pytest.raises(ValueError, match=f"gradient_accumulation_steps 2 = 8 rows a step for a run .* with {began}"):
        resume(stopped, training__gradient_accumulation_steps=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=f"got processes 2 x batch_size 4 .* = 8 rows a step for .* with {began}"):
        resume(stopped)


def test_a_stream_goes_on_with_the_buffers_it_began_with(tmp_path: Path) -> None:
    (tmp_path / "resume.json").write_text("{}")
    began = record_buffers(tmp_path, True, lambda: {"robot/a": BufferSize(700, 16)})
    assert record_buffers(tmp_path, False, lambda: {"robot/a": BufferSize(9, 2)}) == began


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rows": 18}, r"robot/tiny had \{'rows': 16, .* and has \{'rows': 18, .*; the statistics of robot/tiny"),
        ({"seed": 1}, "checkpoints: the statistics of robot/tiny differ; expected"),
        ({"instruction": ["wait"] * 16}, "robot/tiny had .* and has .*; expected"),
    ],
)
def test_other_robot_data_is_refused(stopped: Path, columns: dict[str, Any], message: str) -> None:
    shutil.rmtree(stopped / "robot")
    write_robot_data(stopped / "robot", **{"rows": 16, **columns})
    with pytest.raises(ValueError, match=message):
        resume(stopped)


def test_other_questions_are_refused(stopped: Path) -> None:
    shutil.rmtree(stopped / "questions")
    write_questions(stopped / "questions", rows=16, answer=["no"] * 16)
    with pytest.raises(ValueError, match=r"vision_language/scenes had .*expected the rows and statistics"):
        resume(stopped)


def test_data_may_be_written_elsewhere_and_statistics_are_those_of_the_beginning(stopped: Path) -> None:
    """The last digit of a quantile depends on the machine; what the run began with stays."""
    load_from_disk(str(stopped / "robot")).save_to_disk(str(stopped / "moved"), max_shard_size="1KB")
    shutil.rmtree(stopped / "robot")
    (stopped / "moved").rename(stopped / "robot")
    record = stopped / "tiny" / "checkpoints" / "resume.json"
    kept = json.loads(record.read_text())
    kept["norm_stats"]["tiny"]["action"]["q99"][0] *= 1 + 1e-9
    record.write_text(json.dumps(kept))
    folder = resume(stopped)
    assert json.loads((folder / "config.json").read_text())["norm_stats"] == kept["norm_stats"]
