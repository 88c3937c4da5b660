"""`gen-vla ablation`: every row loads, finished work is kept, and the tables name the paper's rows."""

from pathlib import Path

import pytest
import yaml

from gen_vla.commands import ablation
from gen_vla.commands.main import main
from gen_vla.evaluation.recording.question_kinds import KINDS
from gen_vla.evaluation.tabletop import episodes
from gen_vla.training.recipes.loading import as_settings, load_recipe


TINY = ["training.steps=2", "data.robot.0.record.episodes_per_task=1", "data.vision_language.0.record.count=40"]


@pytest.mark.parametrize("row", ablation.ROWS)
def test_rows_are_what_their_names_say(row: str) -> None:
    recipe = load_recipe(ablation.RECIPE, ablation.Run(row, 0, Path()).settings(processes=2))
    letters = {"openvla-all-frozen": "dsc", "openvla-inst-aug": "", "pi0": ""}
    has = "dsc" if row.startswith("openvla-plus") else letters.get(row, row.removeprefix("openvla").strip("-"))
    assert (recipe.model.frozen is not None) == ("d" in has)
    assert (recipe.actions.representation == "string") == ("s" in has)
    assert bool(recipe.data.questions) == ("c" in has)
    robot_rows = 2 * recipe.training.batch_size * (recipe.data.robot_share if "c" in has else 1)
    assert robot_rows == ablation.ROBOT_ROWS, "every row sees as many demonstrations"


def test_every_kind_of_question_is_left_out_by_one_row() -> None:
    assert sorted(kind for kinds in ablation.KINDS.values() for kind in kinds) == sorted(KINDS)
    recipe = load_recipe(ablation.RECIPE, ablation.Run("openvla-plus-no-points", 0, Path()).settings(processes=2))
    (questions,) = recipe.data.questions
    assert questions.record is not None
    assert set(KINDS) - set(questions.record.kinds or []) == {"point", "gripper", "gripper_offset"}


def in_this_process(*arguments: object) -> None:
    """A step of the ablation without the seconds in which a new interpreter imports torch, on fewer pictures."""
    assert main([str(argument).replace("--samples=1000", "--samples=100") for argument in arguments]) == 0


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "command", in_this_process)
    for mode, looks in episodes.LOOKS.items():
        monkeypatch.setitem(episodes.LOOKS, mode, looks[::4])  # one of each family
    monkeypatch.setattr(episodes, "MAX_STEPS", dict.fromkeys(episodes.MAX_STEPS, 3))  # nothing is done in 40, either
    words = [
        "ablation",
        f"--work-dir={tmp_path}",
        "--seeds=1",
        "--episodes=1",
        "--questions=27",
        "--demonstrations=1",
        "--processes=1",
        "--tasks=close_drawer",
    ]
    words += [f"--set={entry}" for entry in TINY]
    assert main([*words, "--rows=openvla-sc"]) == 0
    report = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "OpenVLA+SC" in report
    run = ablation.Run("openvla-sc", 0, tmp_path)
    assert run.left() == []
    (run.results / "questions_home.json").unlink()
    called: list[tuple[object, ...]] = []
    monkeypatch.setattr(ablation, "command", lambda *arguments: called.append(arguments))
    assert main([*words, "--rows=openvla-sc"]) == 0
    assert [arguments[1] for arguments in called] == ["scene_questions", "report"]
    capfd.readouterr()
    assert main([*words, "--rows=openvla-sc,openvla", "--status"]) == 0
    shown = capfd.readouterr().out
    assert "1 left: questions_home.json" in shown
    assert "13 left: training" in shown
    assert main([*words, "--rows=openvla-x"]) == 2
    assert "got the rows openvla-x, expected some of openvla-plus, openvla," in capfd.readouterr().err


def test_a_model_counts_for_the_recipe_that_it_was_trained_with(tmp_path: Path) -> None:
    """Also where its file is older than one of the settings."""
    recipe = ablation.Run("openvla-sc", 0, tmp_path).recipe(1, [])
    settings = as_settings(recipe)
    del settings["data"]["group_by_length"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    ablation.check_same_recipe(recipe, tmp_path)
    with pytest.raises(ValueError, match="trained with other settings"):
        ablation.check_same_recipe(ablation.Run("openvla-sc", 1, tmp_path).recipe(1, []), tmp_path)
