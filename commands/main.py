"""The command line, `gen-vla COMMAND`: one module per command beside this one, those of `evaluate` in a folder.

A command is a typed function, which imports what it needs when it runs, so that `gen-vla --help` answers at once. It
raises for a mistake; here that becomes a message and exit code 2.
"""

import os
import sys
from typing import Any


# Read when torch loads, here and in the processes this one starts: threads that wait for each other by spinning keep
# whatever else a busy computer does from running, and then wait for it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# isort: split

import typer
from typer.main import get_command

from gen_vla.commands.ablation import ablation
from gen_vla.commands.convert import convert
from gen_vla.commands.demo import demo
from gen_vla.commands.evaluate import suites
from gen_vla.commands.init import init
from gen_vla.commands.pack import pack
from gen_vla.commands.predict import predict
from gen_vla.commands.publish import publish
from gen_vla.commands.record import record
from gen_vla.commands.serve import serve
from gen_vla.commands.train import train
from gen_vla.training.provenance.origin import called_as
from gen_vla.training.storage.storage_problems import storage_problem


HELP = """Vision-language-action models: train, evaluate, publish, run.

\b
Examples:
  gen-vla demo --quick
  gen-vla init my_robot --data my_lerobot_data --work-dir .
  gen-vla train my_robot.yaml --work-dir . --check
  gen-vla train mini_openvla_plus --processes 2
  gen-vla pack openvla_plus_bridge --output outputs/packed
  gen-vla predict gen-vla/mini-openvla-plus camera.png "close the drawer"
  gen-vla serve outputs/my-robot
  gen-vla evaluate tabletop outputs/my-robot --output results
  gen-vla publish outputs/my-robot you/my-robot --dry-run
"""
app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(suites.app, name="evaluate")
for command in (init, train, pack, convert, publish, predict, serve, record, demo, ablation):
    app.command()(command)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code, 2 for a mistake in the input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with called_as("gen-vla", *arguments):
            app(arguments, prog_name="gen-vla")
    except SystemExit as stop:
        return int(stop.code or 0)
    except (ValueError, TypeError, OSError) as error:
        message = storage_problem(error) or str(error)
    except Exception as error:
        from gen_vla.training.storage.hub_requests import NO_ANSWER, reason

        problem = storage_problem(error)
        if not problem and not isinstance(error, NO_ANSWER):
            raise
        message = problem or (
            f"the Hub could not be asked: {reason(error)}; or name folders of this machine instead of hf://, "
            "and leave out co-training sets that are not here (--set data.co_training=[])"
        )
    else:
        return 0
    print(f"gen-vla: {message}", file=sys.stderr)
    return 2


def parse(arguments: list[str]) -> Any:
    """What a command line asks for, without running it: `params` of the result are the arguments of the function."""
    command: Any = get_command(app)
    name = "gen-vla"
    while commands := getattr(command, "commands", None):
        name, *arguments = arguments
        command = commands[name]
    return command.make_context(name, arguments)


if __name__ == "__main__":
    sys.exit(main())
