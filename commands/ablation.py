"""`gen-vla ablation`: every row of the 2³ of D, S and C, and controls, over several seeds, from one base.

    WORK_DIR/demonstrations, questions        what all rows train on
    WORK_DIR/held_out/LOOKS                   questions to judge by: home, broad, unseen
    WORK_DIR/held_out/actions_LOOKS           demonstrations to judge by
    WORK_DIR/ROW-seedN/                       a model; its results beside it, in ROW-seedN-results/
    WORK_DIR/report/                          the paper's tables with what is there so far

Rows get the same number of robot rows per step; co-training adds as many questions. Whatever is finished is kept: the
same command goes on where it stopped. Each training and suite is a process of its own.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Option

from gen_vla.commands.train import parse_overrides


if TYPE_CHECKING:
    from gen_vla.training.recipes.loading import Recipe


RECIPE, BASE = "mini_openvla_plus", "package://mini-vlm"
FLOW_BASE, FLOW_START = "package://mini-paligemma", "mini-pi0-start"  # the latter in WORK_DIR, with an action expert
HELD_OUT_SEED = 1_000_000  # the first evaluation seed of the simulator
LOOKS = ("home", "broad", "unseen")
ROBOT_ROWS = 16  # per step, of all processes together
EVERY = 4  # steps of a held-out demonstration, one is asked about
LONGER = [  # than the recipe, which is the demo's
    "training.steps=1000",
    "data.robot.0.record.episodes_per_task=400",
    "data.vision_language.0.record.count=10000",
]
NO_D: dict[str, Any] = {"model.frozen": None}
NO_S: dict[str, Any] = {
    "actions.representation": "bins",
    "actions.bin_tokens": "bytes",
    "actions.label_decimals": None,
    "loss.decimal_weights": [],
}
NO_C: dict[str, Any] = {"data.co_training": []}
KINDS = {  # of questions, by what a row leaves out
    "points": ["point", "gripper", "gripper_offset"],
    "attributes": ["shape", "colour"],
    "relations": ["object_order", "drawer_side", "nearest"],
    "states": ["drawer_state", "presence", "count"],
}


def without(left_out: str) -> dict[str, Any]:
    """Recorded questions of all kinds but some."""
    asked = [kind for name, kinds in KINDS.items() if name != left_out for kind in kinds]
    return {"path": f"questions_no_{left_out}", "name": "scenes", "record": {"count": 1, "kinds": asked}}  # see LONGER


ROWS: dict[str, dict[str, Any]] = {  # by the names of the paper's rows, what differs from OpenVLA+
    "openvla-plus": {},
    "openvla": {**NO_D, **NO_S, **NO_C},
    "openvla-sc": NO_D,
    "openvla-ds": NO_C,
    "openvla-s": {**NO_D, **NO_C},
    "openvla-d": {**NO_S, **NO_C},
    "openvla-c": {**NO_D, **NO_S},
    "openvla-dc": NO_S,
    "openvla-inst-aug": {**NO_D, **NO_S, **NO_C, "data.instruction_augmentation": {}},
    "pi0": {  # with other words, as every π0 without questions in the paper
        **NO_D,
        **NO_C,
        "model.family": "pi0_flow",
        "model.initial_model": FLOW_START,
        "actions": {"representation": "flow"},
        "loss": {},
        "data.instruction_augmentation": {},
    },
    "openvla-all-frozen": {"model.frozen": "all"},
    "openvla-plus-robot-25": {"data.robot_share": 0.25},
    "openvla-plus-robot-80": {"data.robot_share": 0.8},  # 75 % would need other batches
    **{f"openvla-plus-no-{name}": {"data.vision_language": [without(name)]} for name in KINDS},
}


def ablation(
    work_dir: Annotated[Path, Option(help="Where data, models and results go.")] = Path("ablation"),
    rows: Annotated[str, Option(help="Names of rows.")] = ",".join(ROWS),
    seeds: Annotated[int, Option(help="Training seeds per row: 0, 1, ...")] = 3,
    episodes: Annotated[int, Option(help="Rollouts per task; per variant a twelfth, at least one.")] = 50,
    tasks: Annotated[
        str, Option(help="That are demonstrated and judged, of pick_object,move_near,open_drawer,close_drawer.")
    ] = "open_drawer,close_drawer",
    questions: Annotated[int, Option(help="Held-out questions per set of looks.")] = 900,
    demonstrations: Annotated[int, Option(help="Held-out demonstrations per task and set of looks.")] = 50,
    processes: Annotated[int, Option(help="Of training, of recording, and suites at a time.")] = 2,
    rows_at_a_time: Annotated[int, Option(help="That train and are measured side by side, as on a GPU.")] = 1,
    status: Annotated[bool, Option("--status", help="Show what is done and what is left; runs nothing.")] = False,
    overrides: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="Override a setting of every row's recipe.")
    ] = None,
) -> None:
    """Train and measure the rows of the paper's ablation on the tabletop; running again goes on."""
    from gen_vla.commands.options import entries
    from gen_vla.commands.record import record_missing_data

    named = entries(rows)
    if unknown := [name for name in named if name not in ROWS]:
        raise ValueError(f"got the rows {', '.join(unknown)}, expected some of {', '.join(ROWS)}")
    runs = [Run(name, seed, work_dir) for seed in range(seeds) for name in named]
    console = Console()
    if status:
        console.print(status_table(runs))
        return
    for looks in LOOKS:
        chosen = [f"--looks={looks}", f"--seed={HELD_OUT_SEED}", f"--workers={processes}"]
        if not (folder := held_out_questions(work_dir, looks)).exists():
            command("record", "questions", folder, f"--count={questions}", *chosen)
        if not (folder := held_out_actions(work_dir, looks)).exists():
            command(
                "record",
                "demonstrations",
                folder,
                f"--episodes-per-task={demonstrations}",
                f"--tasks={tasks}",
                *chosen,
            )
    changes = [*LONGER, f"data.robot.0.record.tasks=[{tasks}]", *(overrides or [])]
    for run in runs:
        if "training" in run.left():  # before any row trains: two must not record the same
            record_missing_data(run.recipe(processes, changes), work_dir)
            if run.is_flow and not (start := work_dir / FLOW_START).exists():
                from gen_vla.training.model_building import initial_model_folder

                command("convert", initial_model_folder(FLOW_BASE, work_dir), start, "--family=pi0_flow")
    reporting = Lock()

    def finish(run: Run) -> None:
        if run.left():
            console.rule(f"[bold]{run.name}", align="left")
            run.train(processes, changes)
            run.measure(tasks, episodes, processes)
            with reporting:
                report(runs, work_dir)
        console.print(status_table(runs))

    with ThreadPoolExecutor(rows_at_a_time) as pool:
        list(pool.map(finish, runs))


def held_out_questions(work_dir: Path, looks: str) -> Path:
    return work_dir / "held_out" / looks


def held_out_actions(work_dir: Path, looks: str) -> Path:
    return work_dir / "held_out" / f"actions_{looks}"


class Run:
    """One row and seed: a model, and the results of its suites."""

    def __init__(self, row: str, seed: int, work_dir: Path, name: str | None = None):
        self.row, self.seed, self.work_dir, self.name = row, seed, work_dir, name or f"mini-{row}-seed{seed}"
        self.model, self.results = work_dir / self.name, work_dir / f"{self.name}-results"
        names = ["latency.json", "matching/results.json", "variants/results.json"]
        names += [f"actions_{looks}.json" for looks in LOOKS]
        if not self.is_flow:
            names += ["aim.json", *(f"questions_{looks}.json" for looks in LOOKS)]
            names += [f"representations_{looks}.json" for looks in LOOKS[1:]]
        self.files = [self.results / name for name in names]

    @property
    def is_flow(self) -> bool:
        """Whether the model answers nothing, so that neither its answers nor its encoders are asked about."""
        return ROWS[self.row].get("model.initial_model") == FLOW_START

    def left(self) -> list[str]:
        """What is still to do."""
        trained = (self.model / "training_log.json").is_file()
        return ["training"] * (not trained) + [str(path.relative_to(self.results)) for path in self.missing()]

    def missing(self) -> list[Path]:
        return [path for path in self.files if not path.is_file()]

    def settings(self, processes: int) -> dict[str, Any]:
        """What the recipe is overridden with; a batch is that of each process."""
        changes = ROWS[self.row]
        share = 1.0 if "data.co_training" in changes else changes.get("data.robot_share", 0.5)
        rows = round(ROBOT_ROWS / share)
        return {**changes, "name": self.name, "training.seed": self.seed, "training.batch_size": rows // processes}

    def recipe(self, processes: int, overrides: list[str]) -> "Recipe":
        from gen_vla.training.recipes.loading import load_recipe

        return load_recipe(RECIPE, {**self.settings(processes), **parse_overrides(overrides)})

    def train(self, processes: int, overrides: list[str]) -> None:
        """Trains the model unless it is there; `ValueError` for one that was trained with other settings."""
        if (self.model / "training_log.json").is_file():
            check_same_recipe(self.recipe(processes, overrides), self.model)
            print(f"  {self.name} is trained already; delete {self.model} to train it again")
            return
        chosen = [f"--set={key}={json.dumps(value)}" for key, value in self.settings(processes).items()]
        chosen += [f"--set={entry}" for entry in overrides]
        command("train", RECIPE, f"--work-dir={self.work_dir}", "--resume", f"--processes={processes}", *chosen)

    def measure(self, tasks: str, episodes: int, processes: int) -> None:
        """Success where the demonstrations were made, in other looks and words, and hindered; questions; what the
        expert does where the model points; the error of actions beside demonstrated ones; speed; linear probes of both
        encoders and how far they moved. So many suites run at a time, and speed is measured first, alone.
        """
        self.results.mkdir(exist_ok=True)
        suites = [self.suite(path, tasks, episodes) for path in self.missing()]
        for arguments in (each for each in suites if each[0] == "latency"):
            command("evaluate", *arguments)
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(lambda each: command("evaluate", *each), (each for each in suites if each[0] != "latency")))

    def suite(self, path: Path, tasks: str, episodes: int) -> tuple[Any, ...]:
        """What to call `gen-vla evaluate` with for the results of `path`."""
        name, looks = path.stem.partition("_")[::2]
        if path.parent != self.results:
            modes, count, controls = "matching,paraphrase,masked", episodes, "swapped,nonsense"
            if path.parent.name == "variants":
                modes, count, controls = "variants,seen_variants", max(episodes // 12, 1), ""
            options = [f"--modes={modes}", f"--tasks={tasks}", f"--episodes={count}", f"--policy={controls}"]
            options += [f"--trained-on={self.work_dir / 'demonstrations'}", "--workers=1", "--videos=0"]
            return "tabletop", self.model, *options, f"--output={path.parent}"
        if name == "latency":
            return "latency", self.model, f"--output={path}"
        if name == "aim":
            return name, self.model, "--errors=", f"--episodes={2 * episodes}", f"--output={path}"
        if name == "representations":
            options = [f"--before={BASE}", "--samples=1000", f"--output={path}"]
            return name, self.model, f"--data={held_out_questions(self.work_dir, looks)}", *options
        if name == "actions":
            options = [f"--every={EVERY}", "--episodes=1000", "--batch-size=32", f"--output={path}"]
            return "open_loop", self.model, held_out_actions(self.work_dir, looks), *options
        asked = f"--questions={held_out_questions(self.work_dir, looks)}"
        return "scene_questions", self.model, asked, f"--output={path}"


def check_same_recipe(recipe: "Recipe", folder: Path) -> None:
    """Raises `ValueError` if the model in the folder was trained with other settings than those asked for; one that
    the recipe had none of then counts as its default."""
    from gen_vla.training.recipes.loading import load_recipe

    if load_recipe(folder / "recipe.yaml") != recipe:
        raise ValueError(
            f"got {folder} trained with other settings, expected those of {recipe.name}; delete it, or choose another "
            "output"
        )


def command(*arguments: Any) -> None:
    """Runs `gen-vla` with one thread a process; raises `ValueError` where it fails."""
    words = [str(argument) for argument in arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.call([sys.executable, "-m", "gen_vla.commands.main", *words], env=one_thread):
        raise ValueError(f"got a failure from gen-vla {' '.join(words)}; its messages are above. Run again to go on")


def report(runs: list[Run], work_dir: Path) -> None:
    """The tables of everything that is there."""
    found = [path for run in runs for path in run.files if path.is_file()]
    command("evaluate", "report", *found, f"--output={work_dir / 'report'}")


def status_table(runs: list[Run]) -> Table:
    """What is done and what is left, by row and seed."""
    seeds = sorted({run.seed for run in runs})
    table = Table("row", *(f"seed {seed}" for seed in seeds), title="Done, or what is left")
    for row in dict.fromkeys(run.row for run in runs):
        left = [run.left() for run in runs if run.row == row]
        table.add_row(row, *(f"{len(parts)} left: {parts[0]}" if parts else "done" for parts in left))
    return table
