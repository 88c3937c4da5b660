"""Trials on the tabletop while a run trains: figures in its log, and a training that does not notice them."""

from pathlib import Path
from typing import Any

import needs_simulator  # noqa: F401  # skips this file without one
import pytest
from tiny_runs import logged_steps, read_log, tiny_recipe, tiny_vlm_model, weights_hash
from transformers import TrainerCallback

from gen_vla.commands.main import main
from gen_vla.evaluation.policies.rollout import CONTROLS
from gen_vla.evaluation.recording.demonstrations import record_demonstrations
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS
from gen_vla.evaluation.tabletop.training_rollouts import TabletopRollouts
from gen_vla.training.checkpoints import load_model
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.run import run_recipe


ROLLOUTS = {"steps": 2, "trials": 1, "tasks": ["close_drawer"]}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "robot"
    record_demonstrations(folder, 1, workers=1, image_size=16, progress=False)
    return folder


def recipe_of(work_dir: Path, demonstrations: Path, **overrides: Any) -> Recipe:
    work_dir.mkdir(exist_ok=True)
    (work_dir / "robot").symlink_to(demonstrations)
    actions = {"actions__action_dim": 7, "actions__binary_dims": [6]}
    return tiny_recipe(work_dir, training__steps=4, **{**actions, **overrides})


class Seen(TrainerCallback):
    """Whether the model trains whenever figures are logged."""

    def __init__(self) -> None:
        self.trains: list[bool] = []

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.trains.append(model.training)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "name": "mini-tiny",
            "training__lora": {"rank": 2, "dropout": 0.5},
        },  # random numbers in every step
        {"training__bf16": True, "training__gradient_checkpointing": True, "model": tiny_vlm_model()},
    ],
    ids=["lora", "bfloat16"],
)
def test_the_log_has_them_and_the_training_does_not_notice(
    demonstrations: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = run_recipe(recipe_of(tmp_path / "plain", demonstrations, **changes), tmp_path / "plain", progress=False)
    recipe = recipe_of(tmp_path / "with", demonstrations, **changes, training__rollouts=ROLLOUTS)
    watched: dict[str, Any] = {"callbacks": [seen := Seen()], "rollouts": TabletopRollouts}
    folder = run_recipe(recipe, tmp_path / "with", progress=False, **watched)
    found = [entry for entry in read_log(folder)["history"] if "eval_tabletop/success" in entry]
    assert [(entry["step"], entry["eval_tabletop/malformed"]) for entry in found] == [(2, 0.0), (4, 0.0)]
    assert all(entry["eval_tabletop/success"] in (0.0, 1.0) for entry in found)
    assert all(seen.trains)
    timeless = [
        [{name: value for name, value in entry.items() if "grad_norm" in name or "loss" in name} for entry in run]
        for run in (logged_steps(plain), logged_steps(folder))
    ]
    assert timeless[0] == timeless[1]
    assert weights_hash(load_model(plain)) == weights_hash(load_model(folder))


def test_success_is_that_of_the_policy_on_layouts_of_their_own(demonstrations: Path, tmp_path: Path) -> None:
    made: list[TabletopRollouts] = []

    class Kept(TabletopRollouts):
        def __init__(self, recipe: Any, trainer: Any):
            super().__init__(recipe, trainer)
            made.append(self)

    recipe = recipe_of(tmp_path, demonstrations, training__rollouts={"steps": 100, "trials": 2})
    run_recipe(recipe, tmp_path, progress=False, rollouts=Kept)
    (rollouts,) = made
    assert len(rollouts.jobs) == 8
    assert min(job.seed for job in rollouts.jobs) >= EVALUATION_SEEDS[500_000]
    rollouts.policy = CONTROLS["expert"]  # type: ignore[assignment]
    assert rollouts.run() == {"success": 1.0, "malformed": 0.0}
    rollouts.policy = CONTROLS["zero"]  # type: ignore[assignment]
    assert rollouts.run() == {"success": 0.0, "malformed": 0.0}
    rollouts.policy = lambda images, *rest: [None] * len(images)  # type: ignore[assignment]
    assert rollouts.run() == {"success": 0.0, "malformed": 1.0}


def test_the_command_has_a_simulator_and_a_bare_run_says_it_has_none(demonstrations: Path, tmp_path: Path) -> None:
    settings = {"steps": 4, "trials": 1, "tasks": ["open_drawer"]}
    recipe = recipe_of(tmp_path, demonstrations, training__rollouts=settings)
    with pytest.raises(ValueError, match=r"training\.rollouts and nothing to run them, expected a simulator"):
        run_recipe(recipe, tmp_path, progress=False)
    assert main(["train", str(tmp_path / "tiny.yaml"), "--work-dir", str(tmp_path)]) == 0
    assert [e["step"] for e in read_log(tmp_path / "tiny")["history"] if "eval_tabletop/success" in e] == [4]
    others = ["--set=training.rollouts.trials=2", "--set=training.rollouts.steps=2", "--resume"]
    assert main(["train", str(tmp_path / "tiny.yaml"), "--work-dir", str(tmp_path), *others]) == 0


def test_a_data_set_has_to_be_one_of_the_model(demonstrations: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, demonstrations, training__rollouts={**ROLLOUTS, "key": "tinny"})
    with pytest.raises(ValueError, match="tinny"):
        run_recipe(recipe, tmp_path, progress=False, rollouts=TabletopRollouts)


def test_weights_that_are_spread_over_processes_are_refused(demonstrations: Path, tmp_path: Path) -> None:
    def spread(recipe: Recipe, trainer: Any) -> TabletopRollouts:
        trainer.is_fsdp_enabled = True
        return TabletopRollouts(recipe, trainer)

    recipe = recipe_of(tmp_path, demonstrations, training__rollouts=ROLLOUTS)
    with pytest.raises(ValueError, match="whose weights are spread over processes, expected whole weights"):
        run_recipe(recipe, tmp_path, progress=False, rollouts=spread)
