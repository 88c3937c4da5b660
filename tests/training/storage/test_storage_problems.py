"""Full disks and folders that cannot be made are told in a sentence."""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tiny_runs import tiny_recipe

from gen_vla.commands.main import main
from gen_vla.training.storage.storage_problems import make_work_dir, storage_problem


FULL = Path("/dev/full")  # which takes no byte


def error_of(write: object) -> BaseException:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # which one it is, is the question
        write()  # type: ignore[operator]
    return raised.value


@pytest.mark.skipif(not FULL.is_char_device(), reason="needs /dev/full")
def test_a_full_disk_is_recognised_whoever_writes() -> None:
    plain = storage_problem(error_of(lambda: FULL.write_text("x" * 100000)))
    assert plain is not None
    assert plain.startswith("the disk is full (No space left on device); make room")
    weights = storage_problem(error_of(lambda: torch.save(torch.zeros(100000), FULL)))
    assert weights is not None
    assert weights.startswith("a file could not be written whole, most likely because the disk is full")


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert str(storage_problem(SafetensorError(text))).startswith("the disk is full (Error while serializing")
    assert storage_problem(SafetensorError("Error while deserializing header: HeaderTooLarge")) is None
    assert storage_problem(error_of(lambda: (tmp_path / "nothing").read_text())) is None
    assert storage_problem(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert storage_problem(ValueError("No space left")) is None


def test_a_work_folder_is_made_or_the_reason_is_told(tmp_path: Path) -> None:
    assert make_work_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"got the work folder .*file/c, which cannot be made \(Not a directory\)"):
        make_work_dir(tmp_path / "file" / "c")
    with pytest.raises(OSError, match=r"which cannot be made \(File exists\)"):
        make_work_dir(tmp_path / "file")


@pytest.mark.parametrize("look", [[], ["--check"]])
def test_training_where_no_folder_can_be_made(look: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_recipe(tmp_path)
    (tmp_path / "file").write_text("")
    arguments = ["train", str(tmp_path / "tiny.yaml"), "--work-dir", str(tmp_path / "file"), *look]
    capsys.readouterr()
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("gen-vla: got the work folder ")
    assert message.count("\n") == 1


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file can grow past 100 kB, which looks to a program like a disk that fills up."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_run_whose_disk_fills_up(tmp_path: Path, capsys: pytest.CaptureFixture, small_files: None) -> None:
    tiny_recipe(tmp_path, training__steps=2, training__save_steps=1)
    assert main(["train", str(tmp_path / "tiny.yaml"), "--work-dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "disk is full" in message.splitlines()[-1]
    assert "--resume" in message.splitlines()[-1]
