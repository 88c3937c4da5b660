"""Reads the suites' result files into figures of one form; `report/tables.py` lays them out.

A figure is a dictionary: `model`, `benchmark`, `mode`, `task`, `metric`, `value`, `n`, `interval` (two bounds or
None), `share` (whether these are of a share, or else of an error), `malformed`, `crashed`, `note`, `control` (measured
without the model, or on purpose against it), `hardware`, `parameters`, `source` (the file), `trained`
(`training_record.py`), `mean` (the mean over seeds that it is part of), `command`, `date`, `commit` and `revision` (of
the file and of its model, `provenance/origin.py`).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gen_vla.training.provenance.origin import origin
from gen_vla.training.provenance.private_paths import publishable


Figure = dict[str, Any]
DEFAULTS: Figure = {
    **dict.fromkeys(("n", "interval", "malformed", "crashed", "parameters", "trained", "mean")),
    **{"mode": "", "note": "", "hardware": "", "share": True, "control": False},
}
SUCCESS_RATE = "success rate"
# What a file that does not name its suite is known by.
MARKS = {"policies": "tabletop", "experts": "aim", "timings": "decoding", "kinds": "scene_questions"}


def read_results(path: Path) -> list[Figure]:
    """The figures of a result file; raises `ValueError` if it is not JSON, or not of a known suite."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: got no JSON ({error}), expected the results of a suite") from error
    suite = suite_of(results)
    if suite is None:
        found = ", ".join(sorted(results)) if isinstance(results, dict) else type(results).__name__
        raise ValueError(
            f"{path}: got {found or 'nothing'}, expected the results of gen-vla evaluate tabletop, "
            "scene_questions, aim, simpler, open_loop, vqa, representations, latency or decoding"
        )
    measured = ((results.get("provenance") or {}).get("model") or {}).get("name")
    figures = []
    for read in READERS[suite](results, path):
        figure = {**DEFAULTS, "source": str(path), **origin(results), **read}
        figure["model"] = publishable(figure["model"])
        if figure["model"] != measured:  # of another model in this file
            figure["revision"] = None
        figures.append(figure)
    return figures


def suite_of(results: Any) -> str | None:
    if not isinstance(results, dict):
        return None
    if results.get("suite") in READERS:
        return results["suite"]
    return next((suite for key, suite in MARKS.items() if key in results), None)


def _common(results: dict[str, Any], path: Path) -> Figure:
    """What a file says of its model and machine."""
    recorded = (results.get("provenance") or {}).get("machine")
    machine = results.get("environment") or results.get("machine") or recorded or {}
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    return {
        "model": results.get("model") or path.stem,
        "trained": results.get("trained"),
        "hardware": f"{machine['device']}{threads}" if "device" in machine else "",
        "parameters": results.get("parameters") or machine.get("parameters"),
    }


def _simpler(results: dict[str, Any], path: Path) -> Iterator[Figure]:
    controls = {name: found["tasks"] for name, found in results.get("controls", {}).items()}
    keys = ("mode", "task", "metric", "value", "n", "interval", "malformed", "crashed")
    for policy, tasks in {"": results["tasks"], **controls}.items():
        common = {**_common(results, path), "benchmark": "SimplerEnv", "control": bool(policy)}
        for entry in tasks:
            whole = entry["n"] == entry["expected"]
            part = "" if whole else f"{entry['n']} of the protocol's {entry['expected']} trials"
            note = ", ".join(filter(None, (policy, part)))
            yield {**common, "note": note, **{key: entry[key] for key in keys}}


def _open_loop(results: dict[str, Any], path: Path) -> Iterator[Figure]:
    """The policy's errors, with those of the baselines in a note."""
    size = {"n": results["n"], "malformed": results["malformed"]}
    common = {**_common(results, path), **size, "share": False, "benchmark": f"open loop on {results['data']}"}
    seen = ["trained on this data"] if results["trained_on"] else []
    together = {name: of["l1"] for name, of in results["normalized"].items()}
    groups = [("all dimensions", "normalized L1", together)] if together else []
    for entry in results["dimensions"]:
        metric = "share right" if entry["measure"] == "accuracy" else "mean absolute error"
        groups.append((entry["name"], metric, {name: of for name, of in entry.items() if isinstance(of, dict)}))
    for task, metric, figures in groups:
        value, interval = (figures["policy"][key] for key in ("value", "interval"))
        others = [f"{name} {of['value']:.4g}" for name, of in figures.items() if name != "policy"]
        rounded = {"value": round(value, 6), "interval": interval and [round(bound, 6) for bound in interval]}
        yield {**common, "task": task, "metric": metric, **rounded, "note": ", ".join([*others, *seen])}


def _vqa(results: dict[str, Any], path: Path) -> Iterator[Figure]:
    common = {**_common(results, path), "benchmark": "visual questions", "mode": "questions"}
    for entry in results["tasks"]:
        values = {key: entry.get(key) for key in ("task", "metric", "value", "n", "interval")}
        majority = entry.get("majority")
        note = "" if majority is None else f"always the most frequent answer: {majority:.2f}"
        yield {**common, **values, "note": note}


def _representations(results: dict[str, Any], path: Path) -> Iterator[Figure]:
    """Probes. Those of the models before and beside it come twice: compared with this model, and as their own."""
    names = {**(results.get("models") or {}), "after": results.get("model") or path.stem}
    for entry in results["tasks"]:
        values = {key: entry[key] for key in ("metric", "value", "n", "interval")}
        measured = {**_common(results, path), **values, "benchmark": f"linear probe on {results['data']}"}
        if entry["role"] != "after":
            yield {**measured, "task": entry["task"], "control": True}
            measured["trained"] = None
        if names.get(entry["role"]):
            tower = f"{results['data']}, {entry['tower']}"
            yield {**measured, "model": names[entry["role"]], "mode": "probe", "task": tower}


def _latency(latency: dict[str, Any], path: Path) -> Iterator[Figure]:
    shown = {"benchmark": "latency", "mode": "latency", "task": "seconds per action", "metric": "median seconds"}
    note = f"p95 {latency['p95_ms']} ms, {latency['forward_passes']} forward passes"
    value = round(latency["median_ms"] / 1000, 5)
    yield {**_common(latency, path), **shown, "value": value, "n": latency["n"], "note": note}


def _tabletop(results: dict[str, Any], path: Path) -> Iterator[Figure]:
    played = [policy for policy in results["policies"].values() if "model" in policy["identity"]]
    first = next(iter(played), {"identity": {"model": path.stem}})  # whose controls the others are
    for name, policy in results["policies"].items():
        identity = policy["identity"]
        common = {
            **_common(results, path),
            "model": identity.get("model") or first["identity"]["model"],
            "benchmark": "tabletop",
            "metric": SUCCESS_RATE,
            "trained": (policy if "model" in identity else first).get("trained"),
            "control": "model" not in identity,
            "note": "" if "model" in identity else name,
        }
        yield from _cells(policy["scores"], common)


def _cells(scores: dict[str, Any], common: Figure) -> Iterator[Figure]:
    """Success by mode and task, and over tasks."""
    for mode, found in scores.items():
        for task, cell in found["tasks"].items():
            counts = {key: cell[key] for key in ("n", "interval", "malformed", "crashed")}
            yield {**common, "mode": mode, "task": task, "value": cell["rate"], **counts}
        n = sum(cell["n"] for cell in found["tasks"].values())
        total = {"task": "average", "value": found["mean"], "n": n, "interval": found.get("interval")}
        yield {**common, "mode": mode, **total}


def _aim(results: dict[str, Any], path: Path) -> Iterator[Figure]:
    """Under a metric of their own: these are not successes of the model's actions, which the paper's tables show."""
    if found := results["experts"].get("model"):
        shown = {"benchmark": "tabletop, by the scripted expert", "metric": "success where the model points"}
        yield from _cells(found["scores"], {**_common(results, path), **shown})


def _scene_questions(results: dict[str, Any], path: Path) -> Iterator[Figure]:
    total = results["total"]
    yield {
        **_common(results, path),
        "benchmark": "questions about tabletop scenes",
        "task": "all questions",
        "metric": "right",
        "value": round(total["right"] / total["n"], 4),
        "n": total["n"],
        "interval": total["interval"],
        "note": f"always the most frequent answer: {total['majority']:.2f}",
    }


def _decoding(results: dict[str, Any], path: Path) -> Iterator[Figure]:
    common = {**_common(results, path), "model": "random weights", "benchmark": "decoding"}
    for timing in results["timings"]:
        rows = f"{timing['rows']} rows" if timing["rows"] > 1 else "1 row"
        task = f"{timing['size']} {timing['representation']}, {timing['way']}, {rows}"
        size = {"parameters": timing["parameters"], "note": f"{timing['forward_passes']:g} forward passes"}
        yield {**common, "task": task, "metric": "median ms", "value": timing["median_ms"], **size}
    for count in results.get("passes_on_bridge", []):
        known = count.get("histograms", count.get("prior"))  # as older files name it
        task = f"passes on Bridge, {count['nodes']} nodes, {'with' if known else 'without'} histograms"
        yield {**common, "task": task, "metric": "forward passes", "value": count["mean"], "n": count["n"]}


READERS: dict[str, Callable[[dict[str, Any], Path], Iterator[Figure]]] = {
    "tabletop": _tabletop,
    "scene_questions": _scene_questions,
    "aim": _aim,
    "simpler": _simpler,
    "open_loop": _open_loop,
    "vqa": _vqa,
    "representations": _representations,
    "latency": _latency,
    "decoding": _decoding,
}
