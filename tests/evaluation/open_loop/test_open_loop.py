"""Recorded steps and a policy's answers to them: which are taken, what is compared, what a file of results says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rlds_data_sets import write_rlds
from robot_data_sets import make_episodes, write_lerobot, write_recording
from tiny_models import tiny_model, tiny_processor

from gen_vla.commands.main import main
from gen_vla.evaluation.open_loop.data import RecordedEpisodes, open_recorded, recipe_entry, trained_on
from gen_vla.evaluation.open_loop.suite import (
    OpenLoopSettings,
    ask_policy,
    evaluate_open_loop,
    open_loop_notes,
    open_loop_tables,
)
from gen_vla.evaluation.report.tables import as_markdown, card_results, make_report
from gen_vla.processors import ActionStringProcessor, compute_statistics
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.robot_data.statistics import robot_statistics


HORIZON = 2


def statistics_of(episodes):
    actions = np.concatenate([episode.actions for episode in episodes])
    return compute_statistics(actions, len(episodes))


@pytest.fixture
def policy(llama_like):
    """A model of 7 dimensions and chunks of two, with statistics of the seven episodes of seed 3."""
    strings = ActionStringProcessor(7, HORIZON, decimals=2, binary_dims=[6])
    norm_stats = {"robot": statistics_of(make_episodes(7, 5, size=16, seed=3))}
    return tiny_model(llama_like, strings, norm_stats=norm_stats), tiny_processor(llama_like, strings)


def recorded(path, every=1, episodes=None, entry=None, horizon=HORIZON):
    return RecordedEpisodes(open_recorded(path, entry or {}, None, horizon, "train"), every, episodes)


def test_every_step_asked_about_knows_its_chunk_and_what_was_done_before(tmp_path):
    episodes = make_episodes(2, 6, size=16)
    read = recorded(write_lerobot(tmp_path / "data", episodes, "v3.0"), every=4)
    steps = list(read)
    assert [step.name for step in steps] == ["0 0", "0 4", "1 0", "1 4"]
    assert [f"{step.episode} {step.place}" for step in steps] == [step.name for step in steps]
    assert (read.names, [len(actions) for actions in read.actions], read.total) == ([0, 1], [6, 7], 2)
    np.testing.assert_array_equal(steps[1].action, episodes[0].actions[4:6])
    np.testing.assert_array_equal(steps[1].held, episodes[0].actions[3])
    np.testing.assert_array_equal(steps[1].state, episodes[0].states[4])
    assert steps[0].held is None
    assert not steps[1].padded.any()
    assert steps[1].instruction == "put block 0 on the plate"
    assert abs(np.asarray(steps[3].images[0]).mean() - (40 + 5 * 4)) < 3
    last = list(recorded(tmp_path / "data", every=5))[1]
    assert (last.place, last.padded.tolist()) == (5, [False, True])


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 3, 6]), (7, list(range(7))), (20, list(range(7)))])
def test_some_episodes_come_from_all_over_the_data(tmp_path, count, expected):
    read = recorded(write_recording(tmp_path / "data", make_episodes(7, 3, size=16)), every=2, episodes=count)
    assert len(list(read)) >= len(expected)
    assert (read.names, read.total) == (expected, len(expected))


def test_some_episodes_of_few_shards_are_as_many_as_asked_for(tmp_path):
    episodes = make_episodes(5, 3, size=16)
    episodes[4] = replace(episodes[4], instruction="")
    folder = write_rlds(tmp_path, episodes, shards=2)  # of three episodes, and of one with an instruction
    read = recorded(folder, episodes=4)
    list(read)
    assert read.names == [0, 1, 3, 2]
    with pytest.raises(ValueError, match="got every=0, expected at least 1"):
        recorded(folder, every=0)


def test_a_picture_that_cannot_be_decoded_is_left_out_and_counted(tmp_path):
    folder = write_lerobot(tmp_path / "data", make_episodes(2, 6, size=16), "v2.1")
    (folder / "videos/chunk-000/observation.images.image_0/episode_000000.mp4").write_bytes(b"no video")
    read = recorded(folder, every=3)
    assert {step.episode for step in read} == {1}
    assert read.source.problems.report()["by_reason"] == {"picture that cannot be decoded": 2}


def test_data_that_was_trained_on_is_recognised(tmp_path):
    episodes, others = make_episodes(4, 3, size=16), make_episodes(4, 3, size=16, seed=1)
    folder = write_lerobot(tmp_path / "runs" / "mine", episodes, "v2.1")
    held_out = write_lerobot(tmp_path / "held_out", others, "v2.1")
    statistics = statistics_of(episodes)

    def told(path, entry=None, split="train", every=1, episodes=None):
        read = recorded(path, every, episodes)
        list(read)
        return trained_on(read, statistics, entry or {}, path, split)

    for every, count in ((1, None), (2, None), (1, 1)):
        assert "mean action" in told(folder, every=every, episodes=count)
        assert told(held_out, every=every, episodes=count) == ""  # as many episodes and steps, other actions
    assert told(held_out, {"path": "held_out", "split": "train"}) == "its recipe trains on held_out, split train"
    assert told(held_out, {"path": "held_out", "split": "train"}, split="val") == ""
    assert told(held_out, {"path": "runs/held_out"}) == ""


def test_data_of_relative_actions_is_recognised_by_its_states(tmp_path):
    """Their figures are of chunks."""
    groups = [{"dims": [0, 1], "state": [0, 1]}]
    folder = write_lerobot(tmp_path / "mine", make_episodes(4, 3, size=16))
    statistics = robot_statistics(open_robot_source(folder, key="robot", horizon=HORIZON, relative=groups)).entry
    statistics["action"]["relative"] = groups
    other = write_lerobot(tmp_path / "other", make_episodes(4, 3, size=16, seed=1))
    for path, known in ((folder, True), (other, False)):
        read = recorded(path)
        list(read)
        assert bool(trained_on(read, statistics, {}, path, "train")) == known


def test_the_policy_is_compared_with_what_it_did(policy, tmp_path):
    """A robot that did what the policy says: no error, whatever the batch; the baselines have some."""
    model, processor = policy
    episodes = make_episodes(3, 5, size=16, seed=3)
    random = np.random.default_rng(0)
    for episode in episodes:
        episode.pictures["image_0"] = random.integers(0, 256, (len(episode.actions), 16, 16, 3), dtype=np.uint8)
    asked, malformed = ask_policy(
        model, processor, recorded(write_recording(tmp_path / "a", episodes)), "robot", rows=4
    )
    assert malformed == 0
    for number, episode in enumerate(episodes):
        episode.actions[:] = asked.predicted[asked.episode == number, 0]
    data = write_recording(tmp_path / "b", episodes)
    results, found, _ = evaluate_open_loop(model, processor, "tiny", str(data), OpenLoopSettings(every=1, rows=5))
    assert found.predicted.shape == (5 + 6 + 7, HORIZON, 7)
    np.testing.assert_array_equal(found.predicted, asked.predicted)
    first = results["chunk_steps"][0]
    assert (first["values"], first["dimensions"][:6]) == (18, [0.0] * 6)
    assert first["dimensions"][6] == 1.0  # the share of grippers that are right
    assert first["l1"]["policy"] == 0 < first["l1"]["mean action"]
    assert results["chunk_steps"][1]["values"] == 18 - 3  # the last step of an episode has no second one
    assert (results["n"], results["episodes"], results["values"], results["trained_on"]) == (18, 3, 33, "")
    assert len(open_loop_tables(results)) == 2
    assert "intervals are of a bootstrap over 3 episodes: so few hardly tell" in open_loop_notes(results)


def test_malformed_answers_are_counted_and_left_out(policy, tmp_path):
    """Of the step whose picture is brightest, alone, and whatever else is in its batch."""
    model, processor = policy

    class ActionStringError(ValueError):
        pass

    def sometimes(pixel_values, **inputs):
        if (pixel_values[:, 0].mean(dim=(1, 2)) >= brightest).any():
            raise ActionStringError("got 'x', expected a sign")
        return plain(pixel_values=pixel_values, **inputs)

    episodes = make_episodes(2, 4, size=16)
    data = write_recording(tmp_path / "data", episodes)
    white = Image.fromarray(episodes[1].pictures["image_0"][-1])
    brightest = processor.action_inputs([[white]], ["two"])["pixel_values"][:, 0].mean() - 1e-3
    plain, model.predict_actions = model.predict_actions, sometimes
    found, malformed = ask_policy(model, processor, recorded(data), "robot", rows=4)
    assert (malformed, len(found.predicted)) == (1, 8)
    assert (1, 4) not in set(zip(found.episode.tolist(), found.place.tolist(), strict=True))
    brightest = -10.0
    with pytest.raises(ValueError, match="9 steps were asked about, 9 answers malformed"):
        ask_policy(model, processor, recorded(data), "robot")


def test_data_of_another_robot_is_refused(policy, tmp_path):
    episodes = [
        replace(e, columns={"action": e.actions[:, :5], "observation.state": e.states}) for e in make_episodes(1, 3)
    ]
    folder = write_lerobot(tmp_path / "data", episodes)
    model, processor = policy
    with pytest.raises(ValueError, match=r"got actions of 5 values in the data, expected 7, .* 'robot'"):
        evaluate_open_loop(model, processor, "tiny", str(folder), OpenLoopSettings())
    with pytest.raises(ValueError, match=r"got unnorm_key='robo', .*did you mean 'robot'"):
        evaluate_open_loop(model, processor, "tiny", str(folder), OpenLoopSettings(unnorm_key="robo"))


def test_data_is_read_as_the_models_recipe_reads_it(policy, tmp_path):
    model, processor = policy
    (tmp_path / "model").mkdir()
    source = {"path": "data", "key": "robot", "cameras": ["wrist"], "transform": None, "action": ["moves"]}
    source |= {"every": 2, "displacements": []}
    recipe = {"data": {"robot": [{"path": "x", "key": "other"}, {**source, "state": None, "split": "train"}]}}
    (tmp_path / "model" / "recipe.yaml").write_text(json.dumps(recipe))
    assert recipe_entry(str(tmp_path / "model"), "robot")["cameras"] == ["wrist"]
    assert recipe_entry(str(tmp_path / "model"), "nothing") == recipe_entry(str(tmp_path), "robot") == {}
    episodes = [
        replace(e, columns={"action": 0 * e.actions, "moves": e.actions, "observation.state": e.states})
        for e in make_episodes(1, 3, ("image_0", "wrist"))
    ]
    folder = write_lerobot(tmp_path / "data", episodes)
    results, found, _ = evaluate_open_loop(model, processor, str(tmp_path / "model"), str(folder), OpenLoopSettings())
    assert results["cameras"] == ["observation.images.wrist"]
    assert results["thinned_by"] == 2
    np.testing.assert_array_equal(found.recorded[0], episodes[0].actions[[1, 2]])  # where the next kept steps begin
    assert results["trained_on"] == "its recipe trains on data, split train"


@pytest.mark.parametrize("form", ["v3.0", "recording"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_model_is_asked_about_the_episodes_its_training_held_out(form, moved, policy, tmp_path):
    """Known by the path in its recipe, or by the actions of the others."""
    model, processor = policy
    episodes = make_episodes(7, 5, size=16, seed=3)
    write = write_recording if form == "recording" else write_lerobot
    folder = write(tmp_path / "data", episodes)
    held_out = [1, 5]
    others = [episode for number, episode in enumerate(episodes) if number not in held_out]
    model.config.norm_stats["robot"] = {**statistics_of(others), "held_out": held_out}
    (tmp_path / "model").mkdir()
    source = {"path": "elsewhere" if moved else "data", "key": "robot", "transform": None}
    (tmp_path / "model" / "recipe.yaml").write_text(json.dumps({"data": {"robot": [source]}}))
    named = (model, processor, str(tmp_path / "model"), str(folder))
    results, _, asked = evaluate_open_loop(*named, OpenLoopSettings(every=4))
    assert (asked.names, results["held_out"], results["trained_on"]) == (held_out, 2, "")
    assert open_loop_notes(results)[0].startswith("asked about episodes that the training held out, 2 of")
    results, _, asked = evaluate_open_loop(*named, OpenLoopSettings(every=4, with_trained=True))
    assert (len(asked.names), results["held_out"]) == (7, 0)
    assert "was trained on this data (all of its episodes but those" in open_loop_notes(results)[0]
    other = write(tmp_path / "other", make_episodes(7, 5, size=16, seed=4))
    results, _, asked = evaluate_open_loop(*named[:3], str(other), OpenLoopSettings(every=4))
    assert (len(asked.names), results["held_out"], results["trained_on"]) == (7, 0, "")


def test_the_command(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gen_vla.commands.evaluate.suites.load_any", lambda name, dtype: policy)
    monkeypatch.setenv("COLUMNS", "160")
    folder = write_lerobot(tmp_path / "data", make_episodes(4, 6, size=16), "v3.0")
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["action"]["names"] = {"motors": ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]}
    (folder / "meta/info.json").write_text(json.dumps(info))
    output, picture = tmp_path / "results.json", tmp_path / "picture.png"
    arguments = ["evaluate", "open_loop", "tiny/robot", str(folder), "--every", "2", "--episodes", "2"]
    assert main([*arguments, "--output", str(output), "--picture", str(picture)]) == 0
    results = json.loads(output.read_text())
    assert results["provenance"]["command"].startswith("gen-vla evaluate open_loop tiny/robot")
    assert results["provenance"]["data"][0]["files"] > 3
    assert (results["suite"], results["episodes"], results["n"]) == ("open_loop", 2, 3 + 5)
    assert results["dtype"] == "float32"
    assert [entry["name"] for entry in results["dimensions"]][::3] == ["x", "roll", "gripper"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "gripper, share right" in printed
    assert "times that of the mean action" in printed
    with Image.open(picture) as drawn:
        assert len(set(drawn.convert("RGB").tobytes())) > 50

    report = make_report([output])
    together, x, *_ = report["figures"]
    assert (together["task"], together["metric"]) == ("all dimensions", "normalized L1")
    assert together["value"] == round(results["normalized"]["policy"]["l1"]["value"], 6)
    assert (x["task"], x["metric"]) == ("x", "mean absolute error")
    assert "mean action 0." in x["note"]
    assert "| robot | open loop on" in as_markdown(report)
    assert len(card_results(report)["robot"]["figures"]) == 8


def test_errors_of_several_seeds_have_a_mean_and_no_interval_of_a_share(tmp_path):
    paths = []
    for seed, value in enumerate((3.0, 5.0)):
        figure = {"value": value, "interval": [value - 1, value + 1]}
        results = {"suite": "open_loop", "model": f"robot-seed{seed}", "data": "held_out", "trained_on": "", "n": 9}
        results |= {"malformed": 0, "normalized": {}, "trained": {"recipe": "robot", "seed": seed, "settings": "abc"}}
        results["dimensions"] = [{"name": "x", "measure": "error", "outside": 0.0, "policy": figure}]
        paths.append(tmp_path / f"{seed}.json")
        paths[-1].write_text(json.dumps(results))
    report = make_report(paths)
    assert [(f["value"], f["interval"]) for f in report["figures"]] == [(3.0, [2, 4]), (5.0, [4, 6]), (4.0, None)]
    assert card_results(report)["robot-seed0"]["figures"][0]["interval"] == "2-4"
