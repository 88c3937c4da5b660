"""Milliseconds per action of an earlier commit and of the installed package, side by side in one run.

    python -m gen_vla.evaluation.benchmarks.two_commits 65c8889 octo_bridge_debug --sizes mini,100m

Each has a process of its own, which builds the same random model and writes the same recorded actions; the two take
turns call by call, so that whatever else the machine does falls on both alike.
"""

import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm


PARTS = ("processors", "modeling", "training", "evaluation")


def main(
    commit: str,
    bridge: Path,
    sizes: Annotated[str, typer.Option(help="Of the model, as in `gen-vla evaluate decoding`.")] = "mini,100m,1b",
    nodes: Annotated[str, typer.Option(help="Nodes per tree; bins are written with one.")] = "8,24",
    repeats: int = 8,
    output: Path | None = None,
) -> None:
    """Compares the decoder of COMMIT with the installed one on the actions of BRIDGE, Octo's debug sample."""
    from gen_vla.training.provenance.origin import provenance

    results: dict[str, Any] = {"provenance": provenance(), "earlier": commit, "timings": []}
    with tempfile.TemporaryDirectory() as folder:
        processes = {"earlier": Process(earlier_package(commit, Path(folder)), bridge), "now": Process(None, bridge)}
        for size, (kind, ways) in itertools.product(
            sizes.split(","), (("string", [int(count) for count in nodes.split(",")]), ("bins", [1]))
        ):
            built = [process.ask(size=size, kind=kind) for process in processes.values()]
            assert built[0] == built[1], f"the two models have different sizes: {built}"
            for way, runs in take_turns(processes, ways, repeats).items():
                entry = {"size": size, **built[0], "representation": kind, "nodes": way, "calls": repeats}
                entry |= {name: summary(of_one) for name, of_one in runs.items()}
                pairs = zip(runs["earlier"], runs["now"], strict=True)
                entry["now_over_earlier"] = round(statistics.median(now["ms"] / then["ms"] for then, now in pairs), 3)
                results["timings"].append(entry)
                print(json.dumps(entry), flush=True)
                if output:
                    output.write_text(json.dumps(results, indent=1) + "\n")


def earlier_package(commit: str, folder: Path) -> Path:
    """A folder with the package `gen_vla` of a commit, for PYTHONPATH."""
    archive = subprocess.run(["git", "archive", commit, *PARTS], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder / "gen_vla", filter="data")
    return folder


class Process:
    """A Python process that answers JSON lines with the package in `path`, or with the installed one."""

    def __init__(self, path: Path | None, bridge: Path) -> None:
        environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
        command = [sys.executable, "-P", __file__, str(bridge), *([str(path)] if path else [])]
        self.process = subprocess.Popen(
            command, env=environment | {WORKER: "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("one of the two processes ended; its error is above")
        return json.loads(answer)


def take_turns(processes: dict[str, Process], ways: list[int], repeats: int) -> dict[int, dict[str, list[Any]]]:
    runs: dict[int, dict[str, list[Any]]] = {way: {name: [] for name in processes} for way in ways}
    for repeat in tqdm(range(repeats + 1), unit="round", leave=False):
        for way, name in itertools.product(ways, sorted(processes, reverse=bool(repeat % 2))):
            processes[name].ask(nodes=way, repeat=repeat + 1)  # a control loop calls the same way again and again
            run = processes[name].ask(nodes=way, repeat=repeat)
            if repeat:  # the first round warms up
                runs[way][name].append(run)
    return runs


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "median_ms": round(statistics.median(run["ms"] for run in runs), 2),
        "forward_passes": round(statistics.mean(run["passes"] for run in runs), 2),
        "share_outside_passes": round(statistics.median(run["outside"] for run in runs), 4),
    }


WORKER = "GEN_VLA_TWO_COMMITS_WORKER"


def work(bridge: Path, package: Path | None = None) -> None:
    """Answers questions on standard input with the package of this process, which may be an earlier commit's."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    import numpy as np
    import torch

    from gen_vla.evaluation.benchmarks import decoding_benchmark, random_models
    from gen_vla.evaluation.benchmarks.decoding_replay import recorded_actions
    from gen_vla.modeling.action_statistics import histogram

    assert package is None or Path(decoding_benchmark.__file__).is_relative_to(package)
    steps = np.concatenate(recorded_actions(bridge))
    counts = histogram(steps, random_models.NORMALIZED)
    took_previous = "before" in decoding_benchmark.timed.__annotations__  # 65c8889 predicted from the last action
    model: Any = None
    inputs: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "size" in asked:
            model = inputs = None
            gc.collect()  # its recordings refer to it; two of 1B do not fit beside each other
            torch.manual_seed(0)
            model = random_models.build_random(asked["size"], "cpu", torch.float32, asked["kind"], 1, counts)
            inputs = random_models.random_inputs(model, 1)
            answer = {"parameters": sum(weight.numel() for weight in model.parameters())}
        else:
            place = asked["repeat"] * 31 % (len(steps) - 1)
            given = [steps[place + offset][None, None] for offset in ((0, 1) if took_previous else (1,))]
            run = decoding_benchmark.timed(model, inputs, decoding_benchmark.Way(asked["nodes"]), *given)
            answer = {"ms": run["ms"], "passes": run["passes"], "outside": run["outside"]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    if WORKER in os.environ:
        work(*map(Path, sys.argv[1:]))
    else:
        typer.run(main)
