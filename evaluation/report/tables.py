"""The paper's tables with our figures in them, as Markdown and as JSON for model cards.

The paper's figures (`paper_tables.yaml`) stand in a column of their own, ours in one per benchmark, empty where
nothing was run: neither is ever filled in from the other. A model of ours belongs to a row of the paper if its name is
that row's (`openvla-plus`, `openvla-sc`, ... in the YAML), with or without `mini-` and the data set
(`openvla-rt1-sc`), or if `rows` says so; others get rows of their own. Beside a row's figures stand their differences
from the rows that the paper compares it with, if the training data are the same.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from gen_vla.evaluation.report.comparisons import EXPLANATION, comparable, compare, difference_text
from gen_vla.evaluation.report.figures import SUCCESS_RATE, Figure, read_results
from gen_vla.evaluation.report.seeds import (
    ON_SEEDS,
    Policy,
    find_groups,
    policy_of,
    seed_figures,
    seed_text,
)
from gen_vla.evaluation.report.trials import TrialFiles
from gen_vla.evaluation.statistics.intervals import mean_interval
from gen_vla.training.provenance.origin import provenance, with_provenance
from gen_vla.training.provenance.private_paths import publishable
from gen_vla.training.publishing.card import as_eval_result
from gen_vla.training.recipes.data_schema import did_you_mean


BENCHMARKS = ("tabletop", "SimplerEnv")
TASK_NAMES = {"pick_object": "pick", "pick_coke_can": "pick"}  # ours by what the paper's column asks for
TRAINED_ON = ("rt1", "bridge", "tabletop")  # parts of a model's name that say what, and not which row
MAIN_METRICS = ("soft_accuracy", "exact_match", "accuracy", SUCCESS_RATE, "median seconds")


def load_paper() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("paper_tables.yaml").read_text(encoding="utf-8"))


def make_report(
    paths: Sequence[Path],
    rows: dict[str, str] | None = None,
    against: str | None = None,
) -> dict[str, Any]:
    """Everything a report holds.

    Args:
        paths: result files of the suites.
        rows: the paper's row, by its short name, for models whose names do not say it.
        against: a model in the files, or a mean over seeds, which all models without a row are compared with.

    Returns:
        `{"figures": [...], "tables": [{"name", "title", "benchmark", "unit", "decimals", "notes", "rows": [{"model",
        "task", "paper", "paper_size", "ours": [figure, ...], "differences": [difference, ...]}]}], "notes": [...]}`.

    Raises:
        ValueError: if a file, a row or the model to compare with is unknown.
    """
    paper = load_paper()
    slugs = {facts["slug"]: name for name, facts in paper["models"].items()}
    for slug in (rows or {}).values():
        if slug not in slugs:
            raise ValueError(f"got the paper's row {slug!r}; {did_you_mean(slug, slugs)}")
    rows, against = {publishable(model): row for model, row in (rows or {}).items()}, publishable(against)
    figures = [figure for path in paths for figure in read_results(path)]
    figures += averages(figures)
    files = TrialFiles(paths)
    groups, ungrouped = find_groups(figures)
    means, unmeant = seed_figures(figures, groups, files)
    figures += means
    for figure in figures:
        figure["row"] = said_by_name(figure, lambda model: slugs.get(rows.get(model) or row_name(model)[0]))
    known = dict.fromkeys(figure["model"] for figure in figures)
    if against is not None and against not in known:
        raise ValueError(f"got the model {against!r} to compare with; {did_you_mean(against, known)}")
    tables = [fill_table(table, paper["models"], figures) for table in paper["tables"]]
    for table in tables:
        add_differences(table, paper["models"], figures, files, against)
    return {"figures": figures, "tables": tables, "notes": ungrouped + unmeant}


def short_name(model: str) -> str:
    """The last part of a model's name or folder, without `mini-` and with `-` for `_`."""
    return re.sub(r"[\s_]+", "-", model.rstrip("/").rpartition("/")[2].lower()).removeprefix("mini-")


def row_name(model: str) -> tuple[str, str]:
    """The short name without its training data, and these: `openvla-sc` and `rt1` of `openvla-rt1-sc`."""
    parts = short_name(model).split("-")
    named = [part for part in parts if part not in TRAINED_ON]
    return "-".join(named), "-".join(part for part in parts if part in TRAINED_ON)


def said_by_name(figure: Figure, read: Callable[[str], str | None]) -> str | None:
    """What a model's name says; where that of a mean over seeds says nothing, what the names of all its runs say."""
    runs = {read(run["model"]) for run in figure.get("seeds", ())}
    return read(figure["model"]) or (runs.pop() if len(runs) == 1 else None)


def averages(figures: Sequence[Figure]) -> list[Figure]:
    """The mean over the four tasks, wherever SimplerEnv has all four of a model and mode, as the paper's Avg."""
    groups: dict[tuple[Any, str], list[Figure]] = {}
    for figure in figures:
        if figure["benchmark"] == "SimplerEnv" and figure["value"] is not None:
            groups.setdefault((policy_of(figure), figure["mode"]), []).append(figure)
    found = []
    for group in groups.values():
        tasks = {TASK_NAMES.get(figure["task"], figure["task"]) for figure in group}
        if len(group) == len(tasks) and tasks == {"pick", "open_drawer", "close_drawer", "move_near"}:
            mean = {"task": "average", "value": round(sum(f["value"] for f in group) / 4, 6)}
            sums = {key: sum(figure[key] or 0 for figure in group) for key in ("n", "malformed", "crashed")}
            interval = mean_interval([(f["value"], f["interval"]) for f in group])
            found.append({**group[0], **mean, **sums, "interval": interval, "note": "mean of four tasks"})
    return found


def fill_table(table: dict[str, Any], models: dict[str, Any], figures: Sequence[Figure]) -> dict[str, Any]:
    rows = []

    def add(model: str, own: Sequence[Figure], values: Sequence[float | None], size: str | None) -> None:
        for column, value in zip(table["columns"], values, strict=True):
            ours = [figure for figure in own if fits(figure, column)]
            if ours or size:
                shown = {"model": model, "task": column["label"], "paper": value, "paper_size": size, "ours": ours}
                rows.append({**shown, "drop_from": column.get("drop_from"), "differences": []})

    for name, values in table["rows"].items():
        add(name, [figure for figure in figures if figure["row"] == name], values, models[name]["size"])
    others = [] if table.get("closed") else [figure for figure in figures if figure["row"] not in table["rows"]]
    for model in dict.fromkeys(figure["model"] for figure in others):
        own = [figure for figure in figures if figure["model"] == model]
        add(short_name(model), own, [None] * len(table["columns"]), None)
    shown = {key: table[key] for key in ("name", "title", "benchmark", "decimals")}
    return {**shown, "unit": table.get("unit", "%"), "notes": [table["note"]] if "note" in table else [], "rows": rows}


def fits(figure: Figure, column: dict[str, Any]) -> bool:
    task = TASK_NAMES.get(figure["task"], figure["task"])
    same = (figure["mode"], task) == (column["mode"], column["task"])
    return same and not figure["control"] and not figure["mean"] and figure["metric"] in MAIN_METRICS


def add_differences(
    table: dict[str, Any],
    models: dict[str, Any],
    figures: Sequence[Figure],
    files: TrialFiles,
    against: str | None = None,
) -> None:
    """Every row's `differences` from those it is compared with, and from itself before a change; times have none."""
    others = [figure for figure in figures if not figure["control"] and not figure["mean"]]
    for row in table["rows"]:
        for figure in row["ours"] if table["unit"] == "%" else ():
            names = models.get(figure["row"], {}).get("against", [])
            for other in (other for other in others if comparable(figure, other, row["drop_from"])):
                itself = other["model"] == figure["model"]
                alike = trained_on(figure) == trained_on(other)
                if itself or (other["row"] in names and alike if figure["row"] else other["model"] == against):
                    label = f"its own {other['mode']}" if itself else other["row"] or short_name(other["model"])
                    found = {"model": figure["model"], "label": label, **compare(figure, other, files)}
                    row["differences"].append(found)


def trained_on(figure: Figure) -> str:
    return said_by_name(figure, lambda model: row_name(model)[1]) or ""


def as_markdown(report: dict[str, Any]) -> str:
    lines = ["# Results", "", "Ours as measured, n and 95 % intervals beside them; empty where nothing was run.", ""]
    for table in report["tables"]:
        lines += [f"## {table['name']}: {table['title']}", "", *_table_lines(table), ""]
        lines += [line for note in table["notes"] for line in (note, "")]
    if any(row["differences"] for table in report["tables"] for row in table["rows"]):
        lines += [EXPLANATION, ""]
    if any("seeds" in figure for figure in report["figures"]):
        lines += [ON_SEEDS, ""]
    lines += [line for note in report["notes"] for line in (note, "")]
    placed = {id(figure) for table in report["tables"] for row in table["rows"] for figure in row["ours"]}
    if others := [figure for figure in report["figures"] if id(figure) not in placed]:
        lines += ["## Everything else that was measured", "", *_other_lines(others), ""]
    return "\n".join([*lines, "## Models and hardware", "", *_hardware_lines(report["figures"]), ""])


def _markdown_table(rows: Sequence[Sequence[Any]]) -> list[str]:
    texts = [["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (texts[0], ["---"] * len(texts[0]), *texts[1:])]


def _table_lines(table: dict[str, Any]) -> list[str]:
    """Columns of ours only where the table can have figures of ours from there."""
    measured = {figure["benchmark"] for row in table["rows"] for figure in row["ours"]}
    robots = [b for b in BENCHMARKS if "SimplerEnv" in table["benchmark"] or b in measured]
    benchmarks = [*robots, *sorted(measured - set(BENCHMARKS))] or ["ours"]
    sizes = sorted({row["paper_size"] for row in table["rows"] if row["paper_size"]}, reverse=True)
    compared = ["difference"] if any(row["differences"] for row in table["rows"]) else []
    ours = [f"ours: {name}" for name in benchmarks]
    lines = [["model", "task", *ours, *compared, f"paper, {' and '.join(sizes)} ({table['benchmark']})"]]
    for row in table["rows"]:
        cells = [(figure["benchmark"], cell(figure, table["unit"])) for figure in row["ours"]]
        ours = ["; ".join(text for benchmark, text in cells if benchmark == name) for name in benchmarks]
        printed = "" if row["paper"] is None else f"{row['paper']:.{table['decimals']}f}, {row['paper_size']}"
        found = "; ".join(difference_text(difference) for difference in row["differences"])
        lines.append([row["model"], row["task"], *ours, *[found] * len(compared), printed])
    return _markdown_table(lines)


def cell(figure: Figure, unit: str = "%") -> str:
    """`78.0 (70.1-84.3), n 300` with malformed and crashed episodes where there are any."""
    if figure["value"] is None:
        return f"no judgement, {figure['crashed']} crashed"
    scale, digits = (100, 1) if unit == "%" else (1, 3)
    text = f"{scale * figure['value']:.{digits}f}"
    if figure["interval"] is not None:
        text += " ({:.{d}f}-{:.{d}f})".format(*(scale * bound for bound in figure["interval"]), d=digits)
    text += f", {seed_text(figure, scale, digits)}" if "seeds" in figure else ""
    text += "" if figure["n"] is None else f", n {figure['n']}"
    for name in ("malformed", "crashed"):
        text += f", {figure[name]} {name}" if figure[name] else ""
    return text + (f" [{short_name(figure['model'])}]" if figure["row"] and short_name(figure["model"]) else "")


def _other_lines(figures: Sequence[Figure]) -> list[str]:
    lines: list[Sequence[Any]] = [("model", "benchmark", "task", "metric", "value", "95 %", "n", "note")]
    for f in figures:
        value = "" if f["value"] is None else f"{f['value']:g}"
        interval = "" if f["interval"] is None else "{:g}-{:g}".format(*f["interval"])
        seed = (f["trained"] or {}).get("seed")
        trained = ["" if seed is None else f"training seed {seed}", f"one of {f['mean']}" if f["mean"] else ""]
        note = ", ".join(filter(None, (f["note"], *trained, "for comparison" if f["control"] else "")))
        benchmark = ", ".join(filter(None, (f["benchmark"], f["mode"])))
        lines.append((short_name(f["model"]), benchmark, f["task"], f["metric"], value, interval, f["n"], note))
    return _markdown_table(lines)


def _hardware_lines(figures: Sequence[Figure]) -> list[str]:
    lines: list[Sequence[Any]] = [("model", "parameters", "measured on", "file", "date", "code", "command")]
    keys = ("model", "parameters", "hardware", "source", "date", "commit", "command")
    runs = [figure for figure in figures if "seeds" not in figure]
    for model, parameters, hardware, source, *made, command in dict.fromkeys(tuple(f[k] for k in keys) for f in runs):
        size, typed = f"{parameters:,}" if parameters else "", f"`{command}`" if command else ""
        lines.append((short_name(model), size, hardware, Path(source).name, *made, typed))
    return _markdown_table(lines)


def card_results(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For each model what `write_card` and `gen-vla publish --results` take, and its `model-index` besides; a card is
    about one run: means over seeds are on none."""
    cards = {}
    runs = [figure for figure in report["figures"] if "seeds" not in figure]
    for policy, name in _card_names([policy_of(figure) for figure in runs]).items():
        own = [figure for figure in runs if policy_of(figure) == policy]
        entries = [_card_figure(figure) for figure in own]
        measured = [as_eval_result(e) for e in entries if e["value"] is not None and not e["control"]]
        if measured:
            hardware = dict.fromkeys(figure["hardware"] for figure in own if figure["hardware"])
            typed = dict.fromkeys((f["command"], f["date"], f["commit"]) for f in own if f["command"])
            cards[name] = {
                "figures": entries,
                "environment": {"hardware": ", ".join(hardware)},
                "commands": [dict(zip(("command", "date", "commit"), entry)) for entry in typed],
                "model-index": eval_results_to_model_index(short_name(policy[0]), measured),
            }
    return cards


def _card_names(policies: Sequence[Policy]) -> dict[Policy, str]:
    names = {policy: short_name(policy[0]) for policy in policies}
    short = list(names.values())
    for (model, seed), name in list(names.items()):
        if short.count(name) > 1:
            full = re.sub(r"[^\w.]+", "-", model).strip("-.")
            names[model, seed] = full if seed is None else f"{full}-seed{seed}"
    return names


def _card_figure(figure: Figure) -> dict[str, Any]:
    interval, spell = figure["interval"], "{:.2f}-{:.2f}" if figure["share"] else "{:.3g}-{:.3g}"
    counted = (f"{figure[key]} {key}" for key in ("malformed", "crashed") if figure[key])
    return {
        "task": ", ".join(filter(None, (figure["task"], figure["mode"]))),
        "dataset": figure["benchmark"],
        **{key: figure[key] for key in ("metric", "value", "n", "control")},
        "interval": None if interval is None else spell.format(*interval),
        "note": ", ".join(filter(None, (figure["note"], *counted))),
    }


def write_report(report: dict[str, Any], folder: Path) -> list[Path]:
    cards = {folder / "cards" / f"{name}.json": card for name, card in card_results(report).items()}
    written = {folder / "report.json": with_provenance(report, provenance()), **cards}
    texts = {path: json.dumps(values, indent=2, ensure_ascii=False) for path, values in written.items()}
    texts = {folder / "report.md": as_markdown(report).rstrip(), **texts}
    (folder / "cards").mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text + "\n", encoding="utf-8")
    return list(texts)
