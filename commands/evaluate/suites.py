"""`gen-vla evaluate SUITE MODEL`: one function per suite; those that measure speed are in `benchmarks.py`."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer import Argument, Option
from typer.core import TyperCommand

from gen_vla.commands.evaluate import benchmarks
from gen_vla.commands.options import Dtype, Model, OptionalModel, Output, UnnormKey, entries, load_any, write_results


def tabletop(
    model: OptionalModel = None,
    policy: Annotated[
        str,
        Option(
            help="Controls: of expert, random, zero, blind, deaf; of the model hindered: blank, swapped, nonsense; "
            "helped: expert_xy, expert_z, expert_gripper."
        ),
    ] = "expert,random,zero",
    modes: Annotated[
        str, Option(help="Of these, or new_objects and familiar_objects (need --trained-on).")
    ] = "matching,variants,seen_variants,masked,paraphrase",
    tasks: Annotated[str, Option(help="Of these four.")] = "pick_object,move_near,open_drawer,close_drawer",
    episodes: Annotated[int, Option(help="Per task and variant.")] = 50,
    workers: Annotated[int, Option(help="Simulator processes.")] = 2,
    batch_size: Annotated[int, Option(help="Episodes per call of the policy.")] = 16,
    image_size: Annotated[int | None, Option(help="Pixels a side (default: the model's, else 96).")] = None,
    unnorm_key: UnnormKey = None,
    dtype: Dtype = "auto",
    trained_on: Annotated[Path | None, Option(help="A recorded data set whose layouts must not be judged.")] = None,
    videos: Annotated[int, Option(help="Per task, with --output.")] = 1,
    output: Annotated[Path | None, Option(help="Folder of results; running again continues there.")] = None,
) -> None:
    """Four tasks in one simulated scene, in and out of distribution."""
    from gen_vla.evaluation.tabletop import suite
    from gen_vla.evaluation.tabletop.episodes import CONTROLLED, LOOKS
    from gen_vla.evaluation.tabletop.scores import tabletop_table, variants_table

    shown: Any = tuple(entries(modes))
    size, played = image_size or 96, []
    if model:
        loaded, processor = load_any(model, dtype)
        size = image_size or processor.image_processor.image_size
        played = [suite.model_contestant(loaded, processor, model, shown, unnorm_key)]
    beside: Any = tuple(mode for mode in shown if mode in CONTROLLED) or ("matching",)
    contestants = played + suite.control_contestants(entries(policy), beside if model else shown, *played)
    chosen: Any = tuple(entries(tasks))
    settings = suite.SuiteSettings(shown, chosen, episodes, workers, batch_size, size, videos, trained_on)
    results = suite.run_suite(contestants, settings, output)
    scores = {name: found["scores"] for name, found in results["policies"].items()}
    console = Console()
    for name in scores:
        for mode in (mode for mode in scores[name] if mode in LOOKS):
            console.print(variants_table(scores[name][mode], f"{mode.replace('_', ' ')}: {name}"))
    console.print(tabletop_table(scores, model or "tabletop"))
    if output:
        suite.draw_results(contestants, results, settings, output)
        console.print(f"Results in {output}")


def open_loop(
    model: Model,
    data: Annotated[
        str, Argument(help="A robot data set, not of its training: a folder, or hf://datasets/OWNER/NAME.")
    ],
    unnorm_key: UnnormKey = None,
    dtype: Dtype = "auto",
    split: Annotated[str | None, Option(help="(default: all of a LeRobot set, train of others)")] = None,
    cameras: Annotated[
        list[str] | None, Option("--camera", help="Of the data set, one or several (default: those of the recipe).")
    ] = None,
    every: Annotated[int, Option(help="Ask at every n-th step of an episode.")] = 10,
    episodes: Annotated[int, Option(help="From all over the data set, at most.")] = 50,
    batch_size: Annotated[int, Option(help="Observations per call.")] = 8,
    with_trained: Annotated[
        bool, Option("--with-trained", help="Of the training data, take more than the episodes it held out.")
    ] = False,
    picture: Annotated[Path | None, Option(help="Draw an episode and the errors into this PNG.")] = None,
    output: Output = None,
) -> None:
    """A model's actions beside those of recorded episodes, without a simulator."""
    from gen_vla.evaluation.open_loop import suite

    settings = suite.OpenLoopSettings(unnorm_key, cameras, split, every, episodes, batch_size, with_trained)
    loaded, processor = load_any(model, dtype)
    results, found, recorded = suite.evaluate_open_loop(loaded, processor, model, data, settings)
    console = Console()
    for shown in (*suite.open_loop_tables(results), *suite.open_loop_notes(results)):
        console.print(shown)
    if picture:
        from gen_vla.evaluation.open_loop.pictures import draw_open_loop

        statistics = loaded.config.norm_stats[results["unnorm_key"]]["action"]
        draw_open_loop(results, found, recorded, statistics, picture)
    write_results(results, output, [data])


def scene_questions(
    model: Model,
    questions: Annotated[Path, Option(help="A data set of held-out questions.")],
    dtype: Dtype = "auto",
    output: Output = None,
) -> None:
    """Questions about pictures of tabletop scenes."""
    from gen_vla.evaluation.vqa.scene_questions import evaluate_questions, load_questions, questions_table
    from gen_vla.training.checkpoints import dtype_name

    loaded, processor = load_any(model, dtype)
    report = evaluate_questions(loaded, processor, load_questions(questions))
    Console().print(questions_table(report))
    write_results({"model": model, "dtype": dtype_name(loaded), **asdict(report)}, output, [questions])


def aim(
    model: OptionalModel = None,
    errors: Annotated[str, Option(help="Centimetres that the expert is off, in matching.")] = "0,1,1.5,2,3",
    modes: Annotated[
        str, Option(help="In which the model points: these, and masked.")
    ] = "matching,seen_variants,variants",
    tasks: Annotated[str, Option(help="Of these two.")] = "pick_object,move_near",
    episodes: Annotated[int, Option(help="Per task; per variant a twelfth, at least one.")] = 50,
    image_size: Annotated[int | None, Option(help="Pixels a side (default: the model's, else 96).")] = None,
    dtype: Dtype = "auto",
    output: Output = None,
) -> None:
    """What the scripted expert does with places that are a little off, or where a model points, [(u, v)] in 0..1."""
    from gen_vla.evaluation.simulation.environment import TabletopEnv
    from gen_vla.evaluation.tabletop.aimed_expert import aim_off, evaluate_aim, evaluate_points
    from gen_vla.evaluation.tabletop.episodes import LOOKS, plan_jobs
    from gen_vla.evaluation.tabletop.scores import tabletop_table
    from gen_vla.training.checkpoints import dtype_name

    chosen: Any = list(dict.fromkeys(entries(tasks)))
    if unknown := set(chosen) - {"pick_object", "move_near"}:
        raise ValueError(f"got the tasks {', '.join(sorted(unknown))}, expected some of pick_object, move_near")
    shown: Any = entries(modes)
    if unknown := set(shown) - {"matching", *LOOKS, "masked"}:  # paraphrase: the questions have one wording
        known = f"matching, {', '.join(LOOKS)}, masked"
        raise ValueError(f"got the modes {', '.join(sorted(unknown))}, expected some of {known}")
    centimetres = distances(errors)
    if not centimetres and not model:
        raise ValueError("got no errors and no model, expected either; name a model or give --errors")
    played = load_any(model, dtype) if model else None
    settings = {"tasks": chosen, "episodes": episodes, "modes": shown if model else []}
    results: dict[str, Any] = {"settings": settings, "experts": {}}
    env, jobs = TabletopEnv(), plan_jobs(("matching",), chosen, episodes)
    for error in centimetres:
        name = f"{error:g} cm off"
        results["experts"][name] = evaluate_aim(jobs, [aim_off(job.seed, error / 100) for job in jobs], env, name)
    if played:
        loaded, processor = played
        size = image_size or getattr(processor.image_processor, "image_size", 96)
        found = evaluate_points(loaded, processor, shown, chosen, episodes, size)
        results["experts"]["model"] = found
        results |= {"model": model, "dtype": dtype_name(loaded)}
        for mode, off in found["off_cm"].items():
            median, p90 = ("no point" if off[key] is None else f"{off[key]} cm off" for key in ("median", "p90"))
            print(f"{mode}: {off['no_point']} no point; median {median}, 90th percentile {p90}")
    Console().print(tabletop_table({name: each["scores"] for name, each in results["experts"].items()}, "experts"))
    write_results(results, output, [])


def distances(text: str) -> list[float]:
    """`"0,1.5"` to `[0.0, 1.5]`; raises `ValueError` for what is no distance."""
    try:
        found = [float(entry) for entry in entries(text)]
    except ValueError:
        found = [-1.0]
    if not all(0 <= distance < math.inf for distance in found):
        raise ValueError(f"got the errors {text}, expected centimetres such as 0,1.5")
    return found


class SpacedValues(TyperCommand):
    """Understands `--modes a b`, too, where an option that may be repeated is written once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self.repeated(args)))

    @staticmethod
    def repeated(arguments: list[str]) -> Iterator[str]:
        """`--modes a b` to `--modes a --modes b`."""
        option = before = None
        for argument in arguments:
            if argument.startswith("--"):
                option = argument
            elif option in ("--modes", "--tasks") and before != option:
                yield option
            yield argument
            before = argument


def simpler(
    robot: Annotated[Literal["widowx", "google_robot"], Option(help="The robot, and with it the tasks.")],
    output: Annotated[Path, Option(help="A folder for settings, trials and results.")],
    model: OptionalModel = None,
    policy: Annotated[str, Option(help="Controls, of expert, random, zero, by commas (default: none).")] = "",
    modes: Annotated[
        list[str] | None, Option(help="Of matching, variants, masked, paraphrase (default: matching).")
    ] = None,
    tasks: Annotated[list[str] | None, Option(help="One or several (default: all of the robot's).")] = None,
    episodes: Annotated[int | None, Option(help="Of every variant at most (default: the whole protocol).")] = None,
    unnorm_key: Annotated[str | None, Option(help="(default: the real robot's data set)")] = None,
    dtype: Dtype = "auto",
    action_ensemble: Annotated[bool, Option("--action-ensemble", help="Average overlapping predictions.")] = False,
    shader: Annotated[Literal["rt", "ibl"] | None, Option(help="ibl: no ray tracing (default: as published).")] = None,
    shard: Annotated[str, Option(help="I/N runs every n-th trial; N processes share a folder.")] = "0/1",
) -> None:
    """SimplerEnv, where it is installed; goes on where it stopped."""
    from gen_vla.evaluation.simpler.environment import find_assets
    from gen_vla.evaluation.simpler.suite import SimplerSettings, evaluate_simpler, simpler_table

    index, _, count = shard.partition("/")
    settings = SimplerSettings(
        robot=robot,
        modes=tuple(modes or ["matching"]),
        tasks=tuple(tasks or []),
        episodes=episodes,
        shader=shader,
        unnorm_key=unnorm_key,
        action_ensemble=action_ensemble,
        shard=(int(index), int(count or 0)),
        controls=tuple(dict.fromkeys(entries(policy))),
    )
    settings.trials()  # mistakes are named before a model is loaded for nothing
    find_assets()
    played = load_any(model, dtype) if model else (None, None)
    results = evaluate_simpler(*played, model, settings, output)
    Console().print(simpler_table(results, f"SimplerEnv, {robot}" + (f": {model}" if model else "")))


def libero(
    output: Annotated[Path, Option(help="A folder for settings, trials, videos and results.")],
    model: OptionalModel = None,
    suite: Annotated[str, Option(help="Of these, and 90.")] = "spatial,object,goal,10",
    perturbation: Annotated[
        str, Option(help="What LIBERO-PRO changes: none, object, position, language, task, environment.")
    ] = "none",
    policy: Annotated[str, Option(help="Controls, of expert, random, zero, by commas (default: none).")] = "",
    trials: Annotated[int, Option(help="Of every task, each from a stored state.")] = 50,
    tasks: Annotated[str, Option(help="Numbers of tasks in their suite (default: all).")] = "",
    unnorm_key: Annotated[str | None, Option(help="(default: that of the suite, or the only one)")] = None,
    dtype: Dtype = "auto",
    steps: Annotated[int | None, Option(help="Of a chunk that are carried out (default: all).")] = None,
    image_size: Annotated[int, Option(help="Pixels a side; published evaluations have 256.")] = 256,
    videos: Annotated[int, Option(help="Trials of each task that are filmed.")] = 0,
    shard: Annotated[str, Option(help="I/N runs every n-th trial; N processes share a folder.")] = "0/1",
    layouts: Annotated[
        Path | None, Option(help="Demonstrations whose layouts are played again, instead of the stored states.")
    ] = None,
) -> None:
    """LIBERO and LIBERO-PRO (extra libero) by the protocol of OpenVLA's evaluation; goes on where it stopped."""
    from gen_vla.evaluation.libero.suite import LiberoSettings, evaluate_libero, libero_table

    index, _, count = shard.partition("/")
    settings = LiberoSettings(
        suites=tuple(entries(suite)),
        perturbations=tuple(entries(perturbation)),
        trials=trials,
        tasks=tuple(map(int, entries(tasks))),
        controls=tuple(dict.fromkeys(entries(policy))),
        unnorm_key=unnorm_key,
        steps=steps,
        image_size=image_size,
        videos=videos,
        shard=(int(index), int(count or 0)),
        layouts=layouts,
    )
    settings.all_trials()  # mistakes are named before a model is loaded for nothing
    played = load_any(model, dtype) if model else (None, None)
    results = evaluate_libero(*played, model, settings, output)
    Console().print(libero_table(results, "LIBERO" + (f": {model}" if model else "")))


def vqa(
    model: Model,
    tasks: Annotated[str, Option(help="Of these, and scenes.")] = "textvqa,pope,gqa,vizwiz,vsr",
    local: Annotated[Path | None, Option(help="A folder of tasks, see evaluation/vqa/lm_eval_tasks.")] = None,
    limit: Annotated[int | None, Option(help="Ask only the first questions of each task.")] = None,
    dtype: Dtype = "auto",
    batch_size: Annotated[int, Option(help="Questions per call.")] = 4,
    output: Output = None,
) -> None:
    """TextVQA, POPE, GQA, VizWiz, VSR and the recorded scenes, by lm-eval.

    Beside the results go every answer and a picture.
    """
    from gen_vla.evaluation.vqa.results import plot_results, question_scores_table, yes_no_table
    from gen_vla.evaluation.vqa.suite import run_vqa

    results, answers = run_vqa(model, entries(tasks), local=local, limit=limit, batch_size=batch_size, dtype=dtype)
    for table in (question_scores_table(results["tasks"], model), yes_no_table(results["tasks"])):
        if table is not None:
            Console().print(table)
    write_results(results, output, dict.fromkeys(results["data"].values()))
    if output:
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        output.with_name(f"{output.stem}_answers.jsonl").write_text(lines, encoding="utf-8")
        plot_results(results["tasks"], output.with_suffix(".png"), Path(model).name)


def representations(
    model: Model,
    before: Annotated[str | None, Option(help="The model it was trained from.")] = None,
    plain: Annotated[str | None, Option(help="The same, trained without the recipe.")] = None,
    data: Annotated[
        str, Option(help="digits, cifar10 (from the Hub), or a folder of labelled pictures or recorded questions.")
    ] = "digits",
    samples: Annotated[int, Option(help="Pictures, or objects in them, at most.")] = 2000,
    dtype: Dtype = "auto",
    picture: Annotated[Path | None, Option(help="Draw the panels there as a PNG.")] = None,
    output: Output = None,
) -> None:
    """Linear probes, drift and t-SNE of the vision towers."""
    from gen_vla.evaluation.representations import probes
    from gen_vla.evaluation.representations.data import CIFAR10, load_pictures
    from gen_vla.evaluation.representations.pictures import draw_panels
    from gen_vla.training.checkpoints import dtype_name
    from gen_vla.training.provenance.origin import describe_machine

    pictures = load_pictures(data, samples)
    names = {"before": before, "plain": plain, "after": model}
    features, frozen, dtype_of = {}, {}, {}
    for role, name in names.items():
        if name is not None:
            loaded, processor = load_any(name, dtype)
            features[role] = probes.tower_features(loaded, processor, pictures.images, pictures.places)
            frozen[role], dtype_of[role] = loaded.config.frozen, dtype_name(loaded)
    results = probes.compare_representations(features, pictures, frozen)
    Console().print(probes.representations_table(results, model))
    if picture:
        draw_panels(features, pictures.labels, pictures.classes, results, picture)
    named = {"suite": "representations", "model": model, "models": names, "environment": describe_machine()}
    named |= {"dtype": dtype_of["after"], "dtypes": dtype_of}
    write_results({**named, **results}, output, [CIFAR10 if data == "cifar10" else data])


def report(
    results: Annotated[list[Path], Argument(help="JSON files the suites wrote.")],
    output: Annotated[Path, Option(help="A folder for Markdown, JSON and PNG files.")],
    row: Annotated[list[str] | None, Option(metavar="MODEL=ROW", help="A row of the paper, like openvla-sc.")] = None,
    against: Annotated[str | None, Option(metavar="MODEL", help="Compare models without a row with this one.")] = None,
) -> None:
    """The paper's tables with the figures of result files in them."""
    from gen_vla.evaluation.report.pictures import draw_tables
    from gen_vla.evaluation.report.tables import make_report, write_report

    rows = {named: line for named, _, line in (entry.rpartition("=") for entry in row or ())}
    if "" in rows:
        raise ValueError(f"got --row {' --row '.join(row or ())}, expected MODEL=ROW")
    made = make_report(results, rows, against)
    for path in (*write_report(made, output), *draw_tables(made, output)):
        print(path)


app = typer.Typer(help="Measure a model.", no_args_is_help=True)
for suite in (tabletop, open_loop, scene_questions, aim, benchmarks.decoding, benchmarks.agreement):
    app.command(suite.__name__)(suite)
app.command("training_step")(benchmarks.training_step)
app.command("training_throughput")(benchmarks.training_throughput)
app.command("simpler", cls=SpacedValues)(simpler)
for suite in (libero, vqa, representations, benchmarks.latency, benchmarks.loader, benchmarks.serving, report):
    app.command(suite.__name__)(suite)
