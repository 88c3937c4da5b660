"""The distribution is the folders, all of them, and nothing that needs them to be installed in place."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gen_vla.modeling
import gen_vla.processors
from gen_vla.training.recipes.loading import recipe_names


ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("modeling", "processors", "training", "evaluation", "serving", "commands")
DATA = ("training.recipes", "evaluation.vqa.lm_eval_tasks", "model_cards")  # packages of data files
IN_BOTH = {path.name for path in (ROOT / "modeling").glob("*.py")} & {
    p.name for p in (ROOT / "processors").glob("*.py")
}
LINKED = sorted(IN_BOTH - {"__init__.py"})


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def pairs(lines: str) -> dict[str, str]:
    """`a = b` lines of one setting."""
    split = (line.partition("=") for line in lines.strip().splitlines())
    return {name.strip(): value.strip() for name, _, value in split}


def test_the_packages_are_the_folders(setup):
    packages = setup["options"]["packages"].split()
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for top in FOLDERS
        for path in ROOT.glob(f"{top}/**/__init__.py")
        if not (path.parent / "pyproject.toml").exists()  # a plugin with packaging of its own
    }
    folders |= {name.replace(".", "/") for name in DATA}
    assert {f"gen_vla.{folder.replace('/', '.')}" for folder in folders} == set(packages)
    assert pairs(setup["options"]["package_dir"]) == {f"gen_vla.{f.replace('/', '.')}": f for f in folders}
    assert not (ROOT / "gen_vla").exists(), "the namespace is virtual"
    assert not list(ROOT.glob("spaces/**/__init__.py")), "it would shadow the package `spaces`"
    others = {path.parent.name for path in ROOT.glob("*/__init__.py")} - set(FOLDERS)
    assert not others, "these folders hold a package that setup.cfg does not list"


def test_no_module_hides_a_dependency():
    taken = "datasets evaluate gradio metaworld numpy tokenizers torch transformers trl yaml"
    names = {path.stem for folder in ("modeling", "processors") for path in (ROOT / folder).glob("*.py")}
    assert len(names) > 20
    assert not names & {*taken.split(), *sys.stdlib_module_names}


def test_both_halves_share_the_action_format():
    assert {"action_strings.py", "action_grammar.py", "action_statistics.py"} <= set(LINKED)


@pytest.mark.parametrize("name", LINKED)
def test_what_both_halves_need_exists_once(name):
    link, home = ROOT / "modeling" / name, ROOT / "processors" / name
    assert not home.is_symlink()
    assert link.read_bytes() == home.read_bytes()
    if link.is_symlink():  # a checkout without symbolic links has copies
        assert os.readlink(link) == f"../processors/{name}", "a link out of the repository breaks on every clone"


def test_halves_that_ship_never_import_each_other_nor_the_package():
    for folder, other in (("modeling", "processors"), ("processors", "modeling")):
        for path in (ROOT / folder).glob("*.py"):
            if path.name == "__init__.py" or path.name.startswith("convert_"):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not [name for name in names if name.startswith("gen_vla") or other in name.split(".")], path


def test_auto_classes_are_registered_in_the_two_files_that_never_ship():
    registering = set()
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        if any(isinstance(call.func, ast.Attribute) and call.func.attr == "register_for_auto_class" for call in calls):
            registering.add(path.relative_to(ROOT).as_posix())
    assert registering == {"modeling/__init__.py", "processors/__init__.py"}
    assert gen_vla.modeling.OpenVLAPlusForVision2Seq._auto_class == "AutoModelForImageTextToText"
    assert gen_vla.modeling.OpenVLAPlusConfig._auto_class == "AutoConfig"
    assert gen_vla.processors.OpenVLAPlusProcessor._auto_class == "AutoProcessor"
    assert gen_vla.processors.OpenVLAPlusImageProcessor._auto_class == "AutoImageProcessor"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built offline from a copy, so that no build folder appears in the repository."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in (*FOLDERS, "model_cards"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    built = subprocess.run([*command, "-w", str(target), str(source)], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-3000:]
    (file,) = target.glob("gen_vla-*.whl")
    with zipfile.ZipFile(file) as archive:
        assert not [
            entry.filename for entry in archive.infolist() if (entry.external_attr >> 16) & 0o170000 == 0o120000
        ]
        archive.extractall(target / "unpacked")
    return target / "unpacked"


def test_the_wheel_holds_every_module_recipe_and_card_as_a_file(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in (*FOLDERS, "model_cards")
        for pattern in ("*.py", "*.yaml", "*.md")
        for path in (ROOT / folder).rglob(pattern)
        if not {"results", "accelerate_configs", "lerobot_policy_gen_vla"} & set(path.parts)
    }
    expected |= {f"{folder}/py.typed" for folder in FOLDERS}
    inside = wheel / "gen_vla"
    held = {path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file()}
    assert expected - held == set()
    assert not (inside / "__init__.py").exists()
    for name in LINKED:
        assert (inside / "modeling" / name).read_bytes() == (ROOT / "processors" / name).read_bytes()
    tops = {path.name for path in wheel.iterdir()}
    assert len(tops) == 2, f"the wheel installs more than the namespace: {tops}"
    (metadata,) = wheel.glob("gen_vla-*.dist-info")
    assert "gen-vla = gen_vla.commands.main:main" in (metadata / "entry_points.txt").read_text()


def test_the_wheel_runs_by_itself(wheel, tmp_path):
    script = (
        "import sys; from gen_vla.commands import main; from gen_vla.training.publishing import variants;"
        "print(main.__file__); print(variants.CARDS.joinpath('template.md').is_file());"
        "sys.exit(main.main(['train', '--list']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    where, template, *listed = ran.stdout.splitlines()
    assert Path(where).is_relative_to(wheel), "the editable installation answered instead of the wheel"
    assert template == "True"
    assert [line.split()[1] for line in listed if line.startswith("│ ") and line.split()[1] != "│"] == recipe_names()
