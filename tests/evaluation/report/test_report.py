"""The report: the paper's figures as printed, ours from real and written result files, in their own columns."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from gen_vla.commands.main import main
from gen_vla.evaluation.report.figures import read_results
from gen_vla.evaluation.report.tables import as_markdown, card_results, load_paper, make_report, row_name
from gen_vla.training.publishing.card import checked_figure
from gen_vla.training.recipes.loading import load_recipe, recipe_names


RESULTS = Path(__file__).resolve().parents[3] / "evaluation" / "results"
TASKS = ("pick_coke_can", "open_drawer", "close_drawer", "move_near")
MACHINE = {"device": "a card", "threads": 4, "parameters": 57680}


def write(path, results):
    path.write_text(json.dumps(results), encoding="utf-8")
    return path


@pytest.fixture
def simpler(tmp_path):
    """All four tasks in matching, one crash and one malformed action."""
    tasks = []
    for task, value in zip(TASKS, (0.9, 0.5, 0.7, 0.3), strict=True):
        entry = {"mode": "matching", "task": task, "metric": "success rate", "value": value, "n": 100, "expected": 100}
        tasks.append({**entry, "interval": [value - 0.1, value + 0.1], "malformed": 0, "crashed": 0})
    tasks[0].update(malformed=1, crashed=2, n=98)
    results = {"suite": "simpler", "model": "gen-vla/openvla-sc", "environment": MACHINE, "tasks": tasks}
    results["provenance"] = {
        "command": "gen-vla evaluate simpler gen-vla/openvla-sc",
        "date": "2026-11-23T10:39:52+00:00",
        "code": {"commit": "3cfdda4" + 33 * "0", "modified": []},
    }
    return write(tmp_path / "simpler.json", results)


@pytest.fixture
def tabletop(tmp_path):
    """One task of a model and of a control."""
    counts = {"successes": 30, "n": 50, "rate": 0.6, "interval": [0.46, 0.72], "malformed": 0, "crashed": 0}
    scores = {"matching": {"tasks": {"pick_object": counts}, "mean": 0.6}}
    policies = {
        "policy": {"identity": {"model": "outputs/mini_openvla_plus"}, "scores": scores},
        "zero": {"identity": {"control": "zero"}, "scores": scores},
    }
    machine = {"device": "Linux x86_64"}
    return write(tmp_path / "tabletop.json", {"machine": machine, "settings": {}, "policies": policies})


def table(report, name):
    return next(entry for entry in report["tables"] if entry["name"] == name)


def row(report, name, model, task):
    return next(r for r in table(report, name)["rows"] if (r["model"], r["task"]) == (model, task))


def test_printed_figures_are_transcribed_without_a_slip():
    """One average of the paper itself is off by 0.075."""
    tables = {entry["name"]: entry["rows"] for entry in load_paper()["tables"]}
    wrong = []
    for name in ("Table II", "Table III"):
        for model, values in tables[name].items():
            for first in range(0, len(values), 5):
                if abs(sum(values[first : first + 4]) / 4 - values[first + 4]) > 0.051:
                    wrong.append((name, model, first))
    assert wrong == [("Table III", "OpenVLA+SC", 0)]
    for model in ("OpenVLA", "OpenVLA+SC", "OpenVLA⁺", "π0⁺"):
        assert tables["Table IV"][model][0] == tables["Table II"][model][0]
        assert tables["Table IV"][model][2] == tables["Table II"][model][3]
    assert tables["Table II"]["OpenVLA⁺"] == [90.32, 53.50, 92.40, 77.60, 78.46]
    assert tables["Table V"]["OpenVLA⁺"][:3] == [60.0, 24.0, 64.0]
    assert tables["Section IV-C"]["π0⁺"] == [1.70]
    assert tables["Figure 3"]["OpenVLA+S"] == tables["Table II"]["OpenVLA+S"][:4]  # robot data alone
    means = {model: round(sum(values) / len(values), 2) for model, values in tables["Table V"].items()}
    assert means == {"OpenVLA": 10.67, "OpenVLA⁺": 25.0, "π0 w/ Inst. Aug.": 9.33, "π0⁺": 30.0}  # of Results.png


def test_a_recipe_trains_every_model_of_the_paper():
    """A row of the paper without a recipe would go unnoticed."""
    trained = {row_name(load_recipe(name).name)[0] for name in recipe_names()}
    bases = {"prismatic-dinosiglip-224px-7b", "paligemma-3b-pt-224-dual"}  # converted, not trained
    models = load_paper()["models"]
    assert "paper_tables.yaml" in (RESULTS.parents[1] / "setup.cfg").read_text(encoding="utf-8")  # is installed
    for name, facts in models.items():
        assert facts["slug"] in trained | bases, name
        assert set(facts.get("against", [])) <= set(models), name


def test_the_page_goes_through_every_table_and_names_recipes_there_are():
    page = (RESULTS.parents[1] / "docs" / "results" / "paper.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line[:1] == "|"]
    for printed in load_paper()["tables"]:
        assert any(line.startswith(f"| {printed['name']},") for line in rows), printed["name"]
    named = set(re.findall(r"`((?:openvla|pi0)_\w+)`", "\n".join(rows)))
    assert named
    for name in named - {"openvla_plus_rt1_only_"}:
        load_recipe(name)


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("runs/openvla-rt1-sc", ("openvla-sc", "rt1")),
        ("gen-vla/openvla-plus-bridge", ("openvla-plus", "bridge")),
        ("outputs/Mini_OpenVLA_Plus_tabletop/", ("openvla-plus", "tabletop")),
        ("openvla-rt1-sc-vqa-spatial", ("openvla-sc-vqa-spatial", "rt1")),
        ("mini-pi0-bridge", ("pi0", "bridge")),
    ],
)
def test_names_of_models_lead_to_their_rows(model, row):
    assert row_name(model) == row
    assert row[0] in [facts["slug"] for facts in load_paper()["models"].values()]


def test_ours_and_the_papers_stand_in_their_own_columns(simpler, tabletop):
    report = make_report([simpler, tabletop])
    ours = row(report, "Table II", "OpenVLA+SC", "Pick Can")
    assert (ours["paper"], ours["paper_size"]) == (78.34, "7B")
    assert [(f["benchmark"], f["value"]) for f in ours["ours"]] == [("SimplerEnv", 0.9)]
    lines = as_markdown(report).splitlines()
    paper = "paper, 7B and 3B (SimplerEnv, 300 episodes a task)"
    assert f"| model | task | ours: tabletop | ours: SimplerEnv | {paper} |" in lines
    shown = "90.0 (80.0-100.0), n 98, 1 malformed, 2 crashed [openvla-sc]"
    assert f"| OpenVLA+SC | Pick Can |  | {shown} | 78.34, 7B |" in lines
    assert "| OpenVLA⁺ | Pick Can | 60.0 (46.0-72.0), n 50 [openvla-plus] |  | 90.32, 7B |" in lines
    assert "| OpenVLA+D | Pick Can |  |  | 65.33, 7B |" in lines


def test_the_average_needs_all_four_tasks(simpler, tmp_path):
    report = make_report([simpler])
    (average,) = row(report, "Table II", "OpenVLA+SC", "Avg")["ours"]
    assert (average["value"], average["n"], average["malformed"]) == (0.6, 398, 1)
    assert average["interval"] == pytest.approx((0.55, 0.65))  # sqrt(4 * 0.1 ** 2) / 4 to both sides
    results = json.loads(simpler.read_text())
    results["tasks"].pop()
    assert row(make_report([write(tmp_path / "three.json", results)]), "Table II", "OpenVLA+SC", "Avg")["ours"] == []


def test_a_model_without_a_row_gets_its_own_and_may_be_given_one(simpler, tmp_path):
    results = {**json.loads(simpler.read_text()), "model": "outputs/my_model"}
    path = write(tmp_path / "mine.json", results)
    assert row(make_report([path]), "Table II", "my-model", "Pick Can")["paper"] is None
    assert row(make_report([path], {"outputs/my_model": "openvla-d"}), "Table II", "OpenVLA+D", "Pick Can")["ours"]
    with pytest.raises(ValueError, match=r"row 'openvla-pluss'.*did you mean 'openvla-plus'"):
        make_report([path], {"outputs/my_model": "openvla-pluss"})


def test_controls_stand_beside_and_are_no_results_of_the_model(tabletop):
    report = make_report([tabletop])
    control = [figure for figure in report["figures"] if figure["control"]]
    assert {(f["model"], f["note"]) for f in control} == {("outputs/mini_openvla_plus", "zero")}
    (card,) = card_results(report).values()
    assert [f["control"] for f in card["figures"]] == [False, False, True, True]
    entries = card["model-index"][0]["results"]
    assert sum(len(entry["metrics"]) for entry in entries) == 2
    assert all(checked_figure(figure) for figure in card["figures"])
    assert card["figures"][0]["interval"] == "0.46-0.72"


def test_results_in_the_repository_are_read():
    counted = json.loads((RESULTS / "decoding_passes_bridge.json").read_text(encoding="utf-8"))["passes_on_bridge"]
    passes = read_results(RESULTS / "decoding_passes_bridge.json")
    assert [figure["value"] for figure in passes] == [entry["mean"] for entry in counted]
    assert read_results(RESULTS / "decoding_h200_7b.json")[0]["metric"] == "median ms"


def test_what_the_expert_does_is_no_success_of_the_policy():
    """Not in the paper's tables, under whichever row."""
    report = make_report([RESULTS / "aim_mini_vlm.json"], {"package://mini-vlm": "openvla-plus"})
    assert not [f for table in report["tables"] for entry in table["rows"] for f in entry.get("ours", ())]
    assert "by the scripted expert, matching | pick_object | success where the model points | 0.99" in as_markdown(
        report
    )


def test_questions_go_to_figure_5(tmp_path):
    tasks = [
        {"task": "pope", "metric": "accuracy", "value": 0.8, "n": 90, "interval": [0.7, 0.9], "majority": 0.5},
        {"task": "pope", "metric": "f1", "value": 0.7, "n": 90, "interval": [0.6, 0.8], "majority": None},
    ]
    path = write(tmp_path / "vqa.json", {"suite": "vqa", "model": "pi0-plus", "environment": MACHINE, "tasks": tasks})
    report = make_report([path])
    (ours,) = row(report, "Figure 5", "π0⁺", "POPE")["ours"]
    assert (ours["value"], ours["note"]) == (0.8, "always the most frequent answer: 0.50")
    assert "| pi0-plus | visual questions, questions | pope | f1 | 0.7 | 0.6-0.8 | 90 |  |" in as_markdown(report)


def test_probes_go_to_figure_4(tmp_path):
    tasks = [
        {"role": role, "tower": tower, "task": f"linear probe on cifar10, {tower}, {role}", "metric": "accuracy"}
        | {"value": value, "n": 2000, "interval": [value - 0.02, value + 0.02]}
        for role, tower, value in (("before", "joined", 0.8), ("after", "joined", 0.7), ("after", "dino", 0.6))
    ]
    models = {"before": "prismatic-dinosiglip-224px-7b", "plain": None, "after": "openvla-rt1"}
    results = {"suite": "representations", "model": "openvla-rt1", "models": models, "data": "cifar10", "tasks": tasks}
    report = make_report([write(tmp_path / "probes.json", results)])
    assert [f["value"] for f in row(report, "Figure 4", "OpenVLA", "all encoders")["ours"]] == [0.7]
    assert [f["value"] for f in row(report, "Figure 4", "OpenVLA's VLM", "all encoders")["ours"]] == [0.8]
    own = card_results(report)["openvla-rt1"]["figures"]
    assert [(f["value"], f["control"]) for f in own] == [(0.8, True), (0.7, False), (0.6, False)]


@pytest.mark.parametrize(("content", "message"), [("{", "got no JSON"), ('{"a": 1}', "got a, expected the results")])
def test_an_unknown_file_is_named(tmp_path, content, message, capsys):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"odd\.json: {message}"):
        read_results(path)
    assert main(["evaluate", "report", str(path), "--output", str(tmp_path)]) == 2
    assert "odd.json" in capsys.readouterr().err


def test_the_command_writes_a_page_cards_and_pictures(simpler, tabletop, tmp_path, capsys):
    folder = tmp_path / "report"
    assert main(["evaluate", "report", str(simpler), str(tabletop), "--output", str(folder)]) == 0
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    cards = {"cards/openvla-sc.json", "cards/openvla-plus.json"}
    assert names == {"report.md", "report.json", "table-ii.png", "table-iv.png", "figure-3.png", *cards}
    page = (folder / "report.md").read_text()
    typed = "gen-vla evaluate simpler gen-vla/openvla-sc"
    assert f"| openvla-sc | 57,680 | a card, 4 threads | simpler.json | 2026-11-23 | 3cfdda4 | `{typed}` |" in page
    assert "| openvla-plus |  | Linux x86_64 | tabletop.json |  |  |  |" in page  # a file without such a record
    command = {"command": typed, "date": "2026-11-23", "commit": "3cfdda4"}
    assert json.loads((folder / "cards" / "openvla-sc.json").read_text())["commands"] == [command]
    assert json.loads((folder / "cards" / "openvla-plus.json").read_text())["commands"] == []
    report = json.loads((folder / "report.json").read_text())
    assert report["provenance"]["command"].startswith("gen-vla evaluate report ")
    with Image.open(folder / "table-ii.png") as picture:
        assert picture.width > 700
    assert main(["evaluate", "report", str(simpler), "--row", "openvla", "--output", str(folder)]) == 2
    assert "expected MODEL=ROW" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["outputs/mine", "{}/outputs/mine"])  # as files have it, and as old files do
@pytest.mark.parametrize("typed", ["outputs/mine", "{}/outputs/mine"])
def test_models_in_folders_of_the_user_are_found(tmp_path, monkeypatch, simpler, written, typed):
    monkeypatch.chdir(tmp_path)
    write(simpler, {**json.loads(simpler.read_text()), "model": written.format(tmp_path)})
    report = make_report([simpler], {typed.format(tmp_path): "openvla-sc"})
    assert row(report, "Table II", "OpenVLA+SC", "Move Near")["ours"][0]["model"] == "outputs/mine"
