"""Writes the tables of measured figures into README.md and docs/, from the files in evaluation/results, and draws the
ablation.

    python docs/tables.py            # after a new measurement; a test fails where a page is not up to date

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. `TABLES` has its head and a function that yields its
rows.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablation_tables import TABLES as ABLATION
from ablation_tables import answers, draw_ablation, draw_mixtures, over_seeds, trials_in_looks, trials_where_it_points
from result_files import RESULTS, ROOT, Rows, load, share


COMPARED = {"tree": "a tree", "static": "a tree, shapes that repeat", "batch": "`generate`, each observation alone"}


def summary() -> Rows:
    """What the README shows."""
    seven = {(t["representation"], t["way"]): t for t in one_step(load("decoding_h200_7b")["timings"])}
    for kind, way, words in (
        ("string", "tree, 57 nodes, static", "digits"),
        ("bins", "tree, 1 node, static", "OpenVLA's 7 bins"),
    ):
        ours, plain = (f"{seven[kind, name]['median_ms']:.0f}" for name in (way, "generate"))
        yield [f"7.4B on an H200: ms per action, {words}", ours, f"{plain} by `generate`"]
    for words, read in (
        ("drawers opened and closed in unseen looks", lambda folder: trials_in_looks(folder, "variants")),
        ("questions answered in unseen looks", lambda folder: answers(folder, "unseen")),
        ("objects a script takes where the policy points, in unseen looks", trials_where_it_points),
    ):
        yield [
            f"2.7M: {words}",
            over_seeds("openvla-plus", read),
            f"{over_seeds('openvla', read)} by plain fine-tuning",
        ]


def one_step(timings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of one observation and one step."""
    return [t for t in timings if (t["rows"], t["horizon"]) == (1, 1)]


def gpu_runs() -> list[dict[str, Any]]:
    """Runs of decoding on a GPU, large models first."""
    return [load(f"decoding_h200_{name}") for name in ("7b", "7b_horizons", "pi0_3b", "1b", "100m")]


def gpu_timings() -> list[dict[str, Any]]:
    return [timing for run in gpu_runs() for timing in run["timings"]]


def cpu_timings() -> list[dict[str, Any]]:
    """Every timing of decoding on a CPU, small models first; each size is a run of its own."""
    timings = [timing for path in RESULTS.glob("decoding_cpu_*.json") for timing in load(path.stem)["timings"]]
    return sorted(timings, key=lambda timing: timing["parameters"] // 10**6)


def size(entry: dict[str, Any]) -> str:
    """`10M`."""
    return f"{entry['parameters'] / 1e6:,.0f}M"


def way(timing: dict[str, Any], gpu: bool = False) -> str:
    """What is decoded and how; on a GPU passes are plain, or recorded as CUDA graphs."""
    name, bins = timing["way"].removesuffix(", static"), timing["representation"] == "bins"
    if name != "generate" and gpu:
        passes = "recorded" if timing["way"].endswith("static") else "plain"
        name = passes if bins else f"{name}, {passes}"
    elif name != "generate" and bins:
        name = "this engine"
    return f"{'7 bins' if bins else 'digits'}, {name}"


def times(timing: dict[str, Any]) -> list[str]:
    """Passes, median, p95 and the factor."""
    factor = f"{timing['times_faster_than_generate']:.1f}"
    return [f"{timing['forward_passes']:g}", f"{timing['median_ms']:.0f}", f"{timing['p95_ms']:.0f}", factor]


def decoding_gpu() -> Rows:
    """Every way of decoding on a GPU, one observation and one step."""
    for t in one_step(gpu_timings()):
        names = ("share_of_copy_bandwidth", "share_outside_passes")
        yield [
            t["size"],
            way(t, gpu=True),
            *times(t),
            *(f"{100 * t[name]:.0f} %" if name in t else "" for name in names),
        ]


def decoding_gpu_sizes() -> Rows:
    """Longer chunks, and batches, on a GPU: recorded passes of the default tree beside `generate` and bins."""
    found: dict[tuple[Any, ...], dict[tuple[str, str], float]] = {}
    for t in gpu_timings():
        words = t["way"].split()
        default = words == ["generate"] or (words[-1] == "static" and words[1] in ("57", "25", "9", "1"))
        if (t["rows"], t["horizon"]) != (1, 1) and default:
            key = (t["size"], t["rows"], t["horizon"])
            found.setdefault(key, {})[t["representation"], words[-1]] = t["median_ms"]
    for key, ms in found.items():
        ways = [(what, way) for what in ("string", "bins") for way in ("generate", "static")]
        yield [*map(str, key), *(f"{ms[way]:.0f}" if way in ms else "" for way in ways)]


def decoding_limits() -> Rows:
    """What a recorded decode pass spends its time on."""
    for run in gpu_runs():
        for limits in run.get("limits", []):
            parts = (limits[name] for name in ("weights_once_ms", "products_ms", "pass_on_the_gpu_ms"))
            seen = next(t for t in one_step(run["timings"]) if t["way"] == "tree, 57 nodes, static")["decode_pass_ms"]
            yield [limits["size"], *(f"{part:.2f}" for part in (*parts, seen))]


def decoding_cpu() -> Rows:
    """Every way of decoding on a CPU, one observation and one step."""
    return ([size(t), way(t), *times(t)] for t in one_step(cpu_timings()))


def decoding_sizes() -> Rows:
    """Longer chunks, and batches: the best tree beside `generate`."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for t in cpu_timings():
        if t["representation"] == "string" and (t["rows"], t["horizon"]) != (1, 1):
            found.setdefault((size(t), t["rows"], t["horizon"]), []).append(t)
    for key, (plain, *trees) in found.items():
        best = min(trees, key=lambda t: t["median_ms"])
        milliseconds = (f"{t['median_ms']:.0f}" for t in (plain, best))
        yield [*map(str, key), *milliseconds, f"{best['times_faster_than_generate']:.1f}"]


def decoding_bandwidth() -> Rows:
    """What a pass of the trees moves and how much of the time is not passes; one observation and one step."""
    for t in one_step(cpu_timings()):
        if "decode_pass_ms" in t:
            names = ("share_of_copy_bandwidth", "share_outside_passes")
            moved = f"{1000 * t['gigabytes_per_decode_pass']:.0f} MB"
            yield [size(t), way(t), f"{t['decode_pass_ms']:.1f}", moved, *(f"{100 * t[name]:.1f} %" for name in names)]


def decoding_two_commits() -> Rows:
    """The decoder of an earlier commit beside today's."""
    for t in (t for name in ("mini", "100m", "1b") for t in load(f"decoding_two_commits_cpu_{name}")["timings"]):
        both = (t["earlier"], t["now"])
        name = "7 bins" if t["representation"] == "bins" else f"digits, {t['nodes']} nodes"
        yield [
            size(t),
            name,
            str(t["calls"]),
            *(f"{each['forward_passes']:.1f}" for each in both),
            *(f"{each['median_ms']:,.0f}" for each in both),
            f"{t['now_over_earlier']:.2f}",
            *(f"{100 * each['share_outside_passes']:.1f} %" for each in both),
        ]


def passes() -> Rows:
    """How many passes real actions take."""
    found = (entry for entry in load("decoding_passes_bridge")["passes_on_bridge"] if entry["histograms"])
    return ([str(e["nodes"]), f"{e['mean']:.1f}", str(e["max"]), str(e["n"])] for e in found)


def training_step() -> Rows:
    """Memory of a training step."""
    for s in load("training_step_cpu")["steps"]:
        yield [size(s), str(s["rows"]), s["way"], f"{s['peak_gb_above_model']:.2f} GB", f"{s['median_ms']:.0f}"]


def training_throughput() -> Rows:
    """Whole steps of this trainer and of TRL's: rows per second, memory, and what the time goes to."""
    for run in load("training_throughput_cpu")["runs"]:
        shown = (f"{run['tokens_per_row']:.0f}", f"{run['rows_per_second']:.2f}", f"{run['peak_gb']:.2f}")
        parts = (f"{run['seconds'][part] / run['seconds']['step']:.1%}" for part in list(run["seconds"])[:-1])
        yield [run["size"], run["trainer"], *shown, *parts]


def loader() -> Rows:
    """Frames per second and core of each reader."""
    for path in sorted(RESULTS.glob("loader_*.json")):
        for result in load(path.stem)["results"]:
            speeds = {name: f"{r['frames_per_core_second']:.0f}" for name, r in result["readers"].items()}
            others = ", ".join(f"{name} {speed}" for name, speed in speeds.items() if name != "gen-vla")
            yield [f"{result['data']} ({result['format']})", speeds["gen-vla"], others]


def rehearsal() -> Rows:
    """What rehearsals of loading measured."""
    for path in sorted(RESULTS.glob("rehearsal_*.json")):
        found = load(path.stem)
        seconds = (f"{found[name]:.0f}" for name in ("seconds_to_open", "seconds_to_batch"))
        speeds = (f"{found[name]:.1f}" for name in ("rows_per_core_second", "needed"))
        kept = f"{found['episodes']:.1f} of {found['robot_rows']:.0f}"
        shares = (f"{found['padding']:.1%}", str(sum(found["skipped"].values())), kept)
        yield [
            found["recipe"],
            str(len(found["loaders"])),
            *seconds,
            *speeds,
            f"{found['megabytes_read']:.2f}",
            f"{found['resident']:.1f} ({found['proportional']:.1f})",
            *shares,
        ]


def agreement() -> Rows:
    """Actions that are the same as by `generate`, in bf16."""
    for run in ("bf16_1", "bf16_4", "h200_bf16_1", "h200_bf16_4"):
        results = load(f"agreement_{run}")
        device = results["machine"]["device"] if "h200" in run else "CPU"
        for name, found in results["comparisons"].items():
            kinds = ("largest_gap_of_probabilities", "median_difference", "largest_difference")
            gaps = ("" if found[kind] is None else f"{found[kind]:.3f}" for kind in kinds)
            yield [device, str(results["rows"]), COMPARED[name], share(found, "same"), *gaps]


WAY = "model | way | passes | ms (median) | p95 | times faster than `generate`"
BATCH = "model | observations | horizon"


def serving() -> Rows:
    """Robots at a server beside the model alone."""
    found = load("serving_cpu_mini")
    ways = [(f"the model alone, batches of {rows}", each) for rows, each in found["alone"].items()]
    ways += [(f"{count} robot{'s' * (count != '1')}", each) for count, each in found["clients"].items()]
    for name, each in ways:
        yield [name, *(f"{each[key]:.0f}" for key in ("actions_per_second", "median_ms", "p95_ms")), str(each["n"])]


TABLES: dict[str, tuple[str, Callable[[], Rows]]] = {
    "summary": (" | gen-vla | compared with", summary),
    "decoding_gpu": (f"{WAY} | of copy bandwidth | outside passes", decoding_gpu),
    "decoding_gpu_sizes": (
        f"{BATCH} | digits, `generate` | digits, recorded | 7 bins, `generate` | 7 bins, recorded",
        decoding_gpu_sizes,
    ),
    "decoding_limits": (
        "model | weights once | matrix products | whole pass on the GPU | as a call sees it",
        decoding_limits,
    ),
    "decoding_cpu": (WAY, decoding_cpu),
    "decoding_sizes": (f"{BATCH} | `generate`, ms | best tree, ms | times faster", decoding_sizes),
    "decoding_bandwidth": (
        "model | way | ms per decode pass | read by it | of copy bandwidth | outside passes",
        decoding_bandwidth,
    ),
    "decoding_two_commits": (
        "model | way | pairs of calls | passes before | now | ms before | now | now / before | "
        "outside passes before | now",
        decoding_two_commits,
    ),
    **ABLATION,
    "passes": ("tree nodes | mean passes | most | actions", passes),
    "serving": (" | actions per second | ms (median) | p95 | calls", serving),
    "training_step": ("model | rows | logits of | above model and gradients | ms", training_step),
    "training_throughput": (
        "model | trainer | tokens a row | rows/s | peak GB | batch | passes | optimizer",
        training_throughput,
    ),
    "rehearsal": (
        "recipe | loaders | open, s | first batch, s | rows/s of a core | that a GPU takes | MB read a row | "
        "GB (shared once) | padding | bad rows | different episodes",
        rehearsal,
    ),
    "loader": ("data | gen-vla | beside it", loader),
    "agreement": (
        "device | observations | compared with `generate` | same action | largest gap | median difference | largest",
        agreement,
    ),
}
MARKED = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def table(name: str) -> str:
    """A Markdown table."""
    head, rows = TABLES[name]
    lines = [head.split(" | "), ["---"] * (head.count(" | ") + 1), *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def filled(text: str) -> str:
    """A page with its tables as the results are now."""
    return MARKED.sub(lambda match: f"<!-- table: {match[1]} -->\n{table(match[1])}\n<!-- end -->", text)


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    draw_ablation(ROOT / "docs" / "results" / "ablation.png")
    draw_mixtures(ROOT / "docs" / "results" / "ablation_mixtures.png")
