"""`gen-vla train RECIPE`."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer import Argument, Option


def train(
    recipe: Annotated[str | None, Argument(help="A name from --list, or a YAML file.")] = None,
    show_list: Annotated[bool, Option("--list", help="Show the recipes that come with the package.")] = False,
    work_dir: Annotated[str, Option(help="Where data sets lie and results go.")] = "outputs",
    resume: Annotated[bool, Option("--resume", help="Continue from the newest checkpoint.")] = False,
    plan: Annotated[bool, Option("--plan", help="Memory and hours on 1, 8 and 64 GPUs; trains nothing.")] = False,
    check: Annotated[bool, Option("--check", help="Show the data as the model sees it; trains nothing.")] = False,
    rehearse: Annotated[
        float | None, Option(metavar="MINUTES", help="Load data as the run will for so long; trains nothing.")
    ] = None,
    gpu: Annotated[
        Literal["a100", "h100", "h200", "l40s", "rtx4090"], Option(help="What --plan and --rehearse count on.")
    ] = "h100",
    mini: Annotated[bool, Option("--mini", help="At a size for a CPU and a minute, from random weights.")] = False,
    report_to: Annotated[
        Literal["none", "trackio", "wandb", "tensorboard"] | None,
        Option(help="Where figures go besides the log."),
    ] = None,
    processes: Annotated[int, Option(help="Processes on this machine.")] = 1,
    overrides: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="Override a setting of the recipe; may be repeated."),
    ] = None,
) -> None:
    """Train a recipe."""
    from gen_vla.training.recipes.loading import load_recipe
    from gen_vla.training.storage.storage_problems import make_work_dir

    if plan + check + (rehearse is not None) > 1:
        raise ValueError(
            "got several of --plan, --check and --rehearse, expected one of them: they answer different questions"
        )
    if rehearse is not None and not 0 <= rehearse < float("inf"):
        raise ValueError(f"got --rehearse {rehearse}, expected minutes, 0 or more")
    if show_list or not recipe:
        show_recipes()
        raise typer.Exit(0 if show_list else 2)
    overrides = [*(overrides or []), *([f"training.report_to={report_to}"] if report_to else [])]
    loaded = load_recipe(recipe, parse_overrides(overrides), mini=mini)
    if plan:
        return show_plan(loaded, Path(work_dir), gpu)
    make_work_dir(work_dir)
    if check:
        from gen_vla.training.planning.check import run_check

        return run_check(loaded, work_dir)
    if rehearse is not None:
        return show_rehearsal(loaded, Path(work_dir), rehearse, gpu)
    prepare(loaded, Path(work_dir), resume=resume, mini=mini)
    if loaded.pretraining:
        from gen_vla.training.pretraining.encoders import pretrain_encoders

        pretrain_encoders(loaded, Path(work_dir), processes)
    if processes > 1:
        passed = [recipe, "--work-dir", work_dir, *(["--resume"] if resume else []), *(["--mini"] if mini else [])]
        raise typer.Exit(run_in_processes([*passed, *(f"--set={entry}" for entry in overrides)], processes))
    return run(loaded, Path(work_dir), resume=resume)


def show_recipes() -> None:
    """The recipes of the package as a table."""
    from gen_vla.training.recipes.table import recipes_table

    Console(width=None if sys.stdout.isatty() else 160).print(recipes_table())


def show_plan(recipe: Any, work_dir: Path, gpu: str) -> None:
    """Shows what a run will need."""
    from gen_vla.training.planning.plan import (
        loading_sentence,
        plan_recipe,
        plan_tables,
        planned_config,
        row_sentence,
    )
    from gen_vla.training.planning.row_lengths import read_lengths

    parts, plans = plan_recipe(recipe, work_dir, gpu)
    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in plan_tables(recipe, parts, plans):
        console.print(table)
    measured = read_lengths(work_dir / recipe.name)
    console.print(row_sentence(recipe, planned_config(recipe, work_dir), measured), markup=False, highlight=False)
    if recipe.data.streaming:
        console.print(loading_sentence(recipe), markup=False, highlight=False)


def show_rehearsal(recipe: Any, work_dir: Path, minutes: float, gpu: str) -> None:
    """Loads data as a run will, shows what was measured and writes it into the run's folder."""
    from gen_vla.commands.options import write_results
    from gen_vla.training.planning.rehearsal import rehearse

    found = rehearse(recipe, work_dir, minutes, gpu)
    Console(width=None if sys.stdout.isatty() else 120).print(found.table(recipe.name))
    write_results({"recipe": recipe.name, **asdict(found)}, file := work_dir / recipe.name / "rehearsal.json")
    print(f"Wrote {file}")


def prepare(recipe: Any, work_dir: Path, *, resume: bool, mini: bool) -> None:
    """Checks that the run can begin, and records the simulated data sets that are missing."""
    from gen_vla.commands.record import record_missing_data
    from gen_vla.training.run import prepare_run
    from gen_vla.training.run_folder import discard_checkpoints

    if mini and not resume:
        discard_checkpoints(recipe, work_dir)
    prepare_run(recipe, work_dir, resume)
    record_missing_data(recipe, work_dir)


def run(recipe: Any, work_dir: Path, *, resume: bool) -> None:
    """Trains in this process, which may be one of several that `accelerate launch` started."""
    from gen_vla.training.run import run_recipe
    from gen_vla.training.run_folder import is_first_process

    rollouts = None
    if recipe.training.rollouts:  # they load the simulator
        from gen_vla.evaluation.tabletop.training_rollouts import TabletopRollouts as rollouts
    folder = run_recipe(recipe, work_dir, resume=resume, show=True, rollouts=rollouts)
    if is_first_process():
        print(f"Saved {recipe.name} in {folder}")


def run_in_processes(arguments: list[str], processes: int) -> int:
    """Runs `gen-vla train` with these arguments in several processes of this machine; returns the exit code."""
    threads = max((os.cpu_count() or 1) // processes, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.call([*command, "-m", "gen_vla.commands.main", "train", *arguments], env=environment)


def parse_overrides(entries: list[str]) -> dict[str, Any]:
    """`["training.steps=10"]` to `{"training.steps": 10}`; values are YAML."""
    import yaml

    overrides = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator:
            raise ValueError(f"got --set {entry!r}, expected KEY=VALUE, for example --set training.steps=10")
        overrides[key] = yaml.safe_load(value)
    return overrides
