"""`gen-vla evaluate decoding`, `training_step`, `loader` and `latency`: the suites that measure speed.

Decides: their arguments, what is printed and where results go. Refuses to know: how anything is measured; suites are
imported only when asked for.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from gen_vla.commands.suite_options import add_model, add_output, load_any, write_results


def add_decoding(suites: Any) -> None:
    """`gen-vla evaluate decoding`, which builds its own random models."""
    command = suites.add_parser("decoding", help="speed and passes of decoding, on random weights")
    command.add_argument("--sizes", default="mini,100m", help="of mini, 100m, 1b, 7b, pi0-3b (default: mini,100m)")
    command.add_argument("--batches", default="1,4,16", help="observations per call (default: 1,4,16)")
    command.add_argument("--horizons", default="1", help="steps per action, all at batch 1 (default: 1)")
    command.add_argument("--nodes", default="8,24,64", help="tree nodes per pass (default: 8,24,64)")
    command.add_argument("--repeats", type=int, default=5, help="timed calls of each way (default: 5)")
    command.add_argument("--bridge", type=Path, help="write this folder's recorded actions, and count their passes")
    command.add_argument("--bf16", action="store_true", help="in half precision")
    command.add_argument("--picture", type=Path, help="draw the comparison into this PNG")
    command.add_argument(
        "--beside", type=Path, action="append", default=[], help="draw an earlier run's results, too; may be repeated"
    )
    add_output(command)
    command.set_defaults(run=run_decoding)


def run_decoding(options: argparse.Namespace) -> int:
    """Times decoding and counts its passes."""
    import torch
    from rich.console import Console

    from gen_vla.evaluation.benchmarks.decoding_benchmark import draw_timings, run_benchmark, timings_table
    from gen_vla.evaluation.benchmarks.decoding_passes import passes_table

    def numbers(text: str) -> list[int]:
        return [int(entry) for entry in text.split(",")]

    results = run_benchmark(
        [size for size in options.sizes.split(",") if size],
        numbers(options.batches),
        numbers(options.nodes),
        options.repeats,
        options.bridge,
        "cuda" if torch.cuda.is_available() else "cpu",
        torch.bfloat16 if options.bf16 else torch.float32,
        numbers(options.horizons),
    )
    console = Console()
    if "passes_on_bridge" in results:
        console.print(passes_table(results))
    if results["timings"]:
        console.print(timings_table(results))
    if options.picture:
        runs = [*(json.loads(path.read_text(encoding="utf-8")) for path in options.beside), results]
        draw_timings([run for run in runs if run["timings"]], options.picture)
    return write_results(results, options.output, [options.bridge])


def add_training_step(suites: Any) -> None:
    """`gen-vla evaluate training_step`, which builds its own random models."""
    command = suites.add_parser("training_step", help="memory and time of a training step, on random weights")
    command.add_argument("--sizes", default="mini,100m", help="of mini, 100m, 1b (default: mini,100m)")
    command.add_argument("--batches", default="8", help="rows per step (default: 8)")
    command.add_argument("--repeats", type=int, default=3, help="timed steps of each way (default: 3)")
    add_output(command)
    command.set_defaults(run=run_training_step)


def run_training_step(options: argparse.Namespace) -> int:
    """Compares logits everywhere with logits where they are needed."""
    from rich.console import Console

    from gen_vla.evaluation.benchmarks.training_step import run_benchmark, steps_table

    batches = [int(entry) for entry in options.batches.split(",")]
    results = run_benchmark(options.sizes.split(","), batches, options.repeats)
    Console().print(steps_table(results))
    return write_results(results, options.output)


def add_loader(suites: Any) -> None:
    """`gen-vla evaluate loader PATH...`, which needs no model."""
    command = suites.add_parser("loader", help="frames per second and core of the robot readers")
    command.add_argument("paths", nargs="+", type=Path, help="robot data sets: RLDS, LeRobot or recordings")
    command.add_argument("--frames", type=int, default=1000, help="timed frames of each turn (default: 1000)")
    command.add_argument("--repeats", type=int, default=3, help="turns of each reader (default: 3)")
    command.add_argument("--split", default="train", help="split of the data sets (default: train)")
    add_output(command)
    command.set_defaults(run=run_loader)


def run_loader(options: argparse.Namespace) -> int:
    """Times our readers beside TensorFlow Datasets and lerobot, where these are installed."""
    from rich.console import Console

    from gen_vla.evaluation.benchmarks.loader import loader_table, run_loader_benchmark

    settings = {"frames": options.frames, "repeats": options.repeats, "split": options.split}
    results = run_loader_benchmark(options.paths, **settings)
    Console().print(loader_table(results))
    return write_results({"suite": "loader", **results}, options.output, options.paths)


def add_latency(suites: Any) -> None:
    """`gen-vla evaluate latency MODEL`."""
    command = suites.add_parser("latency", help="milliseconds per action here, and what they went to")
    add_model(command)
    command.add_argument("--repeats", type=int, default=20, help="timed actions (default: 20)")
    command.add_argument("--busy", type=int, default=0, help="then beside this many processes that keep cores busy")
    add_output(command)
    command.set_defaults(run=run_latency)


def run_latency(options: argparse.Namespace) -> int:
    """Times single actions, whole and in parts."""
    from rich.console import Console

    from gen_vla.evaluation.benchmarks.latency import latency_table, measure_busy, measure_latency, measure_parts

    if options.repeats < 1:
        raise ValueError(f"got {options.repeats} repeats, expected at least 1")
    model, processor = load_any(options.model)
    results = measure_latency(model, processor, options.repeats)
    results["parts"] = measure_parts(model, processor, options.repeats)
    if options.busy:
        results["busy"] = measure_busy(model, processor, options.busy, options.repeats)
    Console().print(latency_table(results, f"One action: {options.model}"))
    size = {"parameters": model.num_parameters()}
    return write_results({"suite": "latency", "model": options.model, **size, **results}, options.output)


def add_agreement(suites: Any) -> None:
    """`gen-vla evaluate agreement MODEL DATA`."""
    command = suites.add_parser("agreement", help="how often fast decoding writes another action, in half precision")
    add_model(command)
    command.add_argument("data", help="a robot data set whose pictures and instructions are used")
    command.add_argument(
        "--camera",
        action="append",
        help="of the data set (default: its primary camera, or for a model of several those it was trained with); "
        "repeat it for a model of several",
    )
    command.add_argument("--pictures", type=int, default=200, help="steps of the data set (default: 200)")
    command.add_argument("--rows", type=int, default=1, help="observations per call (default: 1)")
    command.add_argument("--nodes", type=int, help="tree nodes per pass (default: the model's)")
    command.add_argument("--bf16", action="store_true", help="in half precision (default: float32)")
    add_output(command)
    command.set_defaults(run=run_agreement)


def run_agreement(options: argparse.Namespace) -> int:
    """Compares tree decoding, and batches, with one token and one observation at a time."""
    from rich.console import Console

    from gen_vla.evaluation.benchmarks.decoding_agreement import (
        agreement_table,
        cast,
        measure_agreement,
        model_views,
        read_observations,
    )

    model, processor = load_any(options.model)
    cameras = model_views(processor, options.camera)
    observations = read_observations(options.data, options.pictures, cameras)
    results = measure_agreement(cast(model, options.bf16), processor, observations, options.rows, options.nodes)
    Console().print(agreement_table(results))
    return write_results({"model": options.model, "data": options.data, **results}, options.output, [options.data])
