"""Single trials beside result files, as the suites themselves write both."""

import json

import pytest

from gen_vla.evaluation.report.trials import Cell, read_trials
from gen_vla.evaluation.simpler.runs import Outcome, TrialLog
from gen_vla.evaluation.simpler.suite import results_of
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
    results = results_of(log, model, "google_robot", settings, {"device": "none"})
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder / "results.json"


def test_trials_of_simpler_are_those_that_were_judged_and_count(tmp_path):
    path = run_of_simpler(tmp_path / "a", "a", lambda i: i % 2 == 0)
    cells = read_trials(path)
    assert set(cells) == {Cell("matching", "move_near"), Cell("matching", "average")}
    trials = cells[Cell("matching", "move_near")]
    assert len(trials) == 238
    assert len({trial.layout for trial in trials.values()}) == 60
    assert sum(trial.score for trial in trials.values()) == 119
    cameras = read_trials(run_of_simpler(tmp_path / "b", "b", lambda i: True, mode="variants"))
    assert len(cameras[Cell("variants", "move_near")]) == 480  # of 600: those of camera poses do not count


def test_the_same_trial_drawn_otherwise_is_another(tmp_path):
    named = [
        set(read_trials(run_of_simpler(tmp_path / name, name, lambda i: True, shader))[Cell("matching", "move_near")])
        for name, shader in (("a", None), ("b", None), ("c", "ibl"))
    ]
    assert named[0] == named[1]
    assert not named[0] & named[2]


def test_a_line_cut_short_is_left_out(tmp_path):
    path = run_of_simpler(tmp_path, "a", lambda i: True)
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"trial": "matching/mo')
    assert len(read_trials(path)[Cell("matching", "move_near")]) == 238


def test_trials_of_the_tabletop(tmp_path):
    try:
        from gen_vla.evaluation.tabletop import episodes as episodes
    except Exception as error:  # the extra is not installed, or EGL fails: no library, no device, no permission
        pytest.skip(f"no simulator here: {error}; pip install 'gen-vla[sim]'")
    log = episodes.EpisodeLog(tmp_path / "episodes" / "policy.jsonl", {"model": "m"})
    outcomes: list[episodes.Outcome] = ["success", "malformed", "crashed", "success"]
    for seed, outcome in enumerate(outcomes, 1_000_000):
        log.add(episodes.TabletopEpisode("masked", "ordinary/ordinary", "pick_object", seed, "go", "", outcome, 1, 1))
    settings = {"benchmark": 1, "max_steps": {"pick_object": 40}, "seeds": [1_000_000, 1_000_002]}
    policies = {"policy": {"identity": {"model": "m"}}, "zero": {"identity": {"control": "zero"}}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"settings": settings, "policies": policies}))
    cells = read_trials(path)
    assert list(cells) == [Cell("masked", "pick_object"), Cell("masked", "average")]
    assert [layout_and_score(trial) for trial in cells[Cell("masked", "pick_object")].values()] == [
        ("1000000", 1.0),
        ("1000001", 0.0),  # the fourth is of a longer run
    ]


def layout_and_score(trial):
    return trial.layout, trial.score


def test_trials_of_drawers_and_questions(tmp_path):
    episodes = [{"task": "drawer-open", "seed": 7, "success": True}]
    drawers = tmp_path / "drawers.json"
    drawers.write_text(json.dumps({"rollouts": [{"episodes": episodes}, {"episodes": []}]}))
    assert read_trials(drawers) == {Cell("", "drawer-open"): {"7": Scored("7", "", 1.0)}}
    questions = tmp_path / "vqa.json"
    questions.write_text(json.dumps({"suite": "vqa", "tasks": []}))
    assert read_trials(questions) == {}  # without the answers beside it
    answers = [{"task": "vizwiz", "question": "colour?", "score": 0.3}]
    (tmp_path / "vqa_answers.jsonl").write_text("\n".join(json.dumps(answer) for answer in answers))
    assert read_trials(questions) == {Cell("questions", "vizwiz"): {"0: colour?": Scored("0: colour?", "", 0.3)}}
    answers = [{"task": "gqa", "question": name, "score": 1.0, "picture": "n1"} for name in ("what?", "where?")]
    (tmp_path / "vqa_answers.jsonl").write_text("\n".join(json.dumps(answer) for answer in answers))
    trials = read_trials(questions)[Cell("questions", "gqa")]
    assert {trial.layout for trial in trials.values()} == {"picture n1"}


def test_files_without_trials(tmp_path):
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"suite": "latency"}))
    assert read_trials(path) == {}
