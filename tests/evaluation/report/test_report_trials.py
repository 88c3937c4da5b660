"""Single trials beside result files, as the suites themselves write both."""

import json

import pytest

from gen_vla.evaluation.report.trials import read_trials
from gen_vla.evaluation.simpler.runs import Outcome, TrialLog
from gen_vla.evaluation.simpler.suite import scores_of
from gen_vla.evaluation.simpler.trials import trials_of
from gen_vla.evaluation.statistics.intervals import Scored


def run_of_simpler(folder, model, solved, shader=None, mode="matching", tasks=("move_near",)):
    """A finished run whose i-th trial succeeds if `solved(i)`; the last two trials crash."""
    settings = {"model": model, "robot": "google_robot", "shader": shader}
    log = TrialLog(folder, settings)
    trials = trials_of("google_robot", mode, tasks)
    for index, trial in enumerate(trials):
        shown = {key: getattr(trial, key) for key in ("mode", "task", "part", "variant", "counted")}
        outcome = "crashed" if index >= len(trials) - 2 else "success" if solved(index) else "failure"
        log.begin(trial)
        log.end(Outcome(trial.name, **shown, outcome=outcome, steps=3, instruction="", seed=0, stats={}, seconds=0.1))
    results = {"suite": "simpler", "model": model, "settings": settings, "tasks": scores_of(log, "google_robot")}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder / "results.json"


def test_trials_of_simpler_are_those_that_were_judged_and_count(tmp_path):
    path = run_of_simpler(tmp_path / "a", "a", lambda i: i % 2 == 0)
    with path.with_name("trials.jsonl").open("a") as file:
        file.write('{"trial": "matching/mo')  # cut short
    cells = read_trials(path)
    assert set(cells) == {("matching", "move_near"), ("matching", "average")}
    trials = cells["matching", "move_near"]
    assert len(trials) == 238
    assert len({trial.layout for trial in trials.values()}) == 60
    assert sum(trial.score for trial in trials.values()) == 119
    cameras = read_trials(run_of_simpler(tmp_path / "b", "b", lambda i: True, mode="variants"))
    assert len(cameras["variants", "move_near"]) == 480  # of 600: those of camera poses do not count


def test_the_same_trial_drawn_with_another_shader_is_another(tmp_path):
    runs = {
        name: run_of_simpler(tmp_path / name, name, bool, shader) for name, shader in zip("abc", (None, None, "x"))
    }
    named = [set(read_trials(path)["matching", "move_near"]) for path in runs.values()]
    assert named[0] == named[1]
    assert not named[0] & named[2]


def test_trials_of_the_tabletop(tmp_path):
    try:
        from gen_vla.evaluation.simulation.rollouts import Ending
        from gen_vla.evaluation.tabletop import episodes as episodes
    except Exception as error:  # the extra is not installed, or EGL fails: no library, no device, no permission
        pytest.skip(f"no simulator here: {error}; pip install 'gen-vla[sim]'")
    log = episodes.EpisodeLog(tmp_path / "episodes" / "policy.jsonl", {"model": "m"})
    outcomes: list[episodes.Outcome] = ["success", "malformed", "crashed", "success"]
    for seed, outcome in enumerate(outcomes, 1_000_130):
        job = episodes.TabletopJob("pick_object", seed, "go", 40, (), "masked", "ordinary/ordinary")
        log.finish(job, Ending(outcome, 1, 1))
    settings = {"benchmark": 1, "max_steps": {"pick_object": 40}, "episodes_per_task_and_variant": 3}
    policies = {"policy": {"identity": {"model": "m"}}, "zero": {"identity": {"control": "zero"}}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"settings": settings, "policies": policies}))
    cells = read_trials(path)
    assert list(cells) == [("masked", "pick_object"), ("masked", "average")]
    found = [(trial.layout, trial.score) for trial in cells["masked", "pick_object"].values()]
    assert found == [("1000130", 1.0), ("1000131", 0.0)]  # the fourth is of a longer run


def test_trials_of_questions(tmp_path):
    path = tmp_path / "vqa.json"
    path.write_text(json.dumps({"suite": "vqa", "tasks": []}))
    assert read_trials(path) == {}  # without the answers beside it
    answers = [{"task": "vizwiz", "question": "colour?", "score": 0.3}]
    answers += [{"task": "gqa", "question": name, "score": 1.0, "picture": "n1"} for name in ("what?", "where?")]
    (tmp_path / "vqa_answers.jsonl").write_text("\n".join(json.dumps(answer) for answer in answers))
    cells = read_trials(path)
    assert cells["questions", "vizwiz"] == {"0: colour?": Scored("0: colour?", "", 0.3)}
    assert {trial.layout for trial in cells["questions", "gqa"].values()} == {"picture n1"}
