"""LeRobot's own command lines with the plugin, in LeRobot's environment, which `make lerobot` builds."""

import json
import os
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from policy_servers import running
from space_models import bridge_statistics
from tiny_models import take_state, tiny_model, tiny_processor, tiny_statistics

from gen_vla.processors import ActionStringProcessor
from gen_vla.serving.application import Limits
from gen_vla.serving.policy import ServedPolicy


ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("GEN_VLA_LEROBOT", ROOT / ".venv-lerobot" / "bin"))
SUPPORT = ROOT / "tests" / "support"
HORIZON, STEPS = 3, 7
TRUST = "--policy.trust_remote_code=true"
ROLLOUT = (BIN / "lerobot-rollout").exists()  # which drives policies instead of `lerobot-record` from 0.6 on
ROLLING = ("--task=close the drawer", "--fps=2", "--duration=30", "--return_to_initial_position=false")
RECORDING = (
    "--dataset.repo_id=me/eval_stub",
    "--dataset.root=recorded",
    "--dataset.single_task=close the drawer",
    "--dataset.num_episodes=1",
    "--dataset.fps=2",
    "--dataset.episode_time_s=30",
    "--dataset.vcodec=h264",
    "--dataset.push_to_hub=false",
)

pytestmark = pytest.mark.skipif(
    not (BIN / "lerobot-eval").exists(), reason=f"no LeRobot at {BIN}; make lerobot builds its environment"
)


def stub_frame(step, camera):
    """What the stubs show, without importing the package, which needs LeRobot."""
    return Image.fromarray(runpy.run_path(str(SUPPORT / "lerobot_stubs" / "frames.py"))["frame"](step, camera))


@pytest.fixture(scope="module")
def repositories(llama_like, tmp_path_factory):
    """By number of cameras, or "state", a folder and the pair that was saved there."""
    strings = ActionStringProcessor(7, HORIZON, binary_dims=[6])
    made = {}
    for name, cameras in ((1, None), (2, ["top", "hand"]), ("state", None)):
        folder = tmp_path_factory.mktemp("repository")
        model = tiny_model(
            llama_like, strings, norm_stats={"bridge_orig": bridge_statistics(), "tiny": tiny_statistics(7)}
        )
        processor = tiny_processor(llama_like, strings, cameras=cameras)
        if name == "state":
            take_state((model, processor), width=7)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        made[name] = folder, model, processor
    return made


def run(tmp_path, command, *arguments, cameras=1, fails=False):
    """What a command printed, and the actions that the stub was sent, float64 [N, 7]."""
    actions = tmp_path / "actions.jsonl"
    variables = {
        "PYTHONPATH": str(SUPPORT),
        "STUB_ACTIONS": str(actions),
        "STUB_CAMERAS": str(cameras),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    done = subprocess.run(
        [BIN / command, *map(str, arguments)],
        env={**os.environ, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert bool(done.returncode) == fails, done.stdout[-2000:] + done.stderr[-6000:]
    sent = [json.loads(line) for line in actions.read_text().splitlines()] if actions.exists() else []
    return done.stdout + done.stderr, np.array(sent)


def evaluate(tmp_path, *arguments, **options):
    env = ("--env.type=stub", "--env.discover_packages_path=lerobot_stubs", "--eval.n_episodes=1")
    place = (f"--output_dir={tmp_path / 'eval'}", "--eval.batch_size=1", "--policy.device=cpu")
    words = "--policy.instruction=close the drawer"
    return run(tmp_path, "lerobot-eval", *env, *place, words, *arguments, **options)


def expected(model, processor, steps, cameras=("top",), key="bridge_orig", states=None):
    """Actions [steps, 7] of whole chunks, the model asked at the beginning of each, where the robot is at `states`."""
    chunks = []
    for step in range(0, steps, HORIZON):
        pictures = [stub_frame(step, camera) for camera in cameras]
        shown = [pictures] if len(pictures) > 1 else pictures
        state = {} if states is None else {"state": [states[step]], "unnorm_key": key}
        inputs = processor.action_inputs(shown, ["close the drawer"], **state)
        chunks.append(model.predict_actions(**inputs, unnorm_key=key).actions[0])
    return np.concatenate(chunks)[:steps]


@pytest.mark.slow
@pytest.mark.parametrize("cameras", [1, 2])
def test_lerobot_eval_carries_out_the_models_chunks(repositories, tmp_path, cameras):
    """`lerobot-eval --policy.type=gen_vla` sends what the model writes, in the units of the data set asked for."""
    folder, model, processor = repositories[cameras]
    said, sent = evaluate(
        tmp_path,
        "--policy.type=gen_vla",
        f"--policy.checkpoint_path={folder}",
        TRUST,
        "--policy.unnorm_key=bridge_orig",
        cameras=cameras,
    )
    wanted = expected(model, processor, STEPS, ("top", "hand")[:cameras])
    np.testing.assert_allclose(sent, wanted, atol=1e-6)
    results = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert results["overall"]["pc_success"] == 100.0, said


@pytest.mark.slow
def test_a_policy_folder_is_read_by_path(repositories, tmp_path):
    """`python -m lerobot_policy_gen_vla` writes what `--policy.path` reads; fewer steps of a chunk are a setting."""
    folder, model, processor = repositories[1]
    saved = tmp_path / "policy"
    settings = (f"--checkpoint_path={folder}", "--trust_remote_code=true", "--unnorm_key=tiny", "--device=cpu")
    run(tmp_path, "python", "-m", "lerobot_policy_gen_vla", saved, *settings)
    assert {path.name for path in saved.iterdir()} >= {"config.json", "policy_preprocessor.json"}
    _, sent = evaluate(tmp_path, f"--policy.path={saved}", "--policy.n_action_steps=1")
    alone = [
        model.predict_actions(
            **processor.action_inputs([stub_frame(step, "top")], ["close the drawer"]), unnorm_key="tiny"
        ).actions[0, 0]
        for step in range(STEPS)
    ]
    np.testing.assert_allclose(sent, alone, atol=1e-5)


@pytest.mark.slow
def test_a_server_acts_where_the_model_cannot_be_loaded(repositories, tmp_path):
    """With `--policy.server` nothing is loaded there."""
    _, model, processor = repositories[1]
    with running(ServedPolicy(model, processor, "tiny", "bridge_orig"), Limits()) as (_, port):
        _, sent = evaluate(tmp_path, "--policy.type=gen_vla", f"--policy.server=ws://127.0.0.1:{port}")
    np.testing.assert_allclose(sent, expected(model, processor, STEPS), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [1, "state"])
def test_a_robot_is_driven(repositories, tmp_path, kind):
    """`lerobot-record` sends the policy's actions, and records them."""
    folder, model, processor = repositories[kind]
    sent = drive(tmp_path, f"--policy.checkpoint_path={folder}", TRUST, "--policy.unnorm_key=bridge_orig")
    check_driven(model, processor, sent, kind == "state")
    if not ROLLOUT:
        info = json.loads((tmp_path / "recorded" / "meta" / "info.json").read_text())
        assert info["total_frames"] == len(sent)


@pytest.mark.slow
def test_a_server_is_told_the_robots_state(repositories, tmp_path):
    _, model, processor = repositories["state"]
    with running(ServedPolicy(model, processor, "tiny", "bridge_orig"), Limits()) as (_, port):
        sent = drive(tmp_path, f"--policy.server=ws://127.0.0.1:{port}")
    check_driven(model, processor, sent, takes_state=True)


def drive(tmp_path, *policy):
    """What the robot was sent, float64 [N, 7], while LeRobot's command for policies on robots ran for 30 seconds."""
    command = ("lerobot-rollout", *ROLLING) if ROLLOUT else ("lerobot-record", *RECORDING)
    robot = ("--robot.type=stub_robot", "--robot.discover_packages_path=lerobot_stubs", "--play_sounds=false")
    return run(tmp_path, *command, *robot, "--policy.type=gen_vla", "--policy.device=cpu", *policy)[1]


def check_driven(model, processor, sent, takes_state):
    """The stub's joints are where they were last sent, at first at 0."""
    assert len(sent) > HORIZON
    states = np.concatenate([np.zeros((1, 7)), sent]) if takes_state else None
    wanted = expected(model, processor, len(sent), ("front",), states=states)
    np.testing.assert_allclose(sent, wanted, atol=1e-6)
    if states is not None:
        still = expected(model, processor, len(sent), ("front",), states=np.zeros_like(states))
        assert np.abs(sent - still).max() > 1e-3


@pytest.mark.slow
def test_code_is_run_with_consent_alone(repositories, tmp_path):
    said, sent = evaluate(
        tmp_path, "--policy.type=gen_vla", f"--policy.checkpoint_path={repositories[1][0]}", fails=True
    )
    assert "without --policy.trust_remote_code=true" in said
    assert len(sent) == 0


@pytest.mark.slow
def test_the_policy_trains_answers_and_is_saved(repositories, tmp_path):
    """In LeRobot's environment: the loss is the collator's, it falls, answers are the model's, files come back."""
    folder, model, processor = repositories[1]
    said, _ = run(tmp_path, "python", SUPPORT / "lerobot_policy_check.py", folder, tmp_path / "saved")
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    from gen_vla.training.collator import CoTrainingCollator  # of this environment

    strings = processor.action_strings
    actions, padding = np.array(found["normalized"]), np.array(found["action_is_pad"])
    rows = [
        {
            "images": [Image.fromarray(np.array(picture, dtype=np.uint8))],
            "prompt": processor.action_prompt("close the drawer"),
            "completion": strings.encode(action),
            "action_is_pad": pad,
            "source": "robot/bridge_orig",
        }
        for picture, action, pad in zip(found["pictures"], actions, padding, strict=True)
    ]
    batch = CoTrainingCollator(processor)(rows)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values")}
    assert found["loss"] == pytest.approx(model(**inputs).loss.item(), rel=1e-4)
    assert found["trained_loss"] < found["loss"]
    question = processor.question_inputs([rows[0]["images"][0]], ["how many?"])
    written = model.generate(**question, max_new_tokens=64, do_sample=False)[:, question["input_ids"].shape[1] :]
    assert found["answer"] == processor.batch_decode(written, skip_special_tokens=True)[0].strip()
    assert found["after_loading"] == found["after_gathering"] == found["before_saving"]
