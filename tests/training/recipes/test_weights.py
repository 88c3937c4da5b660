"""How often the data sets of a recipe come."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Witness, run_tiny, tiny_recipe, write_questions

from gen_vla.training.recipes.schema import RecipeError
from gen_vla.training.recipes.sources import open_data


@pytest.mark.parametrize(
    ("cap", "weights", "expected"),
    [
        (500_000, (None, None), [4.0, 20.0]),  # their rows
        (10, (None, None), [4.0, 10.0]),
        (10, (None, 2.5), [4.0, 2.5]),
    ],
)
def test_questions_come_in_proportion_to_a_capped_size(tmp_path: Path, cap: int, weights: Any, expected: Any) -> None:
    write_questions(tmp_path / "more", rows=20)
    sets = [{"path": "questions", "name": "few"}, {"path": "more", "name": "many"}]
    named = [{**entry, **({"weight": weight} if weight else {})} for entry, weight in zip(sets, weights)]
    recipe = tiny_recipe(tmp_path, data__vision_language=named, data__size_cap=cap)
    turns = open_data(recipe, tmp_path).turns(recipe)
    assert (turns.robot, turns.vision_language, turns.robot_share) == ([1.0], expected, 0.5)


def test_a_share_has_to_be_whole_in_every_batch(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"batch_size=4, expected one of which data.robot_share=0.3 is a whole"):
        tiny_recipe(tmp_path, data__robot_share=0.3)


def test_a_run_with_another_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = Witness().watch(monkeypatch)
    run_tiny(tmp_path, data__robot_share=0.75, training__steps=2)
    assert witness.batches == [[True, True, False, True]] * 2
