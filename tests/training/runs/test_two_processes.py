"""Two processes train the model that one trains, with twice its batch.

All runs are of one launch, since two processes take far longer to start than tiny runs to finish.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
from table_data import mini_recipe, write_table_data
from tiny_runs import (
    logged_steps,
    read_log,
    run_tiny,
    seen_by_two_processes,
    stored_types,
    tiny_flow_settings,
    tiny_recipe,
    watch_places,
    write_questions,
    write_robot_data,
)
from two_processes import run_in_two_processes

from gen_vla.training.run_folder import write_recipe


CO_TRAINED: dict[str, Any] = {"training__steps": 4, "training__logging_steps": 1, "loss__balance": "token"}
FLOW: dict[str, Any] = {**tiny_flow_settings(), "training__steps": 4, "training__logging_steps": 1}
SCORED: dict[str, Any] = {
    "data__validation": {"episodes": {"tiny": [1]}, "questions": 0.3, "rows": 5},
    "training__eval_steps": 2,
    "training__save_steps": 2,
    "training__steps": 2,
    "training__logging_steps": 1,
}
HALF_PRECISION: dict[str, Any] = {"training__bf16": True, "training__steps": 2, "training__save_steps": 2}
RESUMED: dict[str, Any] = {"training__steps": 4, "training__save_steps": 2}

pytestmark = pytest.mark.slow


def write_data(work_dir: Path) -> Path:
    """Four episodes of four steps, and as many questions."""
    write_robot_data(work_dir / "robot", rows=16, episode_index=[row // 4 for row in range(16)])
    write_questions(work_dir / "questions", rows=16)
    return work_dir


def losses(work_dir: Path) -> list[float]:
    return [entry["loss"] for entry in logged_steps(work_dir / "tiny")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The work folder of a finished run of one process, and the rows of its second half."""
    work_dir = write_data(tmp_path_factory.mktemp("alone"))
    with pytest.MonkeyPatch.context() as patch:
        places = watch_places(patch)
        run_tiny(work_dir, **RESUMED)
    return work_dir, places[8:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, alone: tuple[Path, list[Any]]) -> dict[str, Path]:
    """The work folders of the runs of two processes."""
    names = ("co_trained", "flow", "scored", "streamed", "half_precision", "resumed")
    folders = {name: tmp_path_factory.mktemp(name) for name in names}
    tiny_recipe(folders["co_trained"], **CO_TRAINED)
    tiny_recipe(folders["flow"], **FLOW)
    tiny_recipe(write_data(folders["scored"]), **SCORED)
    recipe = mini_recipe("openvla_plus_bridge", training__steps=3)
    write_recipe(write_table_data(folders["streamed"]) / "tiny.yaml", recipe)
    tiny_recipe(folders["half_precision"], **HALF_PRECISION)
    shutil.copytree(alone[0], folders["resumed"], dirs_exist_ok=True)
    shutil.rmtree(folders["resumed"] / "tiny" / "checkpoints" / "checkpoint-4")
    tiny_recipe(folders["resumed"], **RESUMED, training__batch_size=2)
    run_in_two_processes("tiny_runs", "-1", *folders.values())
    return folders


def test_co_training(trained: dict[str, Path], tmp_path: Path) -> None:
    seen = seen_by_two_processes(trained["co_trained"])
    for one in seen:
        assert one["batches"] == [[True, False, True, False]] * 4
    assert seen[0]["hash"] == seen[1]["hash"] != ""
    one_process = run_tiny(tmp_path, training__batch_size=8, **CO_TRAINED)
    for one, two in zip(logged_steps(one_process), logged_steps(trained["co_trained"] / "tiny"), strict=True):
        for figure in ("loss", "grad_norm", "robot/loss", "vision_language/exact"):
            assert two[figure] == pytest.approx(one[figure], abs=1e-5), (figure, one["step"])


def test_flow_matching(trained: dict[str, Path], tmp_path: Path) -> None:
    """Noise and times belong to rows, so that it does not matter who holds them."""
    seen = seen_by_two_processes(trained["flow"])
    assert seen[0]["hash"] == seen[1]["hash"] != ""
    assert [one["batches"] for one in seen] == [[[True] * 4] * 4] * 2
    one_process = run_tiny(tmp_path, training__batch_size=8, **FLOW)
    for one, two in zip(logged_steps(one_process), logged_steps(trained["flow"] / "tiny"), strict=True):
        for figure in ("loss", "grad_norm", "robot/loss", "robot/tiny/action_error"):
            assert two[figure] == pytest.approx(one[figure], abs=1e-5), (figure, one["step"])


def test_scores_on_what_is_held_out(trained: dict[str, Path], tmp_path: Path) -> None:
    def scores(folder: Path) -> dict[str, float]:
        """Without how long they took."""
        timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
        found = [entry for entry in read_log(folder)["history"] if "eval_runtime" in entry]
        return {name: value for name, value in found[0].items() if name not in timed}

    one = scores(run_tiny(write_data(tmp_path), training__batch_size=8, **SCORED))
    two = scores(trained["scored"] / "tiny")
    assert one.keys() == two.keys()
    assert one == pytest.approx(two, abs=1e-4)


def test_disjoint_rows_of_a_stream_in_exact_halves(trained: dict[str, Path]) -> None:
    seen = seen_by_two_processes(trained["streamed"])
    for one in seen:
        assert one["batches"] == [[True, False] * 4] * 3
    assert seen[0]["hash"] == seen[1]["hash"] != ""
    assert [len(one["places"]) for one in seen] == [3 * 8] * 2
    rows = [{row for _, row in one["places"]} for one in seen]
    assert not rows[0] & rows[1]
    data = read_log(trained["streamed"] / "mini-openvla-plus-bridge")["data"]
    assert sum(report["seen"] for report in data["undecodable"].values()) == 2 * 3 * 8  # of both processes


def test_what_one_process_began(trained: dict[str, Path], alone: tuple[Path, list[Any]]) -> None:
    seen = [one["places"] for one in seen_by_two_processes(trained["resumed"])]
    assert [place for place, _ in seen[0]] == [8, 9, 12, 13]
    assert [place for place, _ in seen[1]] == [10, 11, 14, 15]
    assert sorted(map(tuple, seen[0] + seen[1])) == sorted(alone[1])
    assert losses(trained["resumed"]) == pytest.approx(losses(alone[0]), rel=1e-4)


def test_float32_weights_and_gradients(trained: dict[str, Path]) -> None:
    """Under DDP; accelerate shards nothing on a CPU."""
    for one in seen_by_two_processes(trained["half_precision"]):
        types = one["types"]
        assert types["weights"] == types["gradients"] == types["moments"] == ["torch.float32"]
        assert types["computed"] == ["torch.bfloat16"]
    assert stored_types(trained["half_precision"] / "tiny") == {"F32"}
