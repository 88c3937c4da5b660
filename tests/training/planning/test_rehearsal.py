"""`gen-vla train RECIPE --rehearse MINUTES`: a run's loading, measured."""

import json
import re
from pathlib import Path

import pytest
from tiny_runs import tiny_recipe

from gen_vla.commands.main import main
from gen_vla.training.planning.rehearsal import rehearse
from gen_vla.training.trainer import CoTrainer


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("loaders", [0, 1])
def test_batches_come_as_in_a_run(tmp_path: Path, streaming: bool, loaders: int) -> None:
    recipe = tiny_recipe(tmp_path, data__streaming=streaming, data__num_workers=loaders)
    found = rehearse(recipe, tmp_path, 0)
    assert found.rows == (loaders + 2) * recipe.training.batch_size
    assert found.robot_rows == recipe.training.batch_size / 2
    assert (found.episodes is None) == (not streaming), "rows of a recorded table do not name their episode"
    assert 1 <= (found.episodes or 1) <= found.robot_rows
    assert 0 <= found.padding < 1
    assert min(found.rows_per_second, found.needed, found.seconds_to_batch, found.seconds_to_open) > 0
    assert found.rows_per_core_second > 0
    assert (found.expected is None) == (not streaming)
    assert len(found.loaders) == loaders
    assert found.resident >= found.proportional > sum(found.loaders) / 2
    assert set(found.skipped.values()) == {0}


def test_it_trains_nothing_and_shows_a_line_per_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CoTrainer, "compute_loss", lambda *_, **__: pytest.fail("a step was taken"))
    tiny_recipe(tmp_path)
    assert (
        main(["train", str(tmp_path / "tiny.yaml"), "--work-dir", str(tmp_path), "--rehearse", "0", "--gpu=a100"]) == 0
    )
    shown = capsys.readouterr().out
    assert re.search(r"rows/s that one a100 takes \(--plan\) +│ +\d+\.\d", shown)
    assert re.search(r"bad rows +│ none", shown)
    assert {path.name for path in (tmp_path / "tiny").glob("*")} <= {"tables", "rehearsal.json"}
    written = json.loads((tmp_path / "tiny" / "rehearsal.json").read_text())
    assert written["provenance"]["command"].endswith("--rehearse 0 --gpu=a100")
    assert written["rows"] > written["robot_rows"] > 0


def test_a_stand_in_tokenizer_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_recipe(tmp_path, model={"initial_model": "nowhere"})
    assert main(["train", str(tmp_path / "tiny.yaml"), "--work-dir", str(tmp_path), "--rehearse", "0"]) == 0
    assert "a small tokenizer made for this look" in " ".join(capsys.readouterr().out.split())


def test_a_run_too_short_to_be_timed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, training__steps=1, data__streaming=False)
    with pytest.raises(ValueError, match="got a run of 1 micro-batches, expected more than 1"):
        rehearse(recipe, tmp_path, 0)


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf"])
def test_a_rehearsal_that_would_not_end_is_refused(minutes, capsys):
    assert main(["train", "mini_openvla_plus", "--rehearse", minutes]) == 2
    assert "expected minutes, 0 or more" in capsys.readouterr().err
