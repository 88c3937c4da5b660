"""The command line: `gen-vla COMMAND`.

Decides: the arguments, what is printed, exit codes. Refuses to know: how anything is done; every command calls one
function of the package and imports it only when asked, so that `gen-vla --help` answers at once.
"""

import argparse
import sys
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code, 2 for a mistake in the input."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, TypeError, FileNotFoundError, FileExistsError) as error:
        print(f"gen-vla: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="gen-vla", description="Vision-language-action models: train, publish, run.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a recipe")
    train.add_argument("recipe", nargs="?", help="a name from --list, or a YAML file")
    train.add_argument("--list", action="store_true", help="show the recipes that come with the package")
    train.add_argument("--work-dir", default="outputs", help="where data sets lie and results go (default: outputs)")
    train.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    train.add_argument("--processes", type=int, default=1, help="processes on this machine (default: 1)")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    train.set_defaults(run=run_train)
    return parser


def run_train(options: argparse.Namespace) -> int:
    """`gen-vla train`."""
    from gen_vla.training.recipe import load_recipe, recipe_names

    if options.list or not options.recipe:
        for name in recipe_names():
            print(f"{name:24} {load_recipe(name).description.strip()}")
        return 0 if options.list else 2
    recipe = load_recipe(options.recipe, parse_overrides(options.set))
    if options.processes > 1:
        from pathlib import Path

        from gen_vla.training.train import record_missing_data, run_in_processes

        record_missing_data(recipe, Path(options.work_dir))
        passed = [options.recipe, "--work-dir", options.work_dir, *(["--resume"] if options.resume else [])]
        return run_in_processes([*passed, *(f"--set={entry}" for entry in options.set)], options.processes)
    from gen_vla.training.train import run_recipe

    folder = run_recipe(recipe, options.work_dir, resume=options.resume)
    print(f"Saved {recipe.name} in {folder}")
    return 0


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
