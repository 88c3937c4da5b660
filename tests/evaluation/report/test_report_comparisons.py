"""Two policies in one report: paired where they ran the same trials, and which rows are compared with which."""

import json
from pathlib import Path

import pytest
from test_report_trials import run_of_simpler

from gen_vla.commands.main import main
from gen_vla.evaluation.report.comparisons import EXPLANATION, difference_text
from gen_vla.evaluation.report.tables import as_markdown, card_results, make_report


def differences(report, name, model, task):
    (found,) = (t for t in report["tables"] if t["name"] == name)
    return [d for row in found["rows"] if (row["model"], row["task"]) == (model, task) for d in row["differences"]]


@pytest.fixture
def runs(tmp_path):
    """OpenVLA solves every third trial, +D those and every seventh; both on RT-1, and one on Bridge."""
    return [
        run_of_simpler(tmp_path / "base", "runs/openvla-rt1", lambda i: i % 3 == 0),
        run_of_simpler(tmp_path / "d", "runs/openvla-rt1-d", lambda i: i % 3 == 0 or i % 7 == 0),
        run_of_simpler(tmp_path / "bridge", "runs/openvla-bridge", lambda i: i % 2 == 0),
    ]


def test_an_ablation_stands_beside_its_difference_from_the_baseline(runs):
    report = make_report(runs)
    (found,) = differences(report, "Table II", "OpenVLA+D", "Move Near")
    assert (found["against"], found["label"]) == ("runs/openvla-rt1", "OpenVLA")  # not the one on Bridge
    assert found["difference"] == pytest.approx(22 / 238, abs=5e-3)  # means over colours, of which one lacks two
    assert (found["pairs"], found["layouts"]) == (238, 60)
    assert found["p"] < 1e-4  # it never does worse
    low, high = found["interval"]
    assert 0 < low < found["difference"] < high < 0.2
    assert differences(report, "Table II", "OpenVLA", "Move Near") == []
    page = as_markdown(report)
    assert "| model | task | ours: tabletop | ours: SimplerEnv | difference | paper, 7B and 3B" in page
    assert "from OpenVLA, p < 0.0001, 238 pairs in 60 layouts | 63.75, 7B |" in page
    assert EXPLANATION in page
    json.dumps(report)


@pytest.mark.parametrize("older", [False, True])
def test_without_the_trials_a_comparison_is_unpaired(runs, older):
    """The trials are missing, or of another run than the older results that are reported."""
    paired = differences(make_report(runs), "Table II", "OpenVLA+D", "Move Near")[0]
    path = runs[0].parent / "trials.jsonl"
    path.write_text(path.read_text().replace('"outcome": "failure"', '"outcome": "success"') if older else "")
    (found,) = differences(make_report(runs), "Table II", "OpenVLA+D", "Move Near")
    assert (found["pairs"], found["p"]) == (0, None)
    assert found["difference"] == paired["difference"]
    assert found["interval"][0] < paired["interval"][0] < paired["interval"][1] < found["interval"][1]
    assert difference_text(found).endswith("from OpenVLA, unpaired")


def test_other_words_are_compared_with_the_usual_ones_trial_by_trial(tmp_path):
    """The same trials told otherwise: what the words cost one model, and what they leave of the lead of another."""
    usual = run_of_simpler(tmp_path / "a", "openvla-rt1", lambda i: i % 2 == 0)
    other = run_of_simpler(tmp_path / "b", "openvla-rt1", lambda i: i % 4 == 0, mode="paraphrase")
    plus = run_of_simpler(tmp_path / "c", "openvla-plus-rt1", lambda i: i % 2 == 0, mode="paraphrase")
    report = make_report([usual, other, plus])
    (drop,) = differences(report, "Table IV", "OpenVLA", "paraphrased: Move Near")
    assert (drop["label"], drop["pairs"], drop["layouts"]) == ("its own matching", 238, 60)
    assert drop["difference"] == pytest.approx(-0.25, abs=5e-3)
    assert drop["interval"][1] < 0
    assert differences(report, "Table IV", "OpenVLA", "original: Move Near") == []
    (lead,) = differences(report, "Table IV", "OpenVLA⁺", "paraphrased: Move Near")
    assert (lead["label"], lead["difference"]) == ("OpenVLA", -drop["difference"])


def test_the_tabletops_own_scores_are_paired(tmp_path):
    """Scores and episodes as its suite writes them: every figure, the averages too, finds its episodes again."""
    try:
        from gen_vla.evaluation.simulation.rollouts import Ending
        from gen_vla.evaluation.tabletop import episodes as episodes
        from gen_vla.evaluation.tabletop import scores as scores
    except Exception as error:  # the extra is not installed, or EGL fails: no library, no device, no permission
        pytest.skip(f"no simulator here: {error}; pip install 'gen-vla[sim]'")
    jobs = episodes.plan_jobs(("masked", "variants"), episodes=6)
    paths = []
    for name, every in (("openvla", 3), ("openvla-plus", 2)):
        log = episodes.EpisodeLog(tmp_path / name / "episodes" / "policy.jsonl", {"model": name})
        for job in jobs:
            won: episodes.Outcome = "success" if job.seed % every == 0 else "failure"
            log.finish(job, Ending(won, 1, 1))
        policies = {"policy": {"identity": {"model": name}, "scores": scores.summarise(log.of(jobs))}}
        settings = {"benchmark": 1, "max_steps": {}, "episodes_per_task_and_variant": 6, "machine": "none"}
        paths.append(tmp_path / name / "results.json")
        paths[-1].write_text(json.dumps({"settings": settings, "policies": policies}))
    report = make_report(paths)
    found = [differences(report, "Table III", "OpenVLA⁺", f"{mode}: Avg")[0] for mode in ("masked", "variants")]
    assert [(d["pairs"], d["layouts"]) for d in found] == [(24, 6), (576, 6)]
    assert [d["difference"] for d in found] == pytest.approx([1 / 6, 1 / 6], abs=1e-3)
    (one,) = differences(report, "Table III", "OpenVLA⁺", "variants: Open Drawer")
    assert (one["pairs"], one["layouts"]) == (144, 6)


def test_a_model_of_ones_own_is_compared_with_the_one_named(tmp_path, capsys):
    base = run_of_simpler(tmp_path / "a", "runs/old", lambda i: i % 3 == 0)
    mine = run_of_simpler(tmp_path / "b", "runs/new", lambda i: i % 2 == 0)
    assert differences(make_report([base, mine]), "Table II", "new", "Move Near") == []
    (found,) = differences(make_report([base, mine], against="runs/old"), "Table II", "new", "Move Near")
    assert found["against"] == "runs/old"
    with pytest.raises(ValueError, match=r"got the model 'old' to compare with; (did you mean .*)?known: runs/old"):
        make_report([base, mine], against="old")
    arguments = ["evaluate", "report", str(base), str(mine), "--against", "runs/old", "--output", str(tmp_path / "r")]
    assert main(arguments) == 0
    assert "from old, p" in (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out


def test_questions_are_paired_by_their_answers(tmp_path):
    def asked(name: str, right: list[bool], scores: list[float]) -> Path:
        rows = [("gqa", "exact_match", [float(r) for r in right]), ("vizwiz", "soft_accuracy", scores)]
        entries, answers = [], []
        for task, metric, values in rows:
            value = sum(values) / len(values)
            bounds = [max(0.0, value - 0.1), value + 0.1]
            entries.append({"task": task, "metric": metric, "value": value, "n": len(values), "interval": bounds})
            answers += [{"task": task, "question": f"q{i}", "score": v} for i, v in enumerate(values)]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"suite": "vqa", "model": name, "tasks": entries}))
        path.with_name(f"{name}_answers.jsonl").write_text("\n".join(json.dumps(a) for a in answers))
        return path

    base = asked("openvla", [False] * 6 + [True] * 4, [0.3, 0.6] * 5)
    plus = asked("openvla-plus", [True] * 10, [0.6, 0.9] * 5)
    report = make_report([base, plus])
    (gqa,) = differences(report, "Figure 5", "OpenVLA⁺", "GQA")
    assert (gqa["pairs"], gqa["p"]) == (10, pytest.approx(2 / 2**6))  # six of six went one way
    (vizwiz,) = differences(report, "Figure 5", "OpenVLA⁺", "VizWiz")
    assert (vizwiz["pairs"], vizwiz["p"]) == (10, None)  # neither right nor wrong
    assert vizwiz["difference"] == pytest.approx(0.3)
    assert set(card_results(report)) == {"openvla", "openvla-plus"}
