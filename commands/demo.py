"""`gen-vla demo`: the whole path at toy size (`demo_run.py`), and the Space on this computer."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from typer import Option


SPACE = Path(__file__).resolve().parents[1] / "spaces" / "openvla_plus_demo"
DEMO_OUTPUTS = ("demo_output", "demo_output_quick")


def demo(
    output: Annotated[
        str | None, Option(help="Where everything goes (default: demo_output, demo_output_quick if quick).")
    ] = None,
    episodes: Annotated[int, Option(help="Rollouts per task and policy.")] = 12,
    quick: Annotated[bool, Option("--quick", help="Every part in a few minutes; the policy learns nothing.")] = False,
    space: Annotated[
        bool,
        Option("--space", help="Open a page in the browser with the demo's model; with --quick, make it first."),
    ] = False,
    model: Annotated[str | None, Option(metavar="FOLDER_OR_NAME", help="Another model for --space.")] = None,
    baseline: Annotated[
        str | None, Option(metavar="FOLDER_OR_NAME", help="A second model for --space, to compare with.")
    ] = None,
) -> None:
    """Two small policies, with and without the recipe: record, train, publish, load, compare."""
    if (model or baseline) and not space:
        raise ValueError("got --model or --baseline without --space, expected them with it: they name what it opens")
    folder = output or DEMO_OUTPUTS[quick]
    if quick or not space:
        from gen_vla.commands.demo_run import run_demo

        run_demo(folder, episodes=episodes, quick=quick)
    if space:
        raise typer.Exit(open_space(model, baseline, (folder,) if quick or output else DEMO_OUTPUTS))


def open_space(model: str | None, baseline: str | None, outputs: Sequence[str | Path]) -> int:
    """Starts the Space as on the Hub, as a program of its own in its folder; returns its exit code.

    Without a model it opens with what a demo left in one of the outputs, the first one preferred.
    """
    if not SPACE.is_dir():
        raise FileNotFoundError(f"got no {SPACE}, expected the Space there; it lies in the project's repository only")
    if find_spec("gradio") is None:
        raise ValueError("got no gradio, expected it for the Space; pip install 'gen-vla[demo]'")
    chosen = {"GEN_VLA_MODEL": absolute(model or demo_model(outputs))}
    if baseline:
        chosen["GEN_VLA_BASELINE"] = absolute(baseline)
    print(f"Opening the Space with {chosen['GEN_VLA_MODEL']}; stop it with Ctrl+C", flush=True)
    try:
        return subprocess.call([sys.executable, "app.py"], cwd=SPACE, env={**os.environ, **chosen})
    except KeyboardInterrupt:  # it has stopped, too
        return 0


def demo_model(outputs: Sequence[str | Path]) -> str:
    """The first repository that a demo left."""
    folders = [Path(output) / "repository" for output in outputs]
    for folder in folders:
        if (folder / "config.json").is_file():
            return str(folder)
    raise FileNotFoundError(
        f"got no model in {' or '.join(map(str, folders))}, expected one to open the Space with; run `gen-vla demo` "
        "or `gen-vla demo --quick --space` (a few minutes; its model has learnt nothing), or name one with --model"
    )


def absolute(name: str) -> str:
    """A folder in full, since the Space runs in its own; a name on the Hub as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
