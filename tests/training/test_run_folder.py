"""The picture of a run's curves."""

from pathlib import Path

import numpy as np
from PIL import Image

from gen_vla.training.run_folder import plot_curves


def history(steps: int) -> list[dict[str, float]]:
    entries = []
    for step in range(1, steps + 1):
        figures = {"step": step, "loss": 3.0 / step, "robot/loss": 3.0 / step}
        figures |= {"robot/near/loss": 3.0 / step, "robot/near/action_error": 0.1 / step}
        figures |= {"robot/near/sign_accuracy": 0.5, "vision_language/scenes/loss": 2.0}
        entries.append(figures)
    return [*entries, {"step": steps, "train_runtime": 1.0}]


def test_curves_are_drawn_per_source(tmp_path: Path) -> None:
    path = plot_curves(history(5), tmp_path / "curves.png", "a run")
    assert path is not None
    colours = {tuple(colour) for colour in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)}
    assert {(0xD1, 0x49, 0x5B), (0x2E, 0x6F, 0x95)} <= colours, "one line per source, robot data in red"


def test_trials_in_the_simulator_have_a_panel(tmp_path: Path) -> None:
    found = [*history(6), *({"step": step, "eval_tabletop/success": step / 6} for step in (3, 6))]
    plain, path = (
        plot_curves(history(6), tmp_path / "plain.png", "a run"),
        plot_curves(found, tmp_path / "c.png", "a run"),
    )
    assert plain is not None
    assert path is not None
    dark = [int((np.asarray(Image.open(each).convert("RGB")) == 0x44).all(axis=2).sum()) for each in (plain, path)]
    assert dark[1] > dark[0] + 100, "a grey line, and one in the legend"


def test_a_run_of_few_logs_has_no_curves(tmp_path: Path) -> None:
    assert plot_curves(history(4), tmp_path / "curves.png", "a run") is None
    assert plot_curves([], tmp_path / "curves.png", "a run") is None
    assert not (tmp_path / "curves.png").exists()
