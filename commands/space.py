"""The Space on this computer: `gen-vla demo --space`.

Decides: which model it opens with when none is named, and what is said when there is none. Refuses to know: the Space
itself, which is started as on the Hub, as a program of its own in its folder (`spaces/openvla_plus_demo/`).
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path


SPACE = Path(__file__).resolve().parents[1] / "spaces" / "openvla_plus_demo"
DEMO_OUTPUTS = ("demo_output", "demo_output_quick")


def run_space(
    model: str | None = None, baseline: str | None = None, outputs: Sequence[str | Path] = DEMO_OUTPUTS
) -> int:
    """Opens the Space and stays until it is stopped.

    Args:
        model: a folder or a name on the Hub; by default what a demo left.
        baseline: a second one, to compare it with.
        outputs: where demos were told to write, the preferred one first.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: if there is no model, or no Space because only the package was installed.
        ValueError: if Gradio is missing.
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
        "(a quarter of an hour) or `gen-vla demo --quick --space` (a few minutes; its model has learnt nothing), or "
        "name one with --model"
    )


def absolute(name: str) -> str:
    """A folder in full, since the Space runs in its own; a name on the Hub as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
