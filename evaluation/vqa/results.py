"""Answers to visual questions summed up: scores with their n and 95 % intervals, tables, a picture.

Intervals are Wilson's where answers are right or wrong, and a bootstrap's for soft accuracy and F1; both are clustered
by picture where the data set names it, since questions about one picture tend to be answered alike. A figure is a row
of the results file: `task`, `metric`, `value`, `n` (what it is a share of), `interval`, `unparsable` (answers of the
task that were neither yes nor no), `majority` (what always giving the most frequent right answer, of a category, would
score) and `pictures` (the clusters, null where questions are taken to be independent).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from rich.table import Table

from gen_vla.evaluation.statistics.intervals import Scored, clustered_share
from gen_vla.evaluation.tables import percent, percent_range, results_table
from gen_vla.evaluation.vqa.lm_eval_tasks import yes_no
from gen_vla.evaluation.vqa.lm_eval_tasks.exact_match import plain
from gen_vla.evaluation.vqa.lm_eval_tasks.yes_no import Judgement


Figure = dict[str, Any]

RESAMPLES = 2000
PICTURE_COLUMNS = ("imageId", "image_id", "image_source", "image_link")  # of GQA, TextVQA, POPE, VSR as published
HEADLINES = {  # the metric a task is compared by
    "soft_accuracy": "soft accuracy (agreement with ten people)",
    "exact_match": "exact match",
    "accuracy": "accuracy of yes or no",
}
NAMES = {"textvqa": "TextVQA", "pope": "POPE", "gqa": "GQA", "vizwiz": "VizWiz", "vsr": "VSR"}


def task_figures(task: str, samples: Sequence[dict[str, Any]]) -> list[Figure]:
    """All figures of one task, overall and by category, of lm-eval's logged samples, which hold the row asked about as
    `doc`, the right answer as `target`, and what `process_results` returned; raises `ValueError` without samples, or
    if they hold no metric that is known here."""
    if not samples:
        raise ValueError(f"got no answers of task {task}, expected at least one")
    figures = _group_figures(task, samples)
    groups: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        name = sample["doc"].get("category") if "f1" in sample else sample["doc"].get("kind")
        if name is not None:
            groups.setdefault(name, []).append(sample)
    parts = [figure for name in sorted(groups) for figure in _group_figures(f"{task}/{name}", groups[name])]
    if known := [part for part in parts if part["majority"] is not None]:
        figures[0]["majority"] = round(sum(part["majority"] * part["n"] for part in known) / len(samples), 4)
    return figures + parts


def picture_of(doc: dict[str, Any]) -> str | None:
    return next((str(doc[column]) for column in PICTURE_COLUMNS if doc.get(column) is not None), None)


def _group_figures(task: str, samples: Sequence[dict[str, Any]]) -> list[Figure]:
    first, pictures = samples[0], [picture_of(sample["doc"]) for sample in samples]
    named = None not in pictures
    clusters = [str(name) for name in (pictures if named else range(len(samples)))]

    def figure(metric: str, value: float, of: Sequence[str], interval: Any, **counts: Any) -> Figure:
        return {
            "task": task,
            "metric": metric,
            "value": round(value, 4),
            "n": len(of),
            "interval": None if interval is None else [round(bound, 4) for bound in interval],
            **{"unparsable": None, "majority": None, **counts},
            "pictures": len(set(of)) if named else None,
        }

    def share(metric: str, right: Sequence[tuple[Any, str]], **counts: Any) -> Figure:
        """Of (whether an answer is right, its cluster); where each cluster has one, the interval is Wilson's."""
        found = (
            clustered_share([Scored(cluster, "", float(is_right)) for is_right, cluster in right]) if right else None
        )
        of = [cluster for _, cluster in right]
        return figure(metric, found.share if found else 0.0, of, found and found.interval, **counts)

    if "soft_accuracy" in first:
        rows = np.array([(sample["soft_accuracy"], 1.0) for sample in samples], dtype=float)
        interval = bootstrap(rows, clusters, lambda drawn: drawn[:, 0] / drawn[:, 1])
        return [figure("soft_accuracy", float(rows[:, 0].mean()), clusters, interval)]
    if "exact_match" in first:
        most = Counter(plain(sample["target"]) for sample in samples).most_common(1)[0][1]
        right = [(sample["exact_match"], cluster) for sample, cluster in zip(samples, clusters, strict=True)]
        return [share("exact_match", right, majority=round(most / len(samples), 4))]
    if "accuracy" not in first:
        raise ValueError(f"got samples of task {task} with {sorted(first)}, expected one of {', '.join(HEADLINES)}")
    judgements = [Judgement(*sample["accuracy"]) for sample in samples]
    asked = [(*judgement, cluster) for judgement, cluster in zip(judgements, clusters, strict=True)]
    truths = sum(truth for truth, _ in judgements)
    majority = round(max(truths, len(asked) - truths) / len(asked), 4)
    neither = sum(said is None for _, said in judgements)
    right = {  # each is a share of its own n
        "accuracy": [(truth == said, cluster) for truth, said, cluster in asked],
        "precision": [(truth, cluster) for truth, said, cluster in asked if said],
        "recall": [(said is True, cluster) for truth, said, cluster in asked if truth],
        "yes_ratio": [(said is True, cluster) for _, said, cluster in asked],
    }
    figures = []
    for metric in (name for name in yes_no.METRICS if name in first and name != "unparsable"):
        if metric == "f1":
            interval = bootstrap_f1(judgements, clusters)
            figures.append(figure("f1", yes_no.f1(judgements), clusters, interval, unparsable=neither))
        else:
            counts = {"unparsable": neither, "majority": majority if metric == "accuracy" else None}
            figures.append(share(metric, right[metric], **counts))
    return figures


def bootstrap_f1(judgements: Sequence[Judgement], clusters: Sequence[str] | None = None) -> tuple[float, float]:
    """95 % percentile bootstrap of F1 = 2 r / (2 r + w + m) over questions: right yes, wrong yes, missed yes."""
    said_yes = [(truth, said is True) for truth, said in judgements]
    rows = np.array([(truth and yes, not truth and yes, truth and not yes) for truth, yes in said_yes], dtype=float)

    def f1(drawn: np.ndarray) -> np.ndarray:
        return 2 * drawn[:, 0] / np.maximum(2 * drawn[:, 0] + drawn[:, 1] + drawn[:, 2], 1)

    return bootstrap(rows, clusters or [str(row) for row in range(len(rows))], f1)


def bootstrap(
    rows: np.ndarray, clusters: Sequence[str], statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float]:
    """95 % percentile bootstrap of a statistic of sums [RESAMPLES, K] over clusters of questions, whose rows are
    float64 [questions, K]. Many are alike: drawing their counts is a thousand times as fast as scipy's `bootstrap`."""
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, place, rows)
    kinds, counts = np.unique(sums.round(9), axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    low, high = np.quantile(statistic(drawn @ kinds), (0.025, 0.975))
    return float(low), float(high)


def headlines(figures: Sequence[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure["metric"] in HEADLINES]


def question_scores_table(figures: Sequence[Figure], title: str) -> Table:
    rows = [
        (
            head["task"],
            percent(head["value"], 1),
            percent_range(head["interval"], 1),
            head["n"],
            "not named" if head["pictures"] is None else head["pictures"],
            percent(head["majority"], 1),
            head["metric"].replace("_", " "),
        )
        for head in headlines(figures)
    ]
    caption = "Without named pictures, questions are taken for independent: several about one are not."
    blind = any(head["pictures"] is None for head in headlines(figures))
    columns = ("task", "%", "95 %", "n", "pictures", "majority", "scored by")
    return results_table(title, columns, rows, no_wrap=True, caption=caption if blind else None)


def yes_no_table(figures: Sequence[Figure]) -> Table | None:
    """The other figures of yes-or-no tasks, unparsable answers among them; `None` without such a task."""
    rows = []
    for head in headlines(figures):
        if head["unparsable"] is not None:
            values = {figure["metric"]: figure["value"] for figure in figures if figure["task"] == head["task"]}
            shares = [percent(values.get(metric), 1) for metric in ("precision", "recall", "f1", "yes_ratio")]
            rows.append((head["task"], *shares, head["unparsable"], head["n"]))
    columns = ("task", "precision", "recall", "F1", "says yes", "neither", "n")
    return (
        results_table("Yes or no: %, and how many answers were neither", columns, rows, no_wrap=True) if rows else None
    )


def plot_results(figures: Sequence[Figure], path: str | Path, title: str) -> None:
    heads = headlines(figures)
    drawing = Drawing(figsize=(8, 1.6 + 0.34 * len(heads)), layout="constrained")
    axes = drawing.subplots()
    for metric, label in HEADLINES.items():
        if bars := [(place, head) for place, head in enumerate(heads) if head["metric"] == metric]:
            values = np.array([(head["value"], *head["interval"]) for _, head in bars]) * 100
            spread = np.abs(values[:, 1:] - values[:, :1]).T
            axes.barh([place for place, _ in bars], values[:, 0], xerr=spread, label=label)
    if marks := [(100 * head["majority"], place) for place, head in enumerate(heads) if head["majority"] is not None]:
        axes.scatter(*zip(*marks), marker="|", s=170, color="black", zorder=3, label="always the most frequent answer")
    names = []
    for head in heads:
        task, _, category = head["task"].partition("/")
        name = ": ".join(filter(None, (NAMES.get(task) or task, category.replace("_", " "))))
        names.append(f"{name}, n = {head['n']:,}")
    axes.set_yticks(range(len(heads)), names)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="%, with 95 % intervals", title=title)
    drawing.legend(loc="outside lower center", ncols=2)
    drawing.savefig(path, dpi=130)
