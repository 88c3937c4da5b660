"""`gen-vla evaluate SUITE MODEL`: one command per suite, each with its own options.

Decides: every suite's arguments, what is printed and where results go. Refuses to know: how anything is measured;
suites are imported only when asked for.

A suite is a pair of functions, `add_<suite>` for its options and `run_<suite>`, and a line in `SUITES`. Those that
measure speed are in `commands/benchmarks.py`.
"""

import argparse
from pathlib import Path
from typing import Any

from gen_vla.commands.benchmarks import add_agreement, add_decoding, add_latency, add_loader, add_training_step
from gen_vla.commands.suite_options import add_model, add_output, load_any, write_results


def add_evaluate(commands: Any) -> None:
    """`gen-vla evaluate SUITE MODEL`."""
    command = commands.add_parser("evaluate", help="measure a model")
    suites = command.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for add in SUITES:
        add(suites)


def add_drawers(suites: Any) -> None:
    """`gen-vla evaluate drawers MODEL`."""
    command = suites.add_parser("drawers", help="open and close a drawer in the simulator")
    add_model(command)
    command.add_argument("--episodes", type=int, default=50, help="rollouts per task (default: 50)")
    command.add_argument("--questions", type=Path, help="also ask a data set of held-out questions")
    add_output(command)
    command.set_defaults(run=run_drawers)


def run_drawers(options: argparse.Namespace) -> int:
    """Rolls a policy out beside its controls."""
    from datasets import load_from_disk
    from rich.console import Console

    from gen_vla.evaluation.drawers.suite import run_suite, summary_table

    model, processor = load_any(options.model)
    questions = load_from_disk(str(options.questions)) if options.questions else None
    results = run_suite(model, processor, questions, episodes=options.episodes)  # type: ignore[arg-type]
    Console().print(summary_table(results, options.model))
    rollouts = [report.to_dict() for report in results["rollouts"]]
    answers = results["questions"].to_dict() if results["questions"] else None
    written = {"model": options.model, "rollouts": rollouts, "questions": answers, "latency": results["latency"]}
    return write_results(written, options.output, [options.questions])


def add_scene_questions(suites: Any) -> None:
    """`gen-vla evaluate scene_questions MODEL`."""
    command = suites.add_parser("scene_questions", help="questions about pictures of the drawer scenes")
    add_model(command)
    command.add_argument("--questions", type=Path, required=True, help="a data set of held-out questions")
    add_output(command)
    command.set_defaults(run=run_scene_questions)


def run_scene_questions(options: argparse.Namespace) -> int:
    """Asks a data set of questions."""
    from datasets import load_from_disk
    from rich.console import Console

    from gen_vla.evaluation.vqa.scene_questions import evaluate_questions, questions_table

    model, processor = load_any(options.model)
    report = evaluate_questions(model, processor, load_from_disk(str(options.questions)))  # type: ignore[arg-type]
    Console().print(questions_table(report))
    return write_results({"model": options.model, **report.to_dict()}, options.output, [options.questions])


def add_vqa(suites: Any) -> None:
    """`gen-vla evaluate vqa MODEL`."""
    command = suites.add_parser("vqa", help="TextVQA, POPE, GQA, VizWiz, VSR and the recorded scenes, by lm-eval")
    add_model(command)
    command.add_argument(
        "--tasks",
        default="textvqa,pope,gqa,vizwiz,vsr",
        help="of textvqa, pope, gqa, vizwiz, vsr, scenes (default: the first five)",
    )
    command.add_argument("--local", type=Path, help="read tasks from this folder, see evaluation/vqa/lm_eval_tasks")
    command.add_argument("--limit", type=int, help="ask only the first questions of each task")
    command.add_argument("--batch-size", type=int, default=4, help="questions per call (default: 4)")
    add_output(command)
    command.set_defaults(run=run_vqa_command)


def run_vqa_command(options: argparse.Namespace) -> int:
    """Asks questions about pictures; beside the results go every answer and a picture."""
    from rich.console import Console

    from gen_vla.evaluation.vqa.results import plot_results, results_table, yes_no_table
    from gen_vla.evaluation.vqa.suite import run_vqa, write_answers

    tasks = [task for task in options.tasks.split(",") if task]
    results, answers = run_vqa(
        options.model, tasks, local=options.local, limit=options.limit, batch_size=options.batch_size
    )
    for table in (results_table(results["tasks"], options.model), yes_no_table(results["tasks"])):
        if table is not None:
            Console().print(table)
    write_results(results, options.output, dict.fromkeys(results["data"].values()))
    if options.output:
        write_answers(answers, options.output.with_name(f"{options.output.stem}_answers.jsonl"))
        plot_results(results["tasks"], options.output.with_suffix(".png"), Path(options.model).name)
    return 0


def add_simpler(suites: Any) -> None:
    """`gen-vla evaluate simpler [MODEL]`."""
    command = suites.add_parser("simpler", help="SimplerEnv, where it is installed; goes on where it stopped")
    command.add_argument("model", nargs="?", help="a folder, or a name on the Hub or in the cache")
    command.add_argument("--policy", default="", help="controls, of expert, random, zero, by commas (default: none)")
    command.add_argument("--robot", choices=("widowx", "google_robot"), required=True)
    modes = ("matching", "variants", "masked", "paraphrase")
    command.add_argument("--modes", nargs="+", choices=modes, default=["matching"], help="(default: matching)")
    command.add_argument("--tasks", nargs="+", default=[], help="(default: all of the robot's)")
    command.add_argument("--episodes", type=int, help="at most so many of every variant (default: the whole protocol)")
    command.add_argument("--unnorm-key", help="(default: the real robot's data set)")
    command.add_argument("--action-ensemble", action="store_true", help="average overlapping predictions")
    command.add_argument(
        "--shader", choices=("rt", "ibl"), help="ibl draws without ray tracing (default: as published)"
    )
    command.add_argument("--shard", default="0/1", help="I/N runs every N-th trial; N processes share a folder")
    command.add_argument("--output", type=Path, required=True, help="a folder for settings, trials and results")
    command.set_defaults(run=run_simpler)


def run_simpler(options: argparse.Namespace) -> int:
    """Runs a policy in SimplerEnv."""
    from rich.console import Console

    from gen_vla.evaluation.simpler.environment import find_assets
    from gen_vla.evaluation.simpler.suite import SimplerSettings, evaluate_simpler, simpler_table

    find_assets()  # before a model is loaded for nothing
    index, _, count = options.shard.partition("/")
    names = ("robot", "episodes", "shader", "unnorm_key", "action_ensemble")
    settings = SimplerSettings(
        modes=tuple(options.modes),
        tasks=tuple(options.tasks),
        shard=(int(index), int(count or 0)),
        controls=tuple(dict.fromkeys(entry for entry in options.policy.split(",") if entry)),
        **{name: getattr(options, name) for name in names},
    )
    settings.trials()
    played = load_any(options.model) if options.model else (None, None)
    results = evaluate_simpler(*played, options.model, settings, options.output)
    title = f"SimplerEnv, {options.robot}" + (f": {options.model}" if options.model else "")
    Console().print(simpler_table(results, title))
    return 0


def add_tabletop(suites: Any) -> None:
    """`gen-vla evaluate tabletop [MODEL]`."""
    command = suites.add_parser("tabletop", help="four tasks in one simulated scene, in and out of distribution")
    command.add_argument("model", nargs="?", help="a folder, or a name on the Hub or in the cache")
    command.add_argument(
        "--policy", default="expert,random,zero", help="controls: of expert, random, zero, blind, deaf (default: 3)"
    )
    command.add_argument("--modes", default="matching,variants,masked,paraphrase", help="(default: all four)")
    command.add_argument("--tasks", default="pick_object,move_near,open_drawer,close_drawer", help="(default: all)")
    command.add_argument("--episodes", type=int, default=50, help="per task and variant (default: 50)")
    command.add_argument("--workers", type=int, default=2, help="simulator processes (default: 2)")
    command.add_argument("--batch-size", type=int, default=16, help="episodes per call of the policy (default: 16)")
    command.add_argument("--image-size", type=int, help="pixels a side (default: the model's, else 112)")
    command.add_argument("--unnorm-key", help="whose units the actions have (default: the model's only one)")
    command.add_argument("--trained-on", type=Path, help="a recorded data set whose layouts must not be judged")
    command.add_argument("--videos", type=int, default=1, help="per task, with --output (default: 1)")
    command.add_argument("--output", type=Path, help="folder of results; running again continues there")
    command.set_defaults(run=run_tabletop)


def run_tabletop(options: argparse.Namespace) -> int:
    """Runs the tabletop suite and shows its tables."""
    from rich.console import Console

    from gen_vla.evaluation.tabletop import suite as suite
    from gen_vla.evaluation.tabletop.scores import tabletop_table, variants_table

    modes = tuple(entry for entry in options.modes.split(",") if entry)
    controls = [entry for entry in options.policy.split(",") if entry]
    contestants = suite.control_contestants(controls, ("matching",) if options.model else modes)  # type: ignore[arg-type]
    size = options.image_size or 112
    if options.model:
        model, processor = load_any(options.model)
        size = options.image_size or processor.image_processor.image_size
        played = suite.model_contestant(model, processor, options.model, modes, options.unnorm_key)  # type: ignore[arg-type]
        contestants.insert(0, played)
    settings = suite.SuiteSettings(
        modes=modes,  # type: ignore[arg-type]
        tasks=tuple(entry for entry in options.tasks.split(",") if entry),  # type: ignore[arg-type]
        episodes=options.episodes,
        workers=options.workers,
        batch_size=options.batch_size,
        image_size=size,
        videos=options.videos,
        trained_on=options.trained_on,
    )
    results = suite.run_suite(contestants, settings, options.output)
    scores = {name: found["scores"] for name, found in results["policies"].items()}
    console = Console()
    for name in scores:
        if "variants" in scores[name]:
            console.print(variants_table(scores[name]["variants"], f"variants: {name}"))
    console.print(tabletop_table(scores, options.model or "tabletop"))
    if options.output:
        suite.draw_results(contestants, results, settings, options.output)
        console.print(f"Results in {options.output}")
    return 0


def add_open_loop(suites: Any) -> None:
    """`gen-vla evaluate open_loop MODEL DATA`."""
    command = suites.add_parser("open_loop", help="its actions beside those of recorded episodes, without a simulator")
    add_model(command)
    command.add_argument("data", help="a robot data set it was not trained on: a folder, or hf://datasets/OWNER/NAME")
    command.add_argument("--unnorm-key", help="whose units the actions have (default: the model's only one)")
    command.add_argument("--split", help="of the data set (default: all of a LeRobot set, train of others)")
    command.add_argument(
        "--camera",
        action="append",
        help="of the data set (default: those of the model's recipe); repeat it for a model of several",
    )
    command.add_argument("--every", type=int, default=10, help="ask at every N-th step of an episode (default: 10)")
    command.add_argument("--episodes", type=int, default=50, help="from all over the data set, at most (default: 50)")
    command.add_argument("--batch-size", type=int, default=8, help="observations per call (default: 8)")
    command.add_argument("--picture", type=Path, help="draw an episode and the errors into this PNG")
    add_output(command)
    command.set_defaults(run=run_open_loop)


def run_open_loop(options: argparse.Namespace) -> int:
    """Compares a policy with recorded actions."""
    from rich.console import Console

    from gen_vla.evaluation.open_loop.suite import (
        OpenLoopSettings,
        evaluate_open_loop,
        open_loop_notes,
        open_loop_tables,
    )

    names = ("unnorm_key", "split", "every", "episodes")
    shared = {name: getattr(options, name) for name in names}
    settings = OpenLoopSettings(cameras=options.camera, rows=options.batch_size, **shared)
    model, processor = load_any(options.model)
    results, found, episodes = evaluate_open_loop(model, processor, options.model, options.data, settings)
    console = Console()
    for table in open_loop_tables(results):
        console.print(table)
    for note in open_loop_notes(results):
        console.print(note)
    if options.picture:
        from gen_vla.evaluation.open_loop.pictures import draw_open_loop

        statistics = model.config.norm_stats[results["unnorm_key"]]["action"]
        draw_open_loop(results, found, episodes, statistics, options.picture)
    return write_results(results, options.output, [options.data])


def add_representations(suites: Any) -> None:
    """`gen-vla evaluate representations MODEL`."""
    command = suites.add_parser("representations", help="linear probes, drift and t-SNE of the vision towers")
    add_model(command)
    command.add_argument("--before", help="the model it was trained from")
    command.add_argument("--plain", help="the same, trained without the recipe")
    command.add_argument(
        "--data", default="digits", help="digits, cifar10 (from the Hub), or a folder of labelled pictures"
    )
    command.add_argument("--samples", type=int, default=2000, help="pictures at most (default: 2000)")
    command.add_argument("--picture", type=Path, help="draw the panels there as a PNG")
    add_output(command)
    command.set_defaults(run=run_representations)


def run_representations(options: argparse.Namespace) -> int:
    """Probes the towers of one to three models with the same pictures."""
    from rich.console import Console

    from gen_vla.evaluation.representations.data import CIFAR10, load_pictures
    from gen_vla.evaluation.representations.pictures import draw_panels
    from gen_vla.evaluation.representations.probes import (
        compare_representations,
        representations_table,
        tower_features,
    )
    from gen_vla.training.provenance.origin import describe_machine

    pictures = load_pictures(options.data, options.samples)
    names = {"before": options.before, "plain": options.plain, "after": options.model}
    features, frozen = {}, {}
    for role, name in names.items():
        if name is not None:
            model, processor = load_any(name)
            features[role] = tower_features(model, processor, pictures.images)
            frozen[role] = model.config.frozen
    results = compare_representations(features, pictures, frozen)
    Console().print(representations_table(results, options.model))
    if options.picture:
        draw_panels(features, pictures.labels, pictures.classes, results, options.picture)
    named = {"suite": "representations", "model": options.model, "models": names, "environment": describe_machine()}
    data = CIFAR10 if options.data == "cifar10" else options.data
    return write_results({**named, **results}, options.output, [data])


def add_report(suites: Any) -> None:
    """`gen-vla evaluate report RESULTS...`."""
    command = suites.add_parser("report", help="the paper's tables with the figures of result files in them")
    command.add_argument("results", nargs="+", type=Path, help="JSON files the suites wrote")
    command.add_argument(
        "--row", action="append", default=[], metavar="MODEL=ROW", help="a model's row of the paper, like openvla-sc"
    )
    command.add_argument("--against", metavar="MODEL", help="compare the models without a row with this one")
    command.add_argument(
        "--seeds",
        action="append",
        default=[],
        metavar="NAME=MODEL,MODEL,...",
        help="models that differ by their training seed only; those whose files say so need no naming",
    )
    command.add_argument("--output", type=Path, required=True, help="a folder for Markdown, JSON and PNG files")
    command.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    """Writes a report."""
    from gen_vla.evaluation.report.pictures import draw_tables
    from gen_vla.evaluation.report.tables import make_report, write_report

    rows = dict(entry.rpartition("=")[::2] for entry in options.row)
    if "" in rows:
        raise ValueError(f"got --row {' --row '.join(options.row)}, expected MODEL=ROW")
    seeds = [entry.partition("=")[::2] for entry in options.seeds]
    if any(not name or not models for name, models in seeds) or len(dict(seeds)) < len(seeds):
        raise ValueError(f"got --seeds {' --seeds '.join(options.seeds)}, expected NAME=MODEL,MODEL, each name once")
    groups = {name: [model for model in models.split(",") if model] for name, models in seeds}
    report = make_report(options.results, rows, options.against, groups)
    for path in (*write_report(report, options.output), *draw_tables(report, options.output)):
        print(path)
    return 0


SUITES = (
    add_tabletop,
    add_drawers,
    add_open_loop,
    add_scene_questions,
    add_decoding,
    add_agreement,
    add_training_step,
    add_simpler,
    add_vqa,
    add_representations,
    add_latency,
    add_loader,
    add_report,
)
