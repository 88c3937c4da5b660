"""What the pages say is so: commands parse, recipes train, figures are those of result files, names of files exist."""

import configparser
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rlds_data_sets import write_rlds
from robot_data_sets import Episode, make_episodes, write_lerobot
from typer.main import get_command

from gen_vla.commands import main as commands_main
from gen_vla.commands.main import main
from gen_vla.training.checkpoints import load_model
from gen_vla.training.recipes.loading import load_recipe


ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "evaluation" / "vqa" / "lm_eval_tasks" / "README.md"]
FINE_TUNE = ROOT / "docs" / "how_to" / "fine_tune.md"
RESULTS = ROOT / "evaluation" / "results"
LAUNCHED = " -m gen_vla.commands.main "
OTHERS = (
    "hf",
    "jq",
    "lm_eval",
    "lerobot-edit-dataset",
    "lerobot-eval",
    "lerobot-record",
    "lerobot-rollout",
    "pip",
    "source",
    "export",
    "pre-commit",
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def script(name: str) -> Any:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language; "" for those without one."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [body for _, kind, body in found if kind == language]


def commands(page: Path) -> list[str]:
    """The lines of its shell blocks, continued ones joined."""
    lines = [block.replace("\\\n", " ") for language in ("", "bash", "sh") for block in blocks(page, language)]
    return [line.strip() for line in "\n".join(lines).splitlines() if line.strip()]


def command_tree() -> dict[str, Any]:
    """Every command as typer declares it, by its words."""

    def leaves(words: str, found: Any) -> Iterator[tuple[str, Any]]:
        for name, member in getattr(found, "commands", {}).items():
            yield from leaves(f"{words} {name}".strip(), member)
        if not hasattr(found, "commands"):
            yield words, found

    return dict(leaves("", get_command(commands_main.app)))


def check(command: str) -> str:
    """The words of a `gen-vla` command, once its arguments are understood."""
    words = shlex.split(command, comments=True)[1:]
    tree = command_tree()
    name = next((" ".join(words[:n]) for n in (3, 2, 1) if " ".join(words[:n]) in tree), None)
    assert name, command
    tree[name].make_context(name, words[len(name.split()) :])
    return name


@each_page
def test_every_command_is_understood(page):
    for command in commands(page):
        first, *rest = shlex.split(command, comments=True)
        if first == "gen-vla":
            check(command)
        elif first in ("accelerate", "sbatch"):
            file = re.search(r"training/\S+", command)
            assert file, command
            assert (ROOT / file[0]).is_file(), command
            arguments = command.partition(LAUNCHED if LAUNCHED in command else file[0])[2].strip()
            check(f"gen-vla {arguments if LAUNCHED in command else f'{Path(file[0]).stem} {arguments}'}")
        elif first == "make":
            assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
        elif first == "python" and rest[0] == "-m":
            assert (ROOT / "serving" / rest[1]).is_dir() or importlib.util.find_spec(rest[1]), command
        elif first == "python":
            assert (ROOT / rest[0]).is_file(), command
        else:
            assert first in OTHERS, f"{page}: nothing checks {command!r}"


def test_the_pages_show_every_command():
    """Nothing that a user can run goes unmentioned."""
    shown = {check(c) for page in PAGES for c in commands(page) if c.startswith("gen-vla ")}
    assert set(command_tree()) <= shown


@each_page
def test_links_and_files_that_are_named_exist(page):
    """Of links the files; `mkdocs build --strict` checks the sections."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text):
        assert (page.parent / target).exists(), target
    tops = "modeling|processors|training|evaluation|serving|commands|model_cards|tests|spaces|docs"
    for name in re.findall(rf"`((?:{tops})/[\w./*-]+)`", text):
        assert list(ROOT.glob(name.rstrip("/"))) or name.endswith(".schema.json"), name


@each_page
def test_yaml_parses_and_python_compiles(page):
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


def test_the_readme_is_short_and_its_first_example_runs(tmp_path, tiny_openvla, monkeypatch):
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    for part in tiny_openvla:
        part.save_pretrained(tmp_path / "model")
    Image.new("RGB", (20, 10)).save(tmp_path / "camera.png")
    monkeypatch.chdir(tmp_path)
    [example] = blocks(ROOT / "README.md", "python")
    assert len([line for line in example.splitlines() if line]) <= 10
    names: dict[str, Any] = {}
    exec(compile(example.replace("gen-vla/mini-openvla-plus", "./model"), "README", "exec"), names)
    assert names["action"].shape == (3,)
    assert names["action"].dtype == np.float32


def test_the_code_of_the_concepts_runs():
    [code] = blocks(ROOT / "docs" / "concepts" / "action_strings.md", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "action_strings.md", "exec"), names)
    assert names["text"] == "+0.0312-0.1200+1.0000"
    np.testing.assert_array_equal(names["actions"], np.array([[0.0312, -0.12, 1.0]], np.float32))


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes of the page, and the data sets they name; the questions are written by a page's own code."""
    folder = tmp_path_factory.mktemp("own")
    for block in blocks(FINE_TUNE, "yaml"):
        name = yaml.safe_load(block)["name"].replace("-", "_")
        (folder / f"{name}.yaml").write_text(block, encoding="utf-8")
    write_lerobot(folder / "my_lerobot_data", make_episodes(2, 5, size=32), "v3.0")
    write_rlds(folder, make_episodes(2, 5, size=32), "my_rlds_data")
    write_lerobot(folder / "my_bimanual_data", two_arms(make_episodes(2, 5, ("cam_high", "cam_low"), 32)), "v2.1")
    Image.new("RGB", (20, 20), "red").save(folder / "cup.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        [code] = blocks(ROOT / "docs" / "how_to" / "co_train.md", "python")
        exec(compile(code, "co_train.md", "exec"), {})
    return folder


def two_arms(episodes: list[Episode]) -> list[Episode]:
    """Actions of 14 dimensions whose grippers, dimensions 6 and 13, have a width of 0 to 0.08."""
    for episode in episodes:
        episode.actions = np.concatenate([episode.actions, episode.actions], axis=1)
        episode.actions[:, [6, 13]] = np.linspace(0, 0.08, len(episode.actions))[:, None]
        episode.states = np.concatenate([episode.states, episode.states], axis=1)
    return episodes


@pytest.mark.parametrize("recipe", ["my_robot", "my_robot_rlds", "my_two_arms"])
def test_a_recipe_of_your_own_trains_as_the_page_says(recipe, work_dir, monkeypatch, capsys):
    [shown] = [c for c in commands(FINE_TUNE) if f" {recipe}.yaml " in c and " --mini" in c]
    monkeypatch.chdir(work_dir)
    assert main(shlex.split(shown)[1:]) == 0, capsys.readouterr().err
    folder = work_dir / f"mini-{recipe.replace('_', '-')}"
    history = json.loads((folder / "training_log.json").read_text())["history"]
    key = recipe.removesuffix("_rlds")
    losses = [entry[f"robot/{key}/loss"] for entry in history if f"robot/{key}/loss" in entry]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    co_trained = any("vision_language/my_questions/loss" in entry for entry in history)
    assert co_trained == (recipe == "my_robot_rlds")
    model = load_model(folder)
    assert list(model.config.norm_stats) == [key]
    assert (folder / "adapter" / "config.json").is_file() == (recipe == "my_two_arms")
    assert model.config.frozen == ("vision" if recipe == "my_two_arms" else "siglip")


def test_a_look_at_the_data_as_the_page_shows_it(work_dir, monkeypatch, capsys):
    [command] = [c for c in commands(FINE_TUNE) if " my_robot.yaml " in c and " --check --set" in c]
    monkeypatch.chdir(work_dir)
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert "robot/my_robot" in capsys.readouterr().out
    assert (work_dir / "my-robot" / "first_rows.png").is_file()
    recipe = load_recipe(work_dir / "my_robot.yaml")
    assert (recipe.model.frozen, recipe.actions.representation, len(recipe.data.questions)) == ("siglip", "string", 4)


def test_the_way_from_episodes_to_figures(tmp_path, monkeypatch, capsys):
    """The page's commands one after the other; training is cut short."""
    written = commands(FINE_TUNE)
    shown = written[written.index(next(c for c in written if " init my_robot " in c)) :]
    shown = shown[: next(place for place, c in enumerate(shown) if "open_loop" in c) + 1]
    assert len(shown) <= 10
    episodes = [episode for seed in range(10) for episode in make_episodes(5, 6, size=32, seed=seed)]
    write_lerobot(tmp_path / "episodes", episodes, "v3.0")
    monkeypatch.chdir(tmp_path)
    for command in shown:
        short = ["--set=training.steps=2"] if command.endswith("my_robot.yaml --work-dir .") else []
        assert main([*shlex.split(command)[1:], *short]) == 0, (command, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "0 or 1 alone: a gripper" in said
    recipe = load_recipe("my_robot.yaml")
    assert (recipe.name, recipe.actions.binary_dims, recipe.data.questions) == ("my-robot", [6], [])
    results = json.loads((tmp_path / "results" / "open_loop.json").read_text())
    assert (results["unnorm_key"], results["episodes"]) == ("my_robot", 5)
    assert np.isfinite(results["normalized"]["policy"]["l1"]["value"])
    assert (tmp_path / "open_loop.png").is_file()


def test_the_way_with_the_robots_state(tmp_path, monkeypatch, capsys):
    """Joints learned relative to the state, which the model is shown; training is cut short."""
    shown = [command for command in commands(FINE_TUNE) if re.search("my[_-]arm", command)]
    assert len(shown) == 4
    episodes = make_episodes(10, 6, size=32)
    for episode in episodes:
        episode.actions[:-1, :6] = episode.states[1:, :6]
    write_lerobot(tmp_path / "episodes", episodes, "v3.0")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "camera.png")
    monkeypatch.chdir(tmp_path)
    for command in shown:
        capsys.readouterr()
        short = ["--set=training.steps=2"] if command.startswith("gen-vla train") else []
        assert main([*shlex.split(command)[1:], *short]) == 0, (command, capsys.readouterr().err)
    answer = json.loads(capsys.readouterr().out)
    assert answer["relative"] == [{"dims": [0, 1, 2, 3, 4, 5], "state": [0, 1, 2, 3, 4, 5]}]
    recipe = load_recipe("my_arm.yaml")
    assert np.shape(answer["action"]) == ((recipe.actions.horizon, 7) if recipe.actions.horizon > 1 else (1, 7))
    assert recipe.data.state


def test_tables_are_those_of_the_result_files():
    tables = script("tables")
    shown: list[str] = []
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text) == text, f"{page.name} is out of date: python docs/tables.py"
        shown += tables.MARKED.findall(text)
    assert sorted(shown) == sorted(tables.TABLES)


def test_holm_multiplies_the_smallest_p_most_and_keeps_their_order():
    assert script("ablation_tables").holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_reference_is_generated(tmp_path, monkeypatch):
    pages = script("reference_pages")
    model = {"frozen": {"enum": ["siglip", None], "default": None}, "name": {}}
    steps = {"type": "integer", "default": 10, "description": "Optimizer steps."}
    schema = {"properties": {"steps": steps, "model": {"$ref": "#/$defs/Model"}}}
    schema["$defs"] = {"Model": {"properties": model, "required": ["name"]}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    monkeypatch.setattr(pages, "SCHEMA", tmp_path / "schema.json")
    text = pages.on_page_markdown("<!-- generated: settings -->")
    assert "| `steps` | integer | `10` | Optimizer steps. |" in text
    assert "| `model` | [settings](#model) |  |  |" in text
    assert "## `model` {: #model }" in text
    assert '| `frozen` | `"siglip"`, `null` | `null` |  |' in text
    assert "| `name` | any | required |  |" in text
    commands = pages.on_page_markdown("<!-- generated: commands -->")
    assert "## `gen-vla train`\n\nTrain a recipe." in commands
    assert "| `MODEL` | A folder, or a name on the Hub or in the cache. | required |" in commands
    assert "| `--robot` | The robot, and with it the tasks. One of `widowx`, `google_robot`. | required |" in commands
    assert "| `--every` | Ask at every n-th step of an episode. | `10` |" in commands
    assert "| `--dual`, `--no-dual` |" in commands


def test_citation_is_valid():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    people = [*citation["authors"], *(person for entry in citation["references"] for person in entry["authors"])]
    assert all(set(person) in ({"name"}, {"family-names", "given-names"}) for person in people)
    for entry in (citation, *citation["references"]):
        assert {"type", "title", "authors"} <= entry.keys()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert citation["version"] == setup["metadata"]["version"]
    assert citation["license"] == setup["metadata"]["license"]
    template = (ROOT / "model_cards" / "template.md").read_text(encoding="utf-8")
    assert citation["title"] in template
    assert f"version = {{{citation['version']}}}" in template


def test_the_changelog_keeps_its_form():
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Changelog"
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in versions[1:])
    kinds = {line for line in lines if line.startswith("### ")}
    assert kinds <= {f"### {kind}" for kind in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}
