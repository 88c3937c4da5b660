"""Runs that differ by their training seed: found by their records, their mean in the tables, comparisons."""

import json

import pytest
from test_report_comparisons import differences
from test_report_trials import run_of_simpler

from gen_vla.evaluation.report.seeds import ON_SEEDS, group_name
from gen_vla.evaluation.report.tables import as_markdown, card_results, make_report


def seed_runs(folder, recipe, solved, seeds=(0, 1, 2), settings="aaaa11112222", **options):
    """Result files of runs of one recipe in folders of one name; `solved(seed, i)` says which trials succeed."""
    paths = []
    for seed in seeds:
        path = run_of_simpler(folder / str(seed), f"seed{seed}/{recipe}", lambda i, s=seed: solved(s, i), **options)
        results = json.loads(path.read_text())
        results["trained"] = {"recipe": recipe, "seed": seed, "settings": settings}
        path.write_text(json.dumps(results))
        paths.append(path)
    return paths


def forget_records(paths):
    for path in paths:
        results = json.loads(path.read_text())
        del results["trained"]
        path.write_text(json.dumps(results))
    return paths


def ours(report, table, model, task):
    (found,) = (entry for entry in report["tables"] if entry["name"] == table)
    return next(r["ours"] for r in found["rows"] if (r["model"], r["task"]) == (model, task))


@pytest.fixture
def base(tmp_path):
    """OpenVLA: solves every third trial, of which each seed loses other ones."""
    return seed_runs(tmp_path / "base", "openvla-rt1", lambda s, i: i % 3 == 0 and i % (9 + s) != 0)


@pytest.fixture
def plus(tmp_path):
    return seed_runs(tmp_path / "d", "openvla-rt1-d", lambda s, i: i % 2 == 0 or i % (7 + s) == 0, settings="bbbb")


def test_runs_of_one_recipe_are_one_row_with_the_spread_between_them_in_it(base):
    report = make_report(base)
    (mean,) = ours(report, "Table II", "OpenVLA", "Move Near")
    runs = [f for f in report["figures"] if f["mean"] == "openvla-rt1" and f["task"] == "move_near"]
    assert [run["value"] for run in mean["seeds"]] == [run["value"] for run in runs]
    assert mean["value"] == pytest.approx(sum(run["value"] for run in runs) / 3, abs=1e-5)
    assert (mean["model"], mean["n"], mean["crashed"]) == ("openvla-rt1", 3 * 238, 6)
    assert mean["interval"][0] < mean["value"] < mean["interval"][1]
    page = as_markdown(report)
    values = ", ".join(f"{100 * run['value']:.1f}" for run in runs)
    assert f", 3 seeds: {values}, n 714, 6 crashed [openvla-rt1] |" in page
    assert "training seed 2, one of openvla-rt1 |" in page  # each run stands below, by itself
    assert ON_SEEDS in page
    cards = card_results(report)
    assert set(cards) == {f"seed{seed}-openvla-rt1-seed{seed}" for seed in range(3)}  # of runs, not of means
    assert [figure["n"] for figure in cards["seed1-openvla-rt1-seed1"]["figures"]] == [238]


def test_one_run_is_what_it_was(base):
    report = make_report(base[:1])
    (alone,) = ours(report, "Table II", "OpenVLA", "Move Near")
    (plain,) = ours(make_report(forget_records(base[:1])), "Table II", "OpenVLA", "Move Near")
    assert {**alone, "trained": None} == plain
    assert ON_SEEDS not in as_markdown(report)


def test_recipes_are_compared_with_their_seeds_in_it(base, plus):
    report = make_report([*base, *plus])
    (found,) = differences(report, "Table II", "OpenVLA+D", "Move Near")
    assert (found["against"], found["label"], found["seeds"]) == ("openvla-rt1", "OpenVLA", [3, 3])
    assert (found["pairs"], found["layouts"]) == (238, 60)
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    assert 0 < found["p"] < 0.05
    assert ", 3 seeds against 3, 238 pairs in 60 layouts |" in as_markdown(report)
    alone = make_report([base[0], *plus])
    (one,) = differences(alone, "Table II", "OpenVLA+D", "Move Near")
    assert (one["against"], one["seeds"]) == ("seed0/openvla-rt1", [3, 1])


def test_without_trials_the_mean_says_so_and_is_wider(base):
    (paired,) = ours(make_report(base), "Table II", "OpenVLA", "Move Near")
    for path in base:
        (path.parent / "trials.jsonl").unlink()
    (found,) = ours(make_report(base), "Table II", "OpenVLA", "Move Near")
    assert found["note"].endswith("without the trials, which tell how alike the seeds are")
    assert "without the trials" not in paired["note"]
    assert found["value"] == paired["value"]
    assert found["interval"][0] < paired["interval"][0] < paired["interval"][1] < found["interval"][1]


def test_what_other_words_cost_is_asked_seed_by_seed(tmp_path):
    usual = seed_runs(tmp_path / "a", "openvla-rt1", lambda s, i: i % 60 < 20 + 10 * s)
    other = seed_runs(tmp_path / "b", "openvla-rt1", lambda s, i: i % 60 < 10 + 10 * s, mode="paraphrase")
    (drop,) = differences(make_report([*usual, *other]), "Table IV", "OpenVLA", "paraphrased: Move Near")
    assert (drop["label"], drop["seeds"]) == ("its own matching", [3, 3])
    assert drop["difference"] == pytest.approx(-1 / 6, abs=0.02)
    assert drop["interval"][1] < 0  # though seeds differ by more than the words cost


def test_runs_without_a_record_stay_apart(base):
    assert len(ours(make_report(forget_records(base)), "Table II", "OpenVLA", "Move Near")) == 3


def test_a_copy_of_a_run_under_another_name_is_no_other_seed(base):
    results = json.loads(base[0].read_text())
    copy = base[0].with_name("copy.json")
    copy.write_text(json.dumps({**results, "model": "copy/openvla-rt1"}))
    report = make_report([base[0], copy])
    assert len(ours(report, "Table II", "OpenVLA", "Move Near")) == 2
    assert (
        "No mean over seeds of openvla-rt1: of copy/openvla-rt1 (seed 0), seed0/openvla-rt1 (seed 0) two"
        in as_markdown(report)
    )


def test_two_figures_of_one_run_are_not_put_together(base):
    again = base[0].with_name("again.json")
    again.write_text(base[0].read_text())
    report = make_report([*base, again])
    assert any("move_near, success rate: two figures of seed0/openvla-rt1" in note for note in report["notes"])
    assert len(ours(report, "Table II", "OpenVLA", "Move Near")) == 4


def test_a_folder_that_was_trained_again_is_another_run(base):
    for path in base:
        path.write_text(json.dumps({**json.loads(path.read_text()), "model": "outputs/openvla-rt1"}))
    report = make_report(base)
    (mean,) = ours(report, "Table II", "OpenVLA", "Move Near")
    assert [run["seed"] for run in mean["seeds"]] == [0, 1, 2]
    assert set(card_results(report)) == {f"outputs-openvla-rt1-seed{seed}" for seed in range(3)}


@pytest.mark.parametrize(
    ("recipes", "name"),
    [
        (["openvla-rt1-d"] * 2, "openvla-rt1-d"),
        (["openvla-rt1-seed0", "openvla-rt1-seed1"], "openvla-rt1"),
        (["openvla-rt1-s0", "openvla-rt1-s12"], "openvla-rt1"),
        (["mine", "yours"], "mine"),
    ],
)
def test_names_of_recipes_lose_their_seeds(recipes, name):
    assert group_name(recipes) == name
