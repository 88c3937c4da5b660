"""Answers to visual questions summed up: scores with their n and 95 % intervals, tables, a picture.

Intervals are Wilson's where answers are right or wrong, and a bootstrap's for soft accuracy and F1; both are clustered
by picture where the data set names it, since questions about one picture tend to be answered alike. A figure is a row
of the results file:

    {"task": "pope/adversarial", "metric": "recall", "value": 0.81, "n": 1500, "interval": [0.79, 0.83],
     "unparsable": 3 or null, "majority": 0.5 or null, "pictures": 500 or null}

`n` counts what the figure is a share of; `unparsable` the answers of the task that were neither yes nor no; `majority`
is what always giving the most frequent right answer (of a category, where there are some) would score; `pictures` is
the number of clusters, null where pictures are not named and questions are taken to be independent.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.table import Table

from gen_vla.evaluation.statistics.intervals import Scored, clustered_share, wilson_interval
from gen_vla.evaluation.vqa.lm_eval_tasks import yes_no
from gen_vla.evaluation.vqa.lm_eval_tasks.exact_match import plain
from gen_vla.evaluation.vqa.lm_eval_tasks.yes_no import Judgement


matplotlib.use("Agg")
import matplotlib.pyplot as plt


Figure = dict[str, Any]
Pictures = Sequence[str] | None  # one per question, or not known

RESAMPLES = 2000
PICTURE_COLUMNS = ("imageId", "image_id", "image_source", "image_link")  # of GQA, TextVQA, POPE, VSR as published
HEADLINES = {  # the metric a task is compared by: its colour and label
    "soft_accuracy": ("#2e6f95", "soft accuracy (agreement with ten people)"),
    "exact_match": ("#3a7d44", "exact match"),
    "accuracy": ("#d1495b", "accuracy of yes or no"),
}
NAMES = {"textvqa": "TextVQA", "pope": "POPE", "gqa": "GQA", "vizwiz": "VizWiz", "vsr": "VSR"}


def task_figures(task: str, samples: Sequence[dict[str, Any]]) -> list[Figure]:
    """All figures of one task, overall and by category.

    Args:
        task: its name.
        samples: lm-eval's logged samples, which hold the row asked about as `doc`, the right answer as `target`, and
            what `process_results` returned.

    Raises:
        ValueError: without samples, or if they hold no metric that is known here.
    """
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
    """The name of the picture that a row asks about, where the data set has one."""
    return next((str(doc[column]) for column in PICTURE_COLUMNS if doc.get(column) is not None), None)


def _group_figures(task: str, samples: Sequence[dict[str, Any]]) -> list[Figure]:
    first = samples[0]
    named = [picture_of(sample["doc"]) for sample in samples]
    pictures = [name for name in named if name is not None] if None not in named else None
    if "soft_accuracy" in first:
        scores = [float(sample["soft_accuracy"]) for sample in samples]
        rows = np.stack((scores, np.ones(len(scores))), axis=1)
        interval = bootstrap(rows, pictures, lambda drawn: drawn[:, 0] / drawn[:, 1])
        return [_figure(task, "soft_accuracy", float(np.mean(scores)), len(scores), interval, pictures)]
    if "exact_match" in first:
        right = [float(sample["exact_match"]) for sample in samples]
        majority = Counter(plain(sample["target"]) for sample in samples).most_common(1)[0][1] / len(samples)
        return [_share(task, "exact_match", right, pictures, majority=majority)]
    if "accuracy" in first:
        metrics = [name for name in yes_no.METRICS if name in first and name != "unparsable"]
        return _yes_no_figures(task, [Judgement(*sample["accuracy"]) for sample in samples], metrics, pictures)
    raise ValueError(f"got samples of task {task} with {sorted(first)}, expected one of {', '.join(HEADLINES)}")


def _yes_no_figures(
    task: str, judgements: Sequence[Judgement], metrics: Sequence[str], pictures: Pictures
) -> list[Figure]:
    """Figures of a yes-or-no task; each is a share of its own n."""
    n, truths = len(judgements), sum(truth for truth, _ in judgements)
    counted = {"precision": [said is True for _, said in judgements], "recall": [truth for truth, _ in judgements]}
    right = {  # of the questions that are counted
        "accuracy": [truth == said for truth, said in judgements],
        "precision": [truth for truth, _ in judgements],
        "recall": [said is True for _, said in judgements],
        "yes_ratio": [said is True for _, said in judgements],
    }
    unparsable = sum(said is None for _, said in judgements)
    figures = []
    for metric in metrics:
        if metric == "f1":
            interval = bootstrap_f1(judgements, pictures)
            figures.append(_figure(task, "f1", yes_no.f1(judgements), n, interval, pictures, unparsable))
        else:
            majority = max(truths, n - truths) / n if metric == "accuracy" else None
            kept = [index for index, counts in enumerate(counted.get(metric, [True] * n)) if counts]
            chosen = [float(right[metric][index]) for index in kept]
            of_those = pictures and [pictures[index] for index in kept]
            figures.append(_share(task, metric, chosen, of_those, unparsable, majority))
    return figures


def _share(
    task: str,
    metric: str,
    right: Sequence[float],
    pictures: Pictures,
    unparsable: int | None = None,
    majority: float | None = None,
) -> Figure:
    """With Wilson's interval, of as many questions as they are worth where pictures are named."""
    n, interval = len(right), None
    if n and pictures is None:
        interval = wilson_interval(int(sum(right)), n)
    elif n:
        interval = clustered_share(
            [Scored(name, "", r) for name, r in zip(pictures or (), right, strict=True)]
        ).interval
    return _figure(task, metric, sum(right) / n if n else 0.0, n, interval, pictures, unparsable, majority)


def _figure(
    task: str,
    metric: str,
    value: float,
    n: int,
    interval: tuple[float, float] | None,
    pictures: Pictures,
    unparsable: int | None = None,
    majority: float | None = None,
) -> Figure:
    return {
        "task": task,
        "metric": metric,
        "value": round(value, 4),
        "n": n,
        "interval": None if interval is None else [round(bound, 4) for bound in interval],
        "unparsable": unparsable,
        "majority": None if majority is None else round(majority, 4),
        "pictures": None if pictures is None else len(set(pictures)),
    }


def bootstrap_f1(judgements: Sequence[Judgement], pictures: Pictures = None) -> tuple[float, float]:
    """95 % percentile bootstrap of F1 = 2 r / (2 r + w + m) over questions: right yes, wrong yes, missed yes."""
    said_yes = [(truth, said is True) for truth, said in judgements]
    rows = np.array([(truth and yes, not truth and yes, truth and not yes) for truth, yes in said_yes], dtype=float)

    def f1(drawn: np.ndarray) -> np.ndarray:
        return 2 * drawn[:, 0] / np.maximum(2 * drawn[:, 0] + drawn[:, 1] + drawn[:, 2], 1)

    return bootstrap(rows, pictures, f1)


def bootstrap(
    rows: np.ndarray, pictures: Pictures, statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float]:
    """95 % percentile bootstrap of a statistic of sums [RESAMPLES, K] over questions, drawn by picture where named.

    Many rows are alike, so their counts are drawn, which is a thousand times as fast as scipy's `bootstrap`.

    Args:
        rows: float64 [questions, K].
    """
    if pictures is not None:
        names, place = np.unique(np.asarray(pictures), return_inverse=True)
        sums = np.zeros((len(names), rows.shape[1]))
        np.add.at(sums, place, rows)
        rows = sums
    kinds, counts = np.unique(rows.round(9), axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    low, high = np.quantile(statistic(drawn @ kinds), (0.025, 0.975))
    return float(low), float(high)


def headlines(figures: Sequence[Figure]) -> list[Figure]:
    """The figure each task, and each category, is compared by."""
    return [figure for figure in figures if figure["metric"] in HEADLINES]


def question_scores_table(figures: Sequence[Figure], title: str) -> Table:
    """A row per task and category: the score with its interval, n, and the majority answer's score."""
    table = Table(title=title)
    if any(head["pictures"] is None for head in headlines(figures)):
        table.caption = "Without named pictures, questions are taken for independent: several about one are not."
    for column in ("task", "%", "95 %", "n", "pictures", "majority", "scored by"):
        table.add_column(column, justify="left" if column in ("task", "scored by") else "right", no_wrap=True)
    for head in headlines(figures):
        score, low, high = (f"{100 * share:.1f}" for share in (head["value"], *head["interval"]))
        pictures = "not named" if head["pictures"] is None else str(head["pictures"])
        counts = (str(head["n"]), pictures, _percent(head["majority"]))
        table.add_row(head["task"], score, f"{low}-{high}", *counts, head["metric"].replace("_", " "))
    return table


def yes_no_table(figures: Sequence[Figure]) -> Table | None:
    """The other figures of yes-or-no tasks, unparsable answers among them; `None` without such a task."""
    table = Table(title="Yes or no: %, and how many answers were neither")
    for column in ("task", "precision", "recall", "F1", "says yes", "neither", "n"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for head in headlines(figures):
        if head["unparsable"] is not None:
            values = {figure["metric"]: figure["value"] for figure in figures if figure["task"] == head["task"]}
            shares = [_percent(values.get(metric)) for metric in ("precision", "recall", "f1", "yes_ratio")]
            table.add_row(head["task"], *shares, str(head["unparsable"]), str(head["n"]))
    return table if table.row_count else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def plot_results(figures: Sequence[Figure], path: str | Path, title: str) -> None:
    """Bars with intervals as a PNG: tasks full, their categories pale below them, a mark at the majority's score."""
    heads = headlines(figures)
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.34 * len(heads)), layout="constrained")
    labels = {metric: label for metric, (_, label) in HEADLINES.items()}
    names: list[str] = []
    for place, head in enumerate(heads):
        task, _, name = head["task"].rpartition("/")
        names.append(NAMES.get(name) or name.replace("_", " "))
        height, alpha = (0.5, 0.45) if task else (0.74, 1.0)
        colour, label = HEADLINES[head["metric"]][0], labels.pop(head["metric"], None)
        axes.barh(place, 100 * head["value"], height, color=colour, label=label, alpha=alpha)
        bounds = [100 * bound for bound in head["interval"]]
        axes.plot(bounds, [place, place], color="#222222", linewidth=1.2, solid_capstyle="butt")
        axes.text(103, place, f"{100 * head['value']:.1f} %   n = {head['n']:,}", va="center", fontsize=8)
    marks = [(100 * head["majority"], place) for place, head in enumerate(heads) if head["majority"] is not None]
    if marks:
        axes.scatter(*zip(*marks), marker="|", s=170, color="black", zorder=3, label="always the most frequent answer")
    for tick, head in zip(axes.set_yticks(range(len(heads)), names), heads):
        part = "/" in head["task"]
        tick.label1.set(fontsize=8 if part else 10, color="#666666" if part else "black")
    axes.set(xlim=(0, 100), ylim=(len(heads) - 0.4, -0.6), xlabel="%, with 95 % intervals")
    axes.set_title(title, loc="left")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
