"""A policy server under load, from outside: actions per second and latency of 1, 4, 16 robots beside the model alone.

The server is a process of its own, `gen-vla serve`, and every robot a thread that asks for its next action as soon as
it has one. The model alone is called in this process, one observation after another and in batches.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from socket import socket
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.policies.cameras import pictures_per_action
from gen_vla.evaluation.policies.flow import starting_noise
from gen_vla.evaluation.policies.states import neutral_state
from gen_vla.evaluation.tables import results_table
from gen_vla.serving.client import PolicyClient
from gen_vla.training.provenance.origin import describe_machine


INSTRUCTION = "close the drawer"
SIDE = 224  # pixels of a side of a picture, as openpi's clients send them
START_SECONDS = 600  # until a server answers; a large model takes minutes to load


@contextlib.contextmanager
def serving(model: str, *options: str) -> Iterator[tuple[str, int]]:
    """`gen-vla serve MODEL` in a process of its own: its address without scheme, and the process's number; raises
    `OSError` if it ends, or does not answer in time."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "gen_vla.commands.main", "serve", model, "--port", address.rpartition(":")[2]]
    environment = {name: value for name, value in os.environ.items() if name != "GEN_VLA_API_KEY"}
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(address):
            if process.poll() is not None or time.monotonic() > end:
                raise OSError(f"got no answer of gen-vla serve {model}, expected one; see what it printed above")
            time.sleep(0.2)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def observation_for(cameras: Sequence[str] | None, seed: int = 0, side: int = SIDE) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    names = cameras or ["image"]
    pictures = {name: random.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in names}
    return {**pictures, "prompt": INSTRUCTION}


def state_for(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    """A state of a data set for a server whose model takes it, as `neutral_state`; else nothing."""
    ranges = metadata["data_sets"][key].get("state")
    return {"state": np.add(ranges["q01"], ranges["q99"]) / 2} if ranges else {}


def measure_model(model: Any, processor: Any, rows: int, seconds: float) -> dict[str, Any]:
    """The model alone, in batches of some rows, for so long; as `measure_clients`."""
    pictures = observation_for([str(number) for number in range(pictures_per_action(processor))])
    shown = [Image.fromarray(picture) for picture in pictures.values() if not isinstance(picture, str)]
    key, milliseconds = next(iter(model.config.norm_stats)), []

    def act() -> None:
        state = neutral_state(processor, key, rows)
        inputs = processor.action_inputs([shown] * rows, [INSTRUCTION] * rows, **state).to(model.device)
        model.predict_actions(**inputs, unnorm_key=key, **starting_noise(model, ["load"] * rows))

    act()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        act()
        milliseconds.append(1000 * (time.perf_counter() - start))
    return summary(milliseconds, time.perf_counter() - began, rows)


def measure_clients(address: str, clients: int, seconds: float) -> dict[str, Any]:
    """Robots that ask at once: actions per second, and the milliseconds from asking to an action."""
    robots = [PolicyClient(f"ws://{address}", timeout=60) for _ in range(clients)]
    cameras, key = robots[0].metadata["cameras"], robots[0].metadata["available_unnorm_keys"][0]
    start = threading.Barrier(clients)

    def ask(number: int) -> tuple[list[float], float]:
        robot, observation, milliseconds = robots[number], observation_for(cameras, number), []
        observation |= {"unnorm_key": key, **state_for(robot.metadata, key)}
        robot.act(observation)
        start.wait()
        began = time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            robot.act(observation)
            milliseconds.append(1000 * (time.perf_counter() - now))
        robot.close()
        return milliseconds, time.perf_counter() - began

    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(ask, range(clients)))
    return summary([each for milliseconds, _ in found for each in milliseconds], max(wall for _, wall in found))


def summary(milliseconds: Sequence[float], seconds: float, rows: int = 1) -> dict[str, Any]:
    return {
        "actions_per_second": round(rows * len(milliseconds) / seconds, 1),
        "median_ms": round(float(np.median(milliseconds)), 1),
        "p95_ms": round(float(np.quantile(milliseconds, 0.95)), 1),
        "n": len(milliseconds),
    }


def run_load_test(
    name: str, model: Any, processor: Any, clients: Sequence[int], seconds: float, options: Sequence[str] = ()
) -> dict[str, Any]:
    """The model alone in batches of 1 and 8, then robots; so many seconds each. `options` are of `gen-vla serve`."""
    results: dict[str, Any] = {"machine": describe_machine(), "seconds": seconds, "picture": SIDE}
    results["alone"] = {str(rows): measure_model(model, processor, rows, seconds) for rows in (1, 8)}
    with serving(name, *options) as (address, _):
        measured = tqdm(clients, unit="turn")
        results["clients"] = {str(count): measure_clients(address, count, seconds) for count in measured}
    return results


def load_table(results: dict[str, Any], title: str) -> Table:
    ways = [(f"the model alone, batches of {rows}", found) for rows, found in results["alone"].items()]
    ways += [(f"{count} robots" if count != "1" else "1 robot", found) for count, found in results["clients"].items()]
    rows = [
        (name, *(found[key] for key in ("actions_per_second", "median_ms", "p95_ms", "n"))) for name, found in ways
    ]
    machine = results["machine"]
    caption = f"{machine['device']}, {machine['threads']} threads, {results['seconds']:g} s each"
    return results_table(title, ("", "actions/s", "median ms", "p95 ms", "n"), rows, caption=caption)
