"""Prepares a release: version, changelog, wheel and sdist, each tried in a new environment.

    make release VERSION=0.1.0

The new environment has the distribution and what it requires, nothing of this folder. There the README's first example
runs, with a tiny model in place of the demo's; `tests/support` makes it in the environment that `make test` uses.
"""

import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
TINY_MODEL = """
import sys; sys.path[:0] = ["tests/support"]
from tiny_models import picture, tiny_model, tiny_processor, tiny_tokenizer
from gen_vla.processors import ActionStringProcessor
tokenizer, strings = tiny_tokenizer("llama_like"), ActionStringProcessor(action_dim=7)
for part in (tiny_model(tokenizer, strings), tiny_processor(tokenizer, strings)):
    part.save_pretrained(f"{sys.argv[1]}/model")
picture().save(f"{sys.argv[1]}/camera.png")
"""


def run(*command: str | Path, **settings: str) -> None:
    """Runs a command in the repository; stops where it fails."""
    print("$", *command, flush=True)
    subprocess.run([str(word) for word in command], cwd=ROOT, env={**os.environ, **settings}, check=True)


def write_version(version: str, today: str) -> None:
    """The version in the three files that state it, and a section of the changelog."""
    for name, pattern, text in (
        ("setup.cfg", r"^version = .*$", f"version = {version}"),
        ("CITATION.cff", r"^version: .*$", f"version: {version}"),
        ("model_cards/template.md", r"version = \{[^}]*\}", f"version = {{{version}}}"),
        ("CHANGELOG.md", r"^## \[Unreleased\]$", f"## [Unreleased]\n\n## [{version}] - {today}"),
    ):
        path = ROOT / name
        written, count = re.subn(pattern, lambda _, text=text: text, path.read_text(encoding="utf-8"), flags=re.M)
        if count != 1:
            raise ValueError(f"got {count} places of {pattern!r} in {name}, expected one")
        path.write_text(written, encoding="utf-8")


def try_distribution(file: Path, folder: Path) -> None:
    """Installs a file into a new environment and runs the README's first example, and the command."""
    venv.create(folder / "environment", with_pip=True, clear=True)
    python = folder / "environment" / "bin" / "python"
    [torch] = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.M)
    install = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    run(*install, torch)
    run(*install, file)
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    script = example.replace("gen-vla/mini-openvla-plus", "./model") + "\nprint(action)\nassert action.shape == (7,)\n"
    (folder / "example.py").write_text(script, encoding="utf-8")
    for command in ([python, "example.py"], [python.with_name("gen-vla"), "train", "--list"]):
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "huggingface")}
        subprocess.run([str(word) for word in command], cwd=folder, env=environment, check=True)


def main(version: str) -> None:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"got VERSION={version!r}, expected three numbers, such as 0.1.0")
    if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, check=True).stdout:
        sys.exit("got a clone with changes, expected all of them committed")
    try:
        write_version(version, datetime.date.today().isoformat())
        shutil.rmtree(DIST, ignore_errors=True)
        run(sys.executable, "-m", "build", "--outdir", DIST)  # the wheel is built from the sdist
        with tempfile.TemporaryDirectory() as folder:
            run(sys.executable, "-c", TINY_MODEL, folder)
            for file in sorted(DIST.iterdir()):
                try_distribution(file, Path(folder))
    except BaseException:
        run("git", "checkout", "--quiet", ".")
        raise
    print(f"Both work. Next: git commit -am 'Release {version}'; git tag v{version}; twine upload dist/*")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
