"""Recipes are complete and strict: what is written is what runs, and what is misspelt does not."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tiny_runs import tiny_settings

from gen_vla.training.recipes.loading import RECIPES, as_settings, load_recipe, recipe_names
from gen_vla.training.recipes.schema import SCHEMA_FILE, RecipeError, json_schema


def written(folder: Path, settings: Any, name: str = "mine") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_loads_and_reads_back_as_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name.replace("_", "-")
    assert recipe.description.strip()
    assert load_recipe(written(tmp_path, as_settings(recipe))) == recipe


def test_a_recipe_is_found_by_path_or_by_name() -> None:
    by_name = load_recipe("mini_vlm")
    assert load_recipe("mini_vlm.yaml") == by_name
    folder = Path(__file__).resolve().parents[3] / "training" / "recipes"
    assert load_recipe(folder / "mini_vlm.yaml") == by_name
    assert load_recipe(str(folder / "mini_vlm.yaml")) == by_name


def test_defaults_and_what_has_none(tmp_path: Path) -> None:
    source = [{"path": "robot", "key": "k"}]
    recipe = load_recipe(
        written(tmp_path, {"name": "a", "description": "b", "training": {"steps": 3}, "data": {"robot": source}})
    )
    assert (recipe.training.batch_size, recipe.training.learning_rate) == (16, 2e-5)
    assert (recipe.actions.action_dim, recipe.actions.binary_dims, recipe.loss.balance) == (7, [6], "token")
    with pytest.raises(RecipeError, match=r"got no training\.steps, expected it: it has no default"):
        load_recipe(written(tmp_path, {"name": "a", "description": "b", "training": {}}))
    with pytest.raises(RecipeError, match=r"got no name, .*\ngot no training, expected it"):
        load_recipe(written(tmp_path, {"description": "b"}))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"trainning": {"steps": 1}}, r"got unknown key 'trainning'; did you mean 'training'\? known: name,"),
        ({"training__lerning_rate": 1.0}, r"key 'training.lerning_rate'; did you mean 'learning_rate'\? known: st"),
        ({"model__frozn": None}, r"got unknown key 'model.frozn'; did you mean 'frozen'\?"),
        ({"zzz": 1}, r"got unknown key 'zzz'; known: name,"),
        ({"extend": "base"}, r"got unknown key 'extend'; did you mean 'extends'\?"),
        ({"data__robot": [{"path": "a", "kye": "b"}]}, r"got unknown key 'data.robot.0.kye'; did you mean 'key'"),
        (
            {"data__robot": [{"path": "a", "key": "b", "record": {"episodes_per_tsk": 1}}]},
            r"unknown key 'data.robot.0.record.episodes_per_tsk'; did you mean 'episodes_per_task'",
        ),
        ({"training__steps": "ten"}, r"training.steps: got 'ten' \(str\), expected a valid integer$"),
        ({"training__steps": 0}, r"training.steps: got 0 \(int\), expected greater than or equal to 1"),
        ({"training__learning_rate": float("nan")}, r"learning_rate: got nan \(float\), expected a finite number"),
        ({"training__adam_beta2": 1.0}, r"adam_beta2: got 1.0 \(float\), expected less than 1"),
        ({"loss__decimal_weights": [1.0, -1.0]}, r"loss.decimal_weights.1: got -1.0 \(float\), expected greater than"),
        ({"model__frozen": "clip"}, r"model.frozen: got 'clip' \(str\), expected 'siglip', 'dino', 'all' or 'vision'"),
        ({"actions__binary_dims": 6}, r"binary_dims: got 6 \(int\), expected a valid list"),
        ({"actions__normalization": "minmax"}, r"actions.normalization: got 'minmax' \(str\), expected 'quantiles', "),
        ({"actions__normalization": ["min_max"]}, "a normalization of 1 dimensions with action_dim=3, expected"),
        ({"model__dino": ["a"]}, r"model.dino: got \['a'\] \(list\), expected settings by name"),
        ({"data": "robot"}, r"data: got 'robot' \(str\), expected settings by name"),
        ({"name": date(2026, 1, 1)}, "Object of type date .* write a date in quotes"),
        ({"name": "../elsewhere"}, r"got name '../elsewhere', expected letters"),
    ],
)
def test_unknown_keys_and_wrong_values_say_where_and_what_was_expected(setting, expected, tmp_path):
    with pytest.raises(RecipeError, match=expected):
        load_recipe(written(tmp_path, tiny_settings(**setting)))


def test_yaml_reads_an_exponent_without_a_point_as_text(tmp_path: Path) -> None:
    text = "name: a\ndescription: b\ntraining: {steps: 1, learning_rate: RATE}\ndata: {robot: [{path: a, key: b}]}\n"
    with pytest.raises(RecipeError, match=r"got '2e-5' \(str\), expected a valid number \(YAML .* write 2\.0e-5"):
        load_recipe(written(tmp_path, text.replace("RATE", "2e-5")))
    assert load_recipe(written(tmp_path, text.replace("RATE", "2.0e-5"))).training.learning_rate == 2e-5
    assert load_recipe(written(tmp_path, text.replace("RATE", "1"))).training.learning_rate == 1.0


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    mistakes = {"training__steps": True, "model__frozn": None, "actions__binary_dims": [9]}
    with pytest.raises(RecipeError) as told:
        load_recipe(written(tmp_path, tiny_settings(**mistakes)))
    lines = str(told.value).splitlines()
    lines[0] = lines[0].removeprefix(f"{tmp_path / 'mine.yaml'}: ")
    beginnings = ["actions: got binary_dims=[9] with ", "got unknown key 'model.frozn'", "training.steps: got True"]
    assert [line[: len(begin)] for line, begin in zip(sorted(lines), beginnings, strict=True)] == beginnings


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"got training.batch_size=3, expected an even number"):
        load_recipe(written(tmp_path, tiny_settings(training__batch_size=3)))
    only_robot = tiny_settings(training__batch_size=3, data__vision_language=[])
    assert load_recipe(written(tmp_path, only_robot)).training.batch_size == 3
    with pytest.raises(RecipeError, match=r"got no data sets"):
        load_recipe(written(tmp_path, tiny_settings(data__vision_language=[], data__robot=[])))
    twice = [{"path": "robot", "key": "same"}, {"path": "other", "key": "same"}]
    with pytest.raises(RecipeError, match=r"got the key 'same' for 2 robot data sets"):
        load_recipe(written(tmp_path, tiny_settings(data__robot=twice)))


def test_extends_merges_single_settings_of_a_file_or_a_shipped_recipe(tmp_path: Path) -> None:
    base = load_recipe(written(tmp_path, tiny_settings(), "base"))
    changes = {"extends": "base.yaml", "name": "row", "model": {"frozen": None, "text": {"num_hidden_layers": 3}}}
    row = load_recipe(written(tmp_path, changes, "row"))
    assert row.model.frozen is None
    assert row.model.text == {**base.model.text, "num_hidden_layers": 3}
    assert (row.name, row.training, row.data) == ("row", base.training, base.data)
    third = {"extends": "row.yaml", "name": "third", "data": {"vision_language": []}}
    last = load_recipe(written(tmp_path, third, "third"))
    assert last.data.vision_language == []
    assert last.data.robot == base.data.robot
    assert last.model == row.model
    recipe = load_recipe(written(tmp_path, {"extends": "mini_vlm", "name": "short", "training": {"steps": 1}}))
    assert recipe.training.steps == 1
    assert recipe.model == load_recipe("mini_vlm").model


def test_a_circle_of_recipes_is_named(tmp_path: Path) -> None:
    written(tmp_path, {"extends": "b.yaml"}, "a")
    written(tmp_path, {"extends": "a.yaml"}, "b")
    with pytest.raises(RecipeError, match=r"a\.yaml, b\.yaml, a\.yaml.*circle"):
        load_recipe(tmp_path / "a.yaml")
    with pytest.raises(RecipeError, match=r"extends: got 3 \(int\), expected the name or the file of a recipe"):
        load_recipe(written(tmp_path, {"extends": 3}))


def test_extends_takes_several_each_over_the_one_before(tmp_path: Path) -> None:
    written(tmp_path, tiny_settings(), "base")
    written(tmp_path, {"training": {"steps": 2, "batch_size": 6}, "model": {"frozen": "dino"}}, "_first")
    written(tmp_path, {"training": {"steps": 3}}, "_second")
    row = load_recipe(
        written(tmp_path, {"extends": ["base.yaml", "_first.yaml", "_second.yaml"], "model": {"frozen": None}}, "row")
    )
    assert (row.training.steps, row.training.batch_size, row.model.frozen) == (3, 6, None)
    assert row.model.text == load_recipe(tmp_path / "base.yaml").model.text


def test_unknown_recipes_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"got recipe 'mini_vml', which is no file; did you mean 'mini_vlm'\? known"):
        load_recipe("mini_vml")
    with pytest.raises(RecipeError, match=r"which is no file; known: mini_"):
        load_recipe(tmp_path / "qqqqqqqq.yaml")
    with pytest.raises(RecipeError, match=r"mine\.yaml, which is not YAML"):
        load_recipe(written(tmp_path, "a: [1"))
    with pytest.raises(RecipeError, match=r"mine\.yaml holding list, expected settings by name"):
        load_recipe(written(tmp_path, "- a\n"))
    with pytest.raises(RecipeError, match=r"mine\.yaml holding NoneType"):
        load_recipe(written(tmp_path, ""))
    with pytest.raises(RecipeError, match=r"key 'steps' twice"):
        load_recipe(written(tmp_path, "name: a\ndescription: b\ntraining:\n  steps: 1\n  steps: 2\n"))


def test_overrides_by_dotted_name(tmp_path: Path) -> None:
    path = written(tmp_path, tiny_settings())
    changed = {"training.steps": 10, "model.text.num_hidden_layers": 1, "loss.balance": "source", "name": "other"}
    recipe = load_recipe(path, changed)
    assert (recipe.training.steps, recipe.name, recipe.loss.balance) == (10, "other", "source")
    assert recipe.model.text["num_hidden_layers"] == 1
    assert recipe.training.batch_size == 4
    with pytest.raises(RecipeError, match=r"unknown key 'training.stpes'; did you mean 'steps'\?"):
        load_recipe(path, {"training.stpes": 10})
    with pytest.raises(RecipeError, match=r"unknown key 'trainig'; did you mean 'training'\?"):
        load_recipe(path, {"trainig.steps": 10})
    robot = load_recipe(path, {"data.robot.0.path": "elsewhere"}).data.robot
    assert robot[0].path == "elsewhere"
    with pytest.raises(RecipeError, match=r"entry '7' of a list of \d, expected a number from 0"):
        load_recipe(path, {"data.robot.7.path": "elsewhere"})
    for wrong in ("name.first", "training.steps.more"):
        with pytest.raises(RecipeError, match=rf"got override '{wrong}'.*expected settings by name"):
            load_recipe(path, {wrong: "x"})


def test_the_schema_for_editors_is_current() -> None:
    """If not: python -m gen_vla.training.recipes.schema."""
    schema = json_schema()
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == schema
    for section in (schema, *schema["$defs"].values()):
        for name, setting in section["properties"].items():
            assert "$ref" in setting or len(setting["description"]) > 5, name
            if setting.get("type") in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & setting.keys(), name


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_files_that_extend_others_are_right_in_an_editor(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), json_schema())


def test_a_key_written_twice_is_no_choice(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"key 'steps' twice"):
        load_recipe(written(tmp_path, "name: a\ndescription: b\ntraining:\n  steps: 1\n  steps: 2\n"))


@pytest.mark.parametrize("place", ["robot", "vision_language"])
def test_evaluation_seeds_are_not_trained_on(place: str) -> None:
    with pytest.raises(RecipeError, match="less than 1000000"):
        load_recipe("mini_openvla_plus", {f"data.{place}.0.record.seed": 1_000_000})
