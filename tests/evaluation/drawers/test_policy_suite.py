"""The suite's summary and the card's figures from results with known numbers; latency on a tiny model."""

from rich.console import Console

from gen_vla.evaluation.benchmarks.latency import describe_machine, measure_latency
from gen_vla.evaluation.drawers.rollouts import Report, Score
from gen_vla.evaluation.drawers.suite import as_card_results, summary_table
from gen_vla.evaluation.vqa.scene_questions import KindScore, QuestionReport


def results() -> dict:
    def report(name: str, close: int, opened: int) -> Report:
        scores = {
            "drawer-close": Score(close, 50, (0.5, 0.9), 0, 12.0),
            "drawer-open": Score(opened, 50, (0.25, 0.75), 0, None),
        }
        return Report(name, scores, [], {}, 1.0, 0.5)

    return {
        "rollouts": [report("policy", 45, 40), report("zero actions", 0, 0)],
        "questions": QuestionReport(KindScore(30, 40, (0.6, 0.9), 0.4), {}),
        "latency": {"median_ms": 12.5, "p95_ms": 20.0, "forward_passes": 49, "n": 20, "machine": {"device": "cpu"}},
    }


def test_summary_shows_counts_intervals_controls_and_speed():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(results(), "a model"))
    text = console.export_text()
    for expected in ("45/50 (50-90 %)", "40/50 (25-75 %)", "zero actions", "30/40 (60-90 %)", "majority 40 %", "12.5"):
        assert expected in text


def test_card_figures_mark_controls_and_carry_n_and_interval():
    card = as_card_results(results())
    first, control = card["figures"][0], card["figures"][2]
    assert (first["value"], first["n"], first["interval"], first["control"]) == (0.9, 50, "0.50-0.90", False)
    assert (control["note"], control["value"], control["control"]) == ("zero actions", 0.0, True)
    assert card["figures"][-1]["value"] == 0.75
    assert "49 forward passes" in card["environment"]["milliseconds per action"]


def test_latency_counts_passes_and_names_the_machine(tiny_openvla):
    model, processor = tiny_openvla
    figures = measure_latency(model, processor, repeats=3, warmup=1, progress=False)
    assert 2 <= figures["forward_passes"] < 15  # three values of five characters
    assert figures["n"] == 3
    assert 0 < figures["median_ms"] <= figures["p95_ms"]
    assert figures["machine"] == describe_machine()
    assert figures["machine"]["device"]
