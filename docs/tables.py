"""Writes the tables of measured figures into README.md and docs/*.md, from the files in evaluation/results.

    python docs/tables.py            # after a new measurement; a test fails where a page is not up to date

Decides: which figures a table shows and how they are rounded. Refuses to know: how anything was measured. A table
stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "evaluation" / "results"
DEMO = "mini_openvla_plus_demo.json"
MINI = "mini-openvla-plus-tabletop"
CONTROLS = {  # policies of the demo's results, as the table calls them
    "policy": "the policy",
    "policy, blank image": "shown a blank image",
    "policy, swapped instruction": "told the other task",
    "zero actions": "no model: zero actions",
    "random actions": "no model: random actions",
    "expert that cannot see x": "no model: an expert that cannot see where the drawer is",
}


def load(name: str) -> dict[str, Any]:
    """A file of results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def line(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: list[str], rows: Iterator[str]) -> str:
    """A Markdown table."""
    return "\n".join([line(*head), line(*["---"] * len(head)), *rows])


def share(score: dict[str, Any], interval: bool) -> str:
    """`46/50`, with the interval in percent where asked for."""
    right = score["successes"] if "successes" in score else score["right"]
    low, high = (round(100 * bound) for bound in score["interval"])
    return f"{right}/{score['n']}" + (f" ({low}-{high} %)" if interval else "")


def drawers() -> str:
    """The demo: success per task, of the policy and of controls; questions; time."""
    results = load(DEMO)
    tasks = list(results["rollouts"][0]["scores"])

    def rows() -> Iterator[str]:
        for report in results["rollouts"]:
            name = report["policy"]
            scores = [share(report["scores"][task], interval=name == "policy") for task in tasks]
            yield line(CONTROLS[name], *scores)
        questions = results["questions"]["total"]
        guess = f"{100 * questions['majority']:.1f} % by always giving the most frequent answer"
        yield line("questions about held-out scenes", share(questions, interval=True), guess)
        latency = results["latency"]
        yield line(
            "milliseconds per action, one CPU thread", f"{latency['median_ms']} (median)", f"{latency['p95_ms']} (p95)"
        )

    return table(["", *tasks], rows())


def decoding() -> str:
    """What an action costs at 7B on a GPU, one observation."""

    def rows() -> Iterator[str]:
        for t in gpu_timings():
            if (t["size"], t["rows"], t["horizon"]) != ("7b", 1, 1) or t["way"] == "tree, 1 node":
                continue
            bins, one_by_one = t["representation"] == "bins", t["way"] == "generate"
            name = "one token at a time (`generate`)" if one_by_one else f"tree of {t['way'].split()[1]} nodes"
            if bins:
                name = "OpenVLA's 7 bins (`generate`)" if one_by_one else "7 bins, recorded passes"
            elif not one_by_one:
                name += ", recorded passes" if "static" in t["way"] else ", plain passes"
            yield line(name, f"{t['forward_passes']:g}", f"{t['median_ms']:.0f}")

    return table(["", "passes per action", "milliseconds per action"], rows())


def decoding_gpu() -> str:
    """Every way of decoding on a GPU, one observation and one step."""

    def rows() -> Iterator[str]:
        for t in gpu_timings():
            if (t["rows"], t["horizon"]) == (1, 1):
                names = ("share_of_copy_bandwidth", "share_outside_passes")
                shares = (f"{100 * t[name]:.0f} %" if name in t else "" for name in names)
                yield line(t["size"], gpu_way(t), f"{t['forward_passes']:g}", *times(t), *shares)

    head = ["model", "way", "passes", "ms (median)", "p95", "times faster than `generate`", "of copy bandwidth"]
    return table([*head, "outside passes"], rows())


def decoding_gpu_sizes() -> str:
    """Longer chunks, and batches, on a GPU: recorded passes of the default tree beside `generate` and bins."""

    def rows() -> Iterator[str]:
        found: dict[tuple[Any, ...], dict[tuple[str, str], float]] = {}
        for t in gpu_timings():
            words = t["way"].split()
            if (t["rows"], t["horizon"]) == (1, 1) or (
                words != ["generate"] and (words[-1] != "static" or words[1] not in ("57", "25", "9", "1"))
            ):
                continue
            key = (t["size"], t["rows"], t["horizon"])
            found.setdefault(key, {})[t["representation"], words[-1]] = t["median_ms"]
        for (name, batch, horizon), ms in found.items():
            keys = [(what, way) for what in ("string", "bins") for way in ("generate", "static")]
            cells = (f"{ms[key]:.0f}" if key in ms else "" for key in keys)
            yield line(name, str(batch), str(horizon), *cells)

    head = ["model", "observations", "horizon", "digits, `generate`", "digits, recorded", "7 bins, `generate`"]
    return table([*head, "7 bins, recorded"], rows())


def decoding_limits() -> str:
    """What a recorded decode pass spends its time on."""

    def rows() -> Iterator[str]:
        for run in gpu_runs():
            for limits in run.get("limits", []):
                names = ("weights_once_ms", "products_ms", "pass_on_the_gpu_ms")
                entry = next(
                    t
                    for t in run["timings"]
                    if t["way"] == "tree, 57 nodes, static" and t["rows"] == t["horizon"] == 1
                )
                yield line(
                    limits["size"], *(f"{limits[name]:.2f}" for name in names), f"{entry['decode_pass_ms']:.2f}"
                )

    return table(["model", "weights once", "matrix products", "whole pass on the GPU", "as a call sees it"], rows())


def decoding_cpu() -> str:
    """Every way of decoding on a CPU, one observation and one step."""

    def rows() -> Iterator[str]:
        for t in cpu_timings():
            if (t["rows"], t["horizon"]) == (1, 1):
                yield line(size(t), way(t), f"{t['forward_passes']:g}", *times(t))

    return table(["model", "way", "passes", "ms (median)", "p95", "times faster than `generate`"], rows())


def decoding_sizes() -> str:
    """Longer chunks, and batches: the best tree beside `generate`."""

    def rows() -> Iterator[str]:
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for t in cpu_timings():
            if t["representation"] == "string" and (t["rows"], t["horizon"]) != (1, 1):
                found.setdefault((size(t), t["rows"], t["horizon"]), []).append(t)
        for (name, batch, horizon), timings in found.items():
            plain, *trees = timings
            best = min(trees, key=lambda t: t["median_ms"])
            faster = f"{best['times_faster_than_generate']:.1f}"
            yield line(name, str(batch), str(horizon), f"{plain['median_ms']:.0f}", f"{best['median_ms']:.0f}", faster)

    return table(["model", "observations", "horizon", "`generate`, ms", "best tree, ms", "times faster"], rows())


def decoding_bandwidth() -> str:
    """What a pass of the trees moves and how much of the time is not passes; one observation and one step."""

    def rows() -> Iterator[str]:
        for t in cpu_timings():
            if (t["rows"], t["horizon"]) == (1, 1) and "decode_pass_ms" in t:
                names = ("share_of_copy_bandwidth", "share_outside_passes", "share_grammar_and_trees")
                shares = (f"{100 * t[name]:.1f} %" for name in names)
                moved = f"{1000 * t['gigabytes_per_decode_pass']:.0f} MB"
                yield line(size(t), way(t), f"{t['decode_pass_ms']:.1f}", moved, *shares)

    head = ["model", "way", "ms per decode pass", "read by it", "of copy bandwidth", "outside passes"]
    return table([*head, "grammar and trees"], rows())


def training_step() -> str:
    """Memory of a training step."""
    steps = load("training_step_cpu.json")["steps"]
    rows = (
        line(size(s), str(s["rows"]), s["way"], f"{s['peak_gb_above_model']:.2f} GB", f"{s['median_ms']:.0f}")
        for s in steps
    )
    return table(["model", "rows", "logits of", "above model and gradients", "ms"], rows)


def cpu_timings() -> list[dict[str, Any]]:
    """Every timing of decoding on a CPU, small models first; each size is a run of its own."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("decoding_cpu_*.json")]
    timings = [timing for run in runs for timing in run["timings"]]
    return sorted(timings, key=lambda timing: timing["parameters"] // 10**6)


def gpu_runs() -> list[dict[str, Any]]:
    """Runs of decoding on a GPU, large models first."""
    names = ("7b", "7b_horizons", "pi0_3b", "1b", "100m")
    return [load(f"decoding_h200_{name}.json") for name in names]


def gpu_timings() -> list[dict[str, Any]]:
    """Every timing of these."""
    return [timing for run in gpu_runs() for timing in run["timings"]]


def gpu_way(timing: dict[str, Any]) -> str:
    """What is decoded and how: passes are plain, or recorded as CUDA graphs."""
    name = timing["way"].removesuffix(", static")
    if name != "generate":
        name = "" if timing["representation"] == "bins" else f"{name}, "
        name += "recorded" if timing["way"].endswith("static") else "plain"
    return ("digits, " if timing["representation"] == "string" else "7 bins, ") + name


def size(entry: dict[str, Any]) -> str:
    """`10M`."""
    return f"{entry['parameters'] / 1e6:,.0f}M"


def way(timing: dict[str, Any]) -> str:
    """What is decoded and how."""
    if timing["representation"] == "string":
        return f"digits, {timing['way']}"
    return "7 bins, " + ("generate" if timing["way"] == "generate" else "this engine")


def times(timing: dict[str, Any]) -> list[str]:
    """Median, p95 and the factor."""
    factor = f"{timing['times_faster_than_generate']:.1f}"
    return [f"{timing['median_ms']:.0f}", f"{timing['p95_ms']:.0f}", factor]


def passes() -> str:
    """How many passes real actions take."""
    found = [entry for entry in load("decoding_passes_bridge.json")["passes_on_bridge"] if entry["prior"]]
    rows = (line(str(e["nodes"]), f"{e['mean']:.1f}", str(e["max"]), str(e["n"])) for e in found)
    return table(["tree nodes", "mean passes", "most", "actions"], rows)


def loader() -> str:
    """Frames per second and core of each reader."""

    def rows() -> Iterator[str]:
        for path in sorted(RESULTS.glob("loader_*.json")):
            for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
                speeds = {name: f"{r['frames_per_core_second']:.0f}" for name, r in result["readers"].items()}
                others = ", ".join(f"{name} {speed}" for name, speed in speeds.items() if name != "gen-vla")
                yield line(f"{result['data']} ({result['format']})", speeds["gen-vla"], others)

    return table(["data", "gen-vla", "beside it"], rows())


def tabletop() -> str:
    """Success per task of every policy in every mode it was run in."""
    results, variants = load("tabletop_mini_openvla_plus.json"), load("tabletop_mini_variants.json")
    tasks = results["settings"]["tasks"]
    found = {name: dict(entry["scores"]) for name, entry in results["policies"].items()}
    found["policy"]["variants"] = variants["policies"]["policy"]["scores"]["variants"]

    def rows() -> Iterator[str]:
        for name, modes in found.items():
            for mode, scores in modes.items():
                cells = [share(scores["tasks"][task], interval=False) for task in tasks]
                yield line(MINI if name == "policy" else name, mode, *cells, share(scores["all"], interval=True))

    return table(["policy", "mode", *tasks, "all"], rows())


def tabletop_questions() -> str:
    """Questions about held-out scenes: the vision-language model, and the policy made of it."""
    before, after = load("tabletop_questions_before.json"), load("tabletop_questions_after.json")

    def rows() -> Iterator[str]:
        for kind in (*before["kinds"], "all"):
            found = [results["total"] if kind == "all" else results["kinds"][kind] for results in (before, after)]
            scores = [share(score, interval=True) for score in found]
            yield line(kind.replace("_", " "), *scores, f"{100 * found[0]['majority']:.0f} %")

    return table(["question", "before robot data", "after", "always the most frequent answer"], rows())


def agreement() -> str:
    """Actions that are the same as by `generate`, in bf16."""
    names = {"tree": "a tree", "static": "a tree, shapes that repeat", "batch": "`generate`, each observation alone"}

    def rows() -> Iterator[str]:
        for run in ("bf16_1", "bf16_4", "h200_bf16_1", "h200_bf16_4"):
            results = load(f"agreement_{run}.json")
            device = results["machine"]["device"] if "h200" in run else "CPU"
            for name, found in results["comparisons"].items():
                low, high = (round(100 * bound) for bound in found["interval"])
                kinds = ("largest_gap_of_probabilities", "median_difference", "largest_difference")
                gaps = ("" if found[kind] is None else f"{found[kind]:.3f}" for kind in kinds)
                yield line(
                    device, str(results["rows"]), names[name], f"{found['same']}/{found['n']} ({low}-{high} %)", *gaps
                )

    head = ["device", "observations", "compared with `generate`", "same action", "largest gap", "median difference"]
    return table([*head, "largest"], rows())


TABLES: dict[str, Callable[[], str]] = {
    "drawers": drawers,
    "decoding": decoding,
    "decoding_gpu": decoding_gpu,
    "decoding_gpu_sizes": decoding_gpu_sizes,
    "decoding_limits": decoding_limits,
    "decoding_cpu": decoding_cpu,
    "decoding_sizes": decoding_sizes,
    "decoding_bandwidth": decoding_bandwidth,
    "training_step": training_step,
    "passes": passes,
    "loader": loader,
    "tabletop": tabletop,
    "tabletop_questions": tabletop_questions,
    "agreement": agreement,
}
MARKED = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """A page with its tables as the results are now."""
    return MARKED.sub(lambda match: f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->", text)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
