"""The suites of `gen-vla evaluate` that measure speed, from decoding to serving."""

import json
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from gen_vla.commands.options import Dtype, Model, Output, entries, load_any, write_results


def numbers(text: str) -> list[int]:
    """`"1,4"` to `[1, 4]`."""
    return [int(entry) for entry in text.split(",")]


def decoding(
    sizes: Annotated[str, Option(help="Of mini, 100m, 1b, 7b, pi0-3b.")] = "mini,100m",
    batches: Annotated[str, Option(help="Observations per call.")] = "1,4,16",
    horizons: Annotated[str, Option(help="Steps per action, all at batch 1.")] = "1",
    nodes: Annotated[str, Option(help="Tree nodes per pass.")] = "8,24,64",
    repeats: Annotated[int, Option(help="Timed calls of each way.")] = 5,
    bridge: Annotated[Path | None, Option(help="Write this folder's actions, and count their passes.")] = None,
    dtype: Dtype = "float32",
    picture: Annotated[Path | None, Option(help="Draw the comparison into this PNG.")] = None,
    beside: Annotated[list[Path] | None, Option(help="Draw an earlier run's results, too; may be repeated.")] = None,
    output: Output = None,
) -> None:
    """Speed and passes of decoding, on random weights."""
    import torch

    from gen_vla.evaluation.benchmarks.decoding_benchmark import run_benchmark
    from gen_vla.evaluation.benchmarks.decoding_passes import passes_table
    from gen_vla.evaluation.benchmarks.decoding_results import draw_timings, timings_table

    results = run_benchmark(
        entries(sizes),
        numbers(batches),
        numbers(nodes),
        repeats,
        bridge,
        "cuda" if torch.cuda.is_available() else "cpu",
        torch.float32 if dtype == "auto" else getattr(torch, dtype),
        numbers(horizons),
    )
    console = Console()
    if "passes_on_bridge" in results:
        console.print(passes_table(results))
    if results["timings"]:
        console.print(timings_table(results))
    if picture:
        runs = [*(json.loads(path.read_text(encoding="utf-8")) for path in beside or ()), results]
        draw_timings([run for run in runs if run["timings"]], picture)
    write_results(results, output, [bridge])


def agreement(
    model: Model,
    data: Annotated[str, Argument(help="A robot data set whose pictures and instructions are used.")],
    cameras: Annotated[
        list[str] | None,
        Option(
            "--camera",
            help="Of the data set (default: its primary camera, or for a model of several those it was trained with); "
            "repeat it for a model of several.",
        ),
    ] = None,
    pictures: Annotated[int, Option(help="Steps of the data set.")] = 200,
    rows: Annotated[int, Option(help="Observations per call.")] = 1,
    nodes: Annotated[int | None, Option(help="Tree nodes per pass (default: the model's).")] = None,
    dtype: Dtype = "float32",
    output: Output = None,
) -> None:
    """How often fast decoding writes another action, in half precision."""
    from gen_vla.evaluation.benchmarks.decoding_agreement import (
        agreement_table,
        measure_agreement,
        model_views,
        read_observations,
    )

    loaded, processor = load_any(model, dtype)
    observations = read_observations(data, pictures, model_views(processor, cameras))
    results = measure_agreement(loaded, processor, observations, rows, nodes)
    Console().print(agreement_table(results))
    write_results({"model": model, "data": data, **results}, output, [data])


def training_step(
    sizes: Annotated[str, Option(help="Of mini, 100m, 1b.")] = "mini,100m",
    batches: Annotated[str, Option(help="Rows per step.")] = "8",
    repeats: Annotated[int, Option(help="Timed steps of each way.")] = 3,
    output: Output = None,
) -> None:
    """Memory and time of a training step, on random weights."""
    from gen_vla.evaluation.benchmarks.training_step import run_benchmark, steps_table

    results = run_benchmark(sizes.split(","), numbers(batches), repeats)
    Console().print(steps_table(results))
    write_results(results, output)


def training_throughput(
    sizes: Annotated[str, Option(help="Of mini, 100m, 1b.")] = "mini,100m",
    batch_size: Annotated[int, Option(help="Rows per step.")] = 8,
    steps: Annotated[int, Option(help="Timed steps of each trainer.")] = 5,
    output: Output = None,
) -> None:
    """Whole training steps beside those of TRL's plain SFTTrainer, on a CPU."""
    from gen_vla.evaluation.benchmarks.training_throughput import run_benchmark, throughput_table

    results = run_benchmark(entries(sizes), batch_size, steps)
    Console().print(throughput_table(results))
    write_results(results, output)


def latency(
    model: Model,
    repeats: Annotated[int, Option(help="Timed actions.")] = 20,
    dtype: Dtype = "auto",
    busy: Annotated[int, Option(help="Then beside this many processes that keep cores busy.")] = 0,
    output: Output = None,
) -> None:
    """Milliseconds per action here, and what they went to."""
    from gen_vla.evaluation.benchmarks.latency import latency_table, measure_busy, measure_latency, measure_parts
    from gen_vla.training.checkpoints import dtype_name

    if repeats < 1:
        raise ValueError(f"got {repeats} repeats, expected at least 1")
    loaded, processor = load_any(model, dtype)
    results = measure_latency(loaded, processor, repeats)
    results["parts"] = measure_parts(loaded, processor, repeats)
    if busy:
        results["busy"] = measure_busy(loaded, processor, busy, repeats)
    Console().print(latency_table(results, f"One action: {model}"))
    identity = {"suite": "latency", "model": model, "parameters": loaded.num_parameters(), "dtype": dtype_name(loaded)}
    write_results({**identity, **results}, output)


def loader(
    paths: Annotated[list[Path], Argument(help="Robot data sets: RLDS, LeRobot or recordings.")],
    frames: Annotated[int, Option(help="Timed frames of each turn.")] = 1000,
    repeats: Annotated[int, Option(help="Turns of each reader.")] = 3,
    split: Annotated[str, Option(help="Split of the data sets.")] = "train",
    output: Output = None,
) -> None:
    """Frames per second and core of the robot readers, beside TensorFlow Datasets and lerobot where installed."""
    from gen_vla.evaluation.benchmarks.loader import loader_table, run_loader_benchmark

    results = run_loader_benchmark(paths, frames=frames, repeats=repeats, split=split)
    Console().print(loader_table(results))
    write_results({"suite": "loader", **results}, output, paths)


def serving(
    model: Model,
    clients: Annotated[str, Option(help="Robots that ask at once.")] = "1,4,16",
    seconds: Annotated[float, Option(help="Of each turn.")] = 5.0,
    dtype: Dtype = "auto",
    mutations: Annotated[int, Option(help="Messages that went wrong, to send afterwards.")] = 0,
    output: Output = None,
) -> None:
    """`gen-vla serve` under load, beside the model alone; and what it does with broken messages."""
    from gen_vla.serving.load_test import load_table, run_load_test, serving
    from gen_vla.serving.mutations import mutations_table, run_mutations
    from gen_vla.training.checkpoints import dtype_name

    loaded, processor = load_any(model, dtype)
    results = run_load_test(model, loaded, processor, numbers(clients), seconds, ("--dtype", dtype))
    Console().print(load_table(results, f"Serving: {model}"))
    if mutations:
        with serving(model, "--dtype", dtype) as (address, process):
            results["mutations"] = run_mutations(address, mutations, process)
        Console().print(mutations_table(results["mutations"]))
    identity = {"suite": "serving", "model": model, "parameters": loaded.num_parameters(), "dtype": dtype_name(loaded)}
    write_results({**identity, **results}, output)
    if mutations and (faults := results["mutations"]["faults"]):
        raise ValueError(f"got {len(faults)} answers that are neither actions nor a sentence, the first: {faults[0]}")
