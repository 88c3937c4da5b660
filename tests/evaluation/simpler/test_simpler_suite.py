"""SimplerEnv's suite against environments with the real interface: outcomes, crashes, resuming, the command line."""

import json

import numpy as np
import pytest
import simpler_simulator

from gen_vla.commands.main import main
from gen_vla.evaluation.simpler.environment import SimplerMissingError, camera_image, find_assets, make_environment
from gen_vla.evaluation.simpler.runs import TrialLog, run_left, run_trial
from gen_vla.evaluation.simpler.suite import SimplerSettings, evaluate_simpler, simpler_table
from gen_vla.evaluation.simpler.trials import trials_of
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases


@pytest.fixture
def simulator(assets):
    """`make` for all trials."""
    return lambda trial: make_environment(trial, assets)


def up(by, calls=None):
    """A policy that moves the hand up by so many metres per step."""

    def begin(trial, instruction, simulator):
        def predict(image):
            if calls is not None:
                calls.append((image, instruction))
            return np.array([[0, 0, by, 0, 0, 0, 1.0]])

        return predict

    return begin


def broken_by(error):
    """A policy that raises."""

    def begin(trial, instruction, simulator):
        raise error

    return begin


def run_trials(begin, trials, log, make):
    run_left(trials, log, lambda trial: run_trial(begin, trial, make))


def drawer_trial(mode="matching", task="open_drawer", index=0):
    return trials_of("google_robot", mode, [task])[index]


def test_success_is_read_at_the_last_step(simulator):
    done = run_trial(up(0.01), drawer_trial(), simulator)
    assert (done.outcome, done.steps, done.instruction) == ("success", 113, "open top drawer")
    assert done.stats == {"qpos": "1.130", "moved": True}
    assert done.seed == 3274329834
    undone = run_trial(up(0.01), drawer_trial(task="close_drawer"), simulator)
    assert (undone.outcome, undone.steps) == ("failure", 113)


def test_environments_get_what_the_published_scripts_pass(simulator):
    trial = trials_of("google_robot", "matching", ["open_drawer"])[3]  # place a1
    run_trial(up(0.0), trial, simulator)
    made, reset = simpler_simulator.MADE[-1], simpler_simulator.RESETS[-1]
    assert made["uid"] == "OpenTopDrawerCustomInScene-v0"
    assert (made["scene_name"], made["shader_dir"]) == ("dummy_drawer", "rt")
    assert (made["station_name"], made["light_mode"]) == ("mk_station_recolor", "simple")
    assert made["disable_bad_material"] is True
    assert made["rgb_overlay_path"].endswith("real_inpainting/open_drawer_a1.png")
    assert made["control_mode"].startswith("arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target")
    assert reset["robot_init_options"]["init_xy"].tolist() == [0.765, -0.182]
    np.testing.assert_allclose(reset["robot_init_options"]["init_rot_quat"], [0.01, 0, 0, 1], atol=1e-4)


def test_masked_leaves_robot_and_objects(simulator):
    calls = []
    run_trial(up(0.0, calls), drawer_trial("masked"), simulator)
    image = calls[0][0]
    assert image.shape == (512, 640, 3)
    assert image[[0, 20, 40, 60], 0, 0].tolist() == [50, 51, 52, 0]
    environment = simulator(drawer_trial())
    observation, _ = environment.reset(options={"robot_init_options": {}, "obj_init_options": {}})
    assert camera_image(environment, observation, "google_robot_static")[60, 0, 0] == 200


def test_paraphrases_take_turns(simulator):
    wordings = held_out_paraphrases("open top drawer")
    told = []
    for index in range(len(wordings) + 1):
        calls = []
        trial = drawer_trial("paraphrase", index=index * 3)
        told.append(run_trial(up(0.0, calls), trial, simulator).instruction)
        assert {words for _, words in calls} == {told[-1]}
    assert told == [*wordings, wordings[0]]


def test_a_malformed_action_ends_the_trial_as_a_failure_of_its_own_kind(simulator):
    ended = run_trial(up(np.nan), drawer_trial(), simulator)
    assert (ended.outcome, ended.steps) == ("malformed", 0)
    assert ended.error is not None
    assert "nan" in ended.error


def test_a_crash_is_retried_once_and_then_no_judgement(simulator):
    crashes = []

    def failing(times):
        def make(trial):
            if len(crashes) < times:
                crashes.append(trial)
                raise RuntimeError("vk::DeviceLost")
            return simulator(trial)

        return make

    assert run_trial(up(0.01), drawer_trial(), failing(1)).outcome == "success"
    crashes.clear()
    lost = run_trial(up(0.01), drawer_trial(), failing(2))
    assert (lost.outcome, lost.error) == ("crashed", "RuntimeError: vk::DeviceLost")


def test_a_mistake_of_the_policy_is_no_crash(simulator):
    with pytest.raises(KeyError):
        run_trial(broken_by(KeyError("weights")), drawer_trial(), simulator)


def test_resuming_runs_only_what_is_left(simulator, tmp_path):
    trials = trials_of("google_robot", "matching", ["open_drawer"])[:3]
    log = TrialLog(tmp_path / "run", {"model": "m"})
    run_trials(up(0.01), trials[:1], log, simulator)
    log.begin(trials[1])  # and the process is killed while it writes a line
    with log.path.open("a") as file:
        file.write('{"trial": "cut')
    again = TrialLog(tmp_path / "run", {"model": "m"})
    made = len(simpler_simulator.MADE)
    run_trials(up(0.01), trials, again, simulator)
    assert len(simpler_simulator.MADE) == made + 2
    outcomes = TrialLog(tmp_path / "run", {"model": "m"}).outcomes.values()
    assert [entry["outcome"] for entry in outcomes] == ["success"] * 3
    with pytest.raises(ValueError, match=r"other settings .*\(model\)"):
        TrialLog(tmp_path / "run", {"model": "other"})


def test_a_trial_that_kills_the_process_twice_is_skipped(simulator, tmp_path):
    trial = drawer_trial()
    for _ in range(2):
        TrialLog(tmp_path, {}).begin(trial)
    log = TrialLog(tmp_path, {})
    run_trials(up(0.01), [trial], log, simulator)
    assert log.outcomes[trial.name]["outcome"] == "crashed"


def test_an_interruption_by_hand_is_no_crash(simulator, tmp_path):
    for _ in range(2):
        log = TrialLog(tmp_path, {})
        with pytest.raises(KeyboardInterrupt):
            run_trials(broken_by(KeyboardInterrupt()), [drawer_trial()], log, simulator)
    log = TrialLog(tmp_path, {})
    run_trials(up(0.01), [drawer_trial()], log, simulator)
    assert log.outcomes[drawer_trial().name]["outcome"] == "success"


def test_two_processes_share_a_folder(simulator, bridge_model, tmp_path):
    model, processor = bridge_model
    for index in (0, 1):
        settings = SimplerSettings("widowx", tasks=("stack_cube",), episodes=3, shard=(index, 2))
        results = evaluate_simpler(model, processor, "tiny", settings, tmp_path / "run")
    files = sorted(path.name for path in (tmp_path / "run").glob("trials*"))
    assert files == ["trials-0-of-2.jsonl", "trials-1-of-2.jsonl"]
    assert (results["tasks"][0]["n"], results["tasks"][0]["expected"]) == (3, 24)
    assert len((tmp_path / "run" / "runs.jsonl").read_text().splitlines()) == 2
    assert "provenance" in results
    with pytest.raises(ValueError, match="got shard 2/2"):
        SimplerSettings("widowx", shard=(2, 2)).trials()


def test_the_command_writes_results_and_a_table(simulator, bridge_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    model, processor = bridge_model
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text("name: mine\ntraining: {seed: 3, steps: 5}\n")
    output = tmp_path / "run"
    arguments = ["evaluate", "simpler", str(tmp_path / "model"), "--robot", "widowx", "--modes", "matching", "masked"]
    arguments += ["--tasks", "stack_cube", "--episodes", "1", "--output", str(output)]
    assert main(arguments) == 0, capsys.readouterr().err
    assert "stack_cube" in capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    assert [(t["mode"], t["n"], t["value"]) for t in results["tasks"]] == [("matching", 1, 0.0), ("masked", 1, 0.0)]
    assert (results["suite"], results["seeds"]) == ("simpler", [3274329834])
    assert (results["trained"]["recipe"], results["trained"]["seed"]) == ("mine", 3)
    assert results["provenance"]["command"].startswith("gen-vla evaluate simpler ")
    assert "model.safetensors" in results["provenance"]["model"]["sha256"]
    assert simpler_table(results, "again").row_count == 2
    arguments[arguments.index("widowx")] = "google_robot"
    assert main(arguments) == 2
    assert "got task 'stack_cube'" in capsys.readouterr().err


def test_without_the_simulator_it_says_how_to_install_it(capsys, tmp_path):
    with pytest.raises(SimplerMissingError, match=r"git clone .*SimplerEnv --recurse-submodules"):
        find_assets()
    assert main(["evaluate", "simpler", "nowhere", "--robot", "widowx", "--output", str(tmp_path)]) == 2
    assert "git clone" in capsys.readouterr().err


def test_a_missing_scene_stops_everything(simulator, tmp_path):
    trial = trials_of("google_robot", "matching", ["move_near"])[0]
    (tmp_path / "assets" / "hab2_bench_assets" / "stages" / f"{trial.scene}.glb").unlink()
    with pytest.raises(FileNotFoundError, match=r"google_pick_coke_can_1_v4\.glb"):
        run_trial(up(0.0), trial, simulator)


def test_every_instruction_of_the_benchmark_has_held_out_paraphrases(simulator):
    trials = trials_of("widowx", "matching")[::24] + trials_of("google_robot", "matching")[::7]
    told = {simulator(trial).unwrapped.get_language_instruction() for trial in trials}
    assert len(told) == 12  # a can, a move, 6 drawers, 4 of the widowx
    for instruction in told:
        assert 5 <= len(held_out_paraphrases(instruction)) <= 9
        assert instruction not in held_out_paraphrases(instruction)
