"""Training by flow matching: figures by hand, and real runs that give the same however their rows are divided."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from paligemma_checkpoint import stock_paligemma, write_paligemma
from test_metrics import OneProcess
from tiny_models import tiny_statistics
from tiny_runs import (
    Witness,
    logged_steps,
    noise,
    run_tiny,
    tiny_flow_settings,
    tiny_recipe,
    weights_hash,
)

from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.converting.conversion import convert
from gen_vla.training.flow.rows import FlowCollator, FlowRowPreparer, draw_noise
from gen_vla.training.flow.trainer import FlowMetrics
from gen_vla.training.mixing.mixture import HalfAndHalfSampler
from gen_vla.training.model_building import build_model
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import run_recipe


def run_flow(work_dir: Path, **changes: Any) -> Path:
    return run_tiny(work_dir, **{**tiny_flow_settings(), "training__logging_steps": 1, **changes})


# ---- figures
def test_figures_by_hand() -> None:
    meter = FlowMetrics(
        ["robot/near", "robot/far"], {"near": tiny_statistics(3), "far": tiny_statistics(3, scale=10.0)}
    )
    inputs = {
        "actions": torch.zeros(2, 2, 3),
        "noise": torch.ones(2, 2, 3),
        "timestep": torch.tensor([0.5, 0.1]),
        "action_is_pad": torch.tensor([[False, True], [False, False]]),
        "source_id": torch.tensor([0, 1]),
        "replaced": torch.tensor([False, True]),
    }
    velocity = torch.ones(2, 2, 4)  # right, all but the numbers below; the fourth dimension is none of the action
    velocity[0, 0, 0], velocity[0, 1], velocity[1, 1, 1], velocity[..., 3] = 1.2, 9.0, 2.0, 7.0
    meter.add(velocity, inputs)
    found = meter.read(OneProcess())
    assert found["robot/near/loss"] == pytest.approx(0.2**2 / 3)  # one step of three dimensions counts
    assert found["robot/far/loss"] == pytest.approx(1.0 / 6)
    assert found["robot/loss"] == pytest.approx((0.04 + 1.0) / 9)
    # half of 0.2 in a dimension of [-1, 1]; a tenth of 1.0 in one of [-20, 20]
    assert found["robot/near/action_error"] == pytest.approx(0.1 / 3)
    assert found["robot/far/action_error"] == pytest.approx(2.0 / 6)
    assert found["robot/replaced"] == 0.5
    assert "robot/near/replaced" not in found
    assert "robot/action_error" not in found, "kinds mix units"
    assert meter.read(OneProcess()) == {}


# ---- runs
@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of eight steps, checkpoints at four and eight."""
    return run_flow(tmp_path_factory.mktemp("flow"))


def test_the_first_step_by_hand(finished: Path, tmp_path: Path) -> None:
    """The same rows through the plain model, without sampler or trainer; every chunk of three has padding in it."""
    shutil.copytree(finished.parent / "robot", tmp_path / "robot")
    recipe = tiny_recipe(tmp_path, **tiny_flow_settings())
    opened = open_data(recipe, tmp_path)
    model, processor = build_model(recipe, tmp_path, opened)
    noise_of = partial(draw_noise, config=model.config, seed=0)
    prepare = FlowRowPreparer(processor, opened.norm_stats, draw_noise=noise_of)
    table = opened.tables["robot/tiny"]
    order = [index for _, index in HalfAndHalfSampler([6], [], 4, recipe.training.seed)]
    rows = [prepare(table[index], "robot/tiny", place) for place, index in enumerate(order)]
    batch = FlowCollator(processor)(rows)
    assert batch["action_is_pad"].any()
    for name in ("is_robot", "replaced", "source_id"):
        batch.pop(name)
    counted = ~batch["action_is_pad"]
    with torch.no_grad():
        velocity = model(**batch).logits[..., :3]
    squares = (velocity - (batch["noise"] - batch["actions"])).square()
    first = logged_steps(finished)[0]
    assert first["loss"] == pytest.approx(float(squares[counted].mean()), abs=1e-4)
    assert first["robot/loss"] == pytest.approx(float(squares[counted].mean()), rel=1e-4)


def test_it_learns_six_demonstrations_and_looks_at_their_pictures(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"training__steps": 300, "training__batch_size": 12, "training__save_steps": 300}
    folder = run_flow(tmp_path, **settings, training__learning_rate=3e-3, training__logging_steps=50)
    assert logged_steps(folder)[-1]["robot/loss"] < 0.3 * logged_steps(folder)[0]["robot/loss"]
    assert (folder / "training_curves.png").stat().st_size > 10_000
    model, processor = load_model(folder), load_processor(folder)
    rows: Any = load_from_disk(str(tmp_path / "robot"))
    torch.manual_seed(0)
    inputs = processor.action_inputs([row["image"] for row in rows], [row["instruction"] for row in rows])
    predicted, shown = model.predict_actions(**inputs).actions[:, 0], np.array(rows["action"])
    by_one_for_all = np.abs(shown - np.median(shown, axis=0))[:, :2].mean()
    assert np.abs(predicted - shown)[:, :2].mean() < 0.5 * by_one_for_all
    assert np.array_equal(predicted[:, 2], shown[:, 2]), "the gripper is 0 or 1, and right"


def test_a_stopped_run_resumes_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "tiny" / "checkpoints" / "checkpoint-8")
    folder = run_flow(tmp_path / "copy", resume=True)
    assert weights_hash(load_model(folder)) == weights_hash(load_model(finished))
    losses = [[entry["robot/loss"] for entry in logged_steps(run)] for run in (folder, finished)]
    assert losses[0] == losses[1]


def test_gradient_accumulation_is_one_larger_batch(tmp_path: Path) -> None:
    """Micro-batches have different numbers of steps that count."""
    logs = []
    for name, batch, accumulated in (("whole", 4, 1), ("parts", 2, 2)):
        settings: dict[str, Any] = {"training__batch_size": batch}
        settings["training__gradient_accumulation_steps"] = accumulated
        folder = run_flow(tmp_path, name=name, training__steps=2, **settings)
        logs.append([(entry["loss"], entry["grad_norm"], entry["robot/loss"]) for entry in logged_steps(folder)])
    assert logs[1] == [pytest.approx(entry, rel=1e-3) for entry in logs[0]]


def test_starting_from_a_model_takes_its_weights_and_another_horizon(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "copy")
    changes = {"name": "next", "model": {"family": "pi0_flow", "initial_model": "tiny", "frozen": None}}
    recipe = tiny_recipe(tmp_path / "copy", **{**tiny_flow_settings(), **changes, "actions__horizon": 2})
    start, _ = build_model(recipe, tmp_path / "copy", open_data(recipe, tmp_path / "copy"))
    assert weights_hash(start) == weights_hash(load_model(finished))
    folder = run_recipe(recipe, tmp_path / "copy", progress=False)
    model, processor = load_model(folder), load_processor(folder)
    assert (model.config.chunk_size, processor.action_config["horizon"]) == (2, 2)
    assert model.predict_action(**processor.action_inputs(noise(0), "go")).shape == (2, 3)


def test_a_converted_paligemma_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_paligemma(tmp_path / "source", stock_paligemma())
    expert = {"hidden_size": 32, "intermediate_size": 48}
    convert(source, tmp_path / "start", family="pi0_flow", expert=expert)
    start, witness = {"family": "pi0_flow", "initial_model": "start", "frozen": None}, Witness().watch(monkeypatch)
    folder = run_flow(tmp_path, training__steps=1, model=start, callbacks=[witness])
    assert witness.batches == [[True] * 4]
    assert witness.optimized == witness.with_state
    model, processor = load_model(folder), load_processor(folder)
    assert model.config.action_config["horizon"] == model.config.chunk_size == 3
    assert model.predict_action(**processor.action_inputs(noise(0), "go")).shape == (3, 3)
