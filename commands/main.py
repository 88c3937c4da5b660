"""The command line: `gen-vla COMMAND`.

Decides: the arguments, what is printed, exit codes (those of `evaluate` in `commands/evaluate.py`). Refuses to know:
how anything is done; every command calls into the package and imports only when asked, so that `gen-vla --help`
answers at once.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


# Read when torch loads, here and in the processes this one starts: threads that wait for each other by spinning keep
# whatever else a busy computer does from running, and then wait for it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# isort: split

from gen_vla.commands.evaluate import add_evaluate
from gen_vla.commands.suite_options import load_any
from gen_vla.training.provenance.origin import called_as
from gen_vla.training.storage.storage_problems import make_work_dir, storage_problem


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code, 2 for a mistake in the input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments)
    try:
        with called_as("gen-vla", *arguments):
            return options.run(options)
    except (ValueError, TypeError, OSError) as error:
        told = storage_problem(error) or str(error)
    except Exception as error:
        from gen_vla.training.storage.hub_requests import NO_ANSWER, reason

        problem = storage_problem(error)
        if not problem and not isinstance(error, NO_ANSWER):
            raise
        told = problem or (
            f"the Hub could not be asked: {reason(error)}; or name folders of this machine instead of hf://, "
            "and leave out co-training sets that are not here (--set data.co_training=[])"
        )
    print(f"gen-vla: {told}", file=sys.stderr)
    return 2


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="gen-vla", description="Vision-language-action models: train, evaluate, publish, run."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_train, add_evaluate, add_convert, add_publish, add_predict, add_demo):
        add(commands)
    return parser


def add_train(commands: Any) -> None:
    """`gen-vla train RECIPE`."""
    command = commands.add_parser("train", help="train a recipe")
    command.add_argument("recipe", nargs="?", help="a name from --list, or a YAML file")
    command.add_argument("--list", action="store_true", help="show the recipes that come with the package")
    command.add_argument("--work-dir", default="outputs", help="where data sets lie and results go (default: outputs)")
    command.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    look = command.add_mutually_exclusive_group()
    look.add_argument("--plan", action="store_true", help="memory and hours on 1, 8 and 64 GPUs; trains nothing")
    look.add_argument("--check", action="store_true", help="show the data as the model sees it; trains nothing")
    command.add_argument("--mini", action="store_true", help="at a size for a CPU and a minute, from random weights")
    command.add_argument(
        "--report-to", choices=("none", "trackio", "wandb", "tensorboard"), help="where figures go besides the log"
    )
    command.add_argument("--processes", type=int, default=1, help="processes on this machine (default: 1)")
    add_overrides(command)
    command.set_defaults(run=run_train)


def add_convert(commands: Any) -> None:
    """`gen-vla convert SRC DST`."""
    command = commands.add_parser(
        "convert", help="turn a checkpoint of OpenVLA, Prismatic or PaliGemma into a folder of this family"
    )
    command.add_argument("source", help="a folder, a .pt file of a training run, or a name on the Hub")
    command.add_argument("destination", type=Path, help="the folder to write; must not exist yet")
    command.add_argument(
        "--actions",
        choices=("bins", "legacy", "signed", "plain"),
        help="how the model writes actions (default: as it was trained to)",
    )
    command.add_argument("--tokenizer", help="folder or Hub name of the tokenizer, for training runs, which hold none")
    command.add_argument(
        "--frozen", choices=("siglip", "dino"), help="OpenVLA: the encoder that further training leaves alone"
    )
    command.add_argument(
        "--dual",
        action=argparse.BooleanOptionalAction,
        help="PaliGemma: double the encoder and freeze one copy (default), or leave it as it is",
    )
    command.add_argument(
        "--family",
        choices=("pi0_plus", "pi0_flow"),
        help="PaliGemma: what it becomes, the family of this package (default), or π0 with an action expert of random "
        "weights, the flow-matching baseline",
    )
    command.add_argument(
        "--center-crop",
        type=float,
        metavar="AREA",
        help="share of each picture's area to keep: 0.9 for models trained with random crops",
    )
    command.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="(default: each weight's own)")
    command.add_argument("--max-shard-gb", type=float, default=5.0, help="size of a weight file (default: 5)")
    command.set_defaults(run=run_convert)


def add_publish(commands: Any) -> None:
    """`gen-vla publish CHECKPOINT REPO_ID`."""
    command = commands.add_parser("publish", help="assemble and verify a repository, and put it on the Hub")
    command.add_argument("checkpoint", type=Path, help="folder of a trained model, or of a LoRA adapter")
    command.add_argument("repo_id", help="OWNER/NAME")
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.add_argument(
        "--revision", default="main", metavar="BRANCH", help="the branch to commit to (default: main)"
    )
    command.add_argument("--message", help="of the commit (default: Publish NAME)")
    command.add_argument("--tag", help="a name for the commit")
    command.add_argument("--collection", metavar="SLUG", help="a collection on the Hub to add the repository to")
    command.add_argument("--dry-run", action="store_true", help="show what would be uploaded, and upload nothing")
    command.add_argument("--results", type=Path, metavar="JSON", help="measured figures for the model card")
    command.add_argument("--output", type=Path, help="keep the assembled folder here (default: it is not kept)")
    command.add_argument(
        "--cache", action="store_true", help="put it where from_pretrained finds it by name, and not on the Hub"
    )
    command.add_argument("--cache-dir", type=Path, help="the same with this cache (default: Hugging Face's own)")
    command.set_defaults(run=run_publish)


def add_predict(commands: Any) -> None:
    """`gen-vla predict MODEL IMAGE... INSTRUCTION`."""
    command = commands.add_parser("predict", help="one action for one picture, or one per camera")
    command.add_argument("model", help="a folder, or a name on the Hub or in the cache")
    command.add_argument(
        "image",
        nargs="+",
        help="a picture file; of a model of several cameras one each, in the order of training or as CAMERA=FILE",
    )
    command.add_argument("instruction", help='for example "close the drawer"')
    command.add_argument("--unnorm-key", help="the data set whose units are wanted")
    command.add_argument("--picture", type=Path, help="draw the prediction into this PNG")
    command.set_defaults(run=run_predict)


def add_demo(commands: Any) -> None:
    """`gen-vla demo`."""
    command = commands.add_parser("demo", help="the whole path at toy size: record, train, publish, load, roll out")
    command.add_argument("--output", help="where everything goes (default: demo_output, demo_output_quick if quick)")
    command.add_argument("--episodes", type=int, default=50, help="rollouts per task (default: 50)")
    command.add_argument("--quick", action="store_true", help="every part in a few minutes; the policy learns nothing")
    command.add_argument(
        "--space",
        action="store_true",
        help="open a page in the browser with the demo's model; with --quick, make it first",
    )
    command.add_argument("--model", metavar="FOLDER_OR_NAME", help="another model for --space")
    command.add_argument("--baseline", metavar="FOLDER_OR_NAME", help="a second model for --space, to compare with")
    command.set_defaults(run=run_demo_command)


def add_overrides(command: argparse.ArgumentParser) -> None:
    """`--set KEY=VALUE`, for the commands that run recipes."""
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe's setting; may be repeated"
    )


def run_train(options: argparse.Namespace) -> int:
    """Lists recipes, or trains one."""
    from gen_vla.training.recipes.loading import load_recipe

    if options.list or not options.recipe:
        from rich.console import Console

        from gen_vla.training.recipes.table import recipes_table

        Console(width=None if sys.stdout.isatty() else 160).print(recipes_table())
        return 0 if options.list else 2
    if options.report_to:
        options.set.append(f"training.report_to={options.report_to}")
    recipe = load_recipe(options.recipe, parse_overrides(options.set), mini=options.mini)
    if options.plan:
        return run_plan(recipe, Path(options.work_dir))
    make_work_dir(options.work_dir)
    if options.check:
        from gen_vla.training.planning.check import run_check

        run_check(recipe, options.work_dir)
        return 0
    from gen_vla.commands.recording import record_missing_data
    from gen_vla.training.run import prepare_run, run_recipe
    from gen_vla.training.run_folder import discard_checkpoints, is_first_process

    work_dir = Path(options.work_dir)
    if options.mini and not options.resume:
        discard_checkpoints(recipe, work_dir)
    prepare_run(recipe, work_dir, options.resume)
    record_missing_data(recipe, work_dir)
    if options.processes > 1:
        passed = [options.recipe, "--work-dir", options.work_dir, *(["--resume"] if options.resume else [])]
        passed += ["--mini"] if options.mini else []
        return run_in_processes([*passed, *(f"--set={entry}" for entry in options.set)], options.processes)
    folder = run_recipe(recipe, work_dir, resume=options.resume, show=True)
    if is_first_process():
        print(f"Saved {recipe.name} in {folder}")
    return 0


def run_in_processes(arguments: list[str], processes: int) -> int:
    """Runs `gen-vla train` with these arguments in several processes of this machine; returns the exit code."""
    threads = max((os.cpu_count() or 1) // processes, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.call([*command, "-m", "gen_vla.commands.main", "train", *arguments], env=environment)


def run_plan(recipe: Any, work_dir: Path) -> int:
    """Shows what a run will need."""
    from rich.console import Console

    from gen_vla.training.planning.plan import plan_recipe, plan_tables, planned_config, row_sentence

    parts, plans = plan_recipe(recipe, work_dir)
    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in plan_tables(recipe, parts, plans):
        console.print(table)
    console.print(row_sentence(recipe, planned_config(recipe, work_dir)), markup=False, highlight=False)
    return 0


def run_convert(options: argparse.Namespace) -> int:
    """Converts a checkpoint."""
    import torch

    from gen_vla.training.converting.conversion import convert

    folder = convert(
        options.source,
        options.destination,
        actions=options.actions,
        tokenizer=options.tokenizer,
        frozen=options.frozen,
        dual=options.dual,
        family=options.family,
        center_crop_area=options.center_crop,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        max_shard_bytes=int(options.max_shard_gb * 1e9),
    )
    print(f"Converted into {folder}")
    return 0


def run_publish(options: argparse.Namespace) -> int:
    """Assembles a repository and puts it on the Hub or, if asked, in this machine's cache."""
    from gen_vla.training.publishing.hub_publishing import install, publish, read_results, show
    from gen_vla.training.publishing.hub_state import Destination

    results = read_results(options.results) if options.results else None
    if options.cache or options.cache_dir:
        snapshot = install(options.checkpoint, options.repo_id, options.cache_dir, options.output, results)
        print(f"Verified and in the cache as {snapshot}")
        return 0
    names = (options.revision, options.private, options.message, options.tag, options.collection)
    destination = Destination(options.repo_id, *names)
    show(publish(options.checkpoint, destination, options.output, options.dry_run, results))
    return 0


def run_predict(options: argparse.Namespace) -> int:
    """Prints one action as JSON, with what its data set says of the values."""
    from gen_vla.commands.picture_files import read_pictures

    pictures = read_pictures(options.image)
    model, processor = load_any(options.model)
    inputs = processor.action_inputs(pictures, options.instruction)
    prediction = model.predict_actions(**inputs, unnorm_key=options.unnorm_key)
    statistics = model.get_action_stats(options.unnorm_key)
    told = {name: statistics[name] for name in ("names", "fps", "displacements") if name in statistics}
    print(json.dumps({"action": prediction.actions[0].tolist(), "text": prediction.text[0], **told}))
    if options.picture:
        from gen_vla.evaluation.policies.pictures import draw_prediction, side_by_side

        shown = side_by_side(list(pictures.values()) if isinstance(pictures, dict) else pictures)
        draw_prediction(shown, options.instruction, prediction, options.picture)
    return 0


def run_demo_command(options: argparse.Namespace) -> int:
    """Runs the demo, or opens the Space with what it left."""
    if (options.model or options.baseline) and not options.space:
        raise ValueError("got --model or --baseline without --space, expected them with it: they name what it opens")
    output = options.output or ("demo_output_quick" if options.quick else "demo_output")
    if options.quick or not options.space:
        from gen_vla.commands.demo import run_demo

        run_demo(output, episodes=options.episodes, quick=options.quick)
    if not options.space:
        return 0
    from gen_vla.commands.space import DEMO_OUTPUTS, run_space

    outputs = (output,) if options.quick or options.output else DEMO_OUTPUTS
    return run_space(options.model, options.baseline, outputs)


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


if __name__ == "__main__":
    sys.exit(main())
