"""The whole path of `gen-vla demo`: record, train with and without the recipe, publish, load by name, compare.

    OUTPUT/mini-openvla         plain fine-tuning: both encoders train, actions in bins, robot data alone
    OUTPUT/mini-openvla-plus    the recipe: D, S and C, from the same base and the same demonstrations
    OUTPUT/results/NAME         what the suites measured of each, and of mini-vlm, which both start from
    OUTPUT/videos               the same episodes by both, side by side

Everything is written under the output folder, a Hugging Face cache of its own included, so that nothing of the user's
is touched. A second call continues where the first was stopped: data sets that are there are kept, training resumes
from its last checkpoint.
"""

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gen_vla.commands.ablation import HELD_OUT_SEED, RECIPE, Run
from gen_vla.evaluation.simulation.layouts import Task


REPO_ID = "gen-vla/mini-openvla-plus"
BASE, PLAIN, PLUS = "mini-vlm", "mini-openvla", "mini-openvla-plus"
ROWS = {PLAIN: "openvla", PLUS: "openvla-plus"}  # of the ablation
TITLES = {BASE: "before", PLAIN: "plain fine-tuning", PLUS: "OpenVLA+"}
CONTROLS = ("expert", "zero")
VIDEO_LOOK = "everything/seen_0"
POINTED = 24  # episodes of the suite `aim`: two layouts in each of 24 looks of the questions
# Drawers are learnt in the minutes that a demo has; picking and moving take hours.
DRAWERS: tuple[Task, ...] = ("open_drawer", "close_drawer")
CHOSEN = f"data.robot.0.record.tasks=[{', '.join(DRAWERS)}]"
FULL = [CHOSEN, "data.robot.0.record.episodes_per_task=240"]
# What `--quick` changes: a few steps on a little data, to see every part run. Nothing is learnt in that time, and more
# processes would take longer to start than they work.
QUICK = [
    CHOSEN,
    "data.robot.0.record.episodes_per_task=1",
    "data.vision_language.0.record.count=60",
    "training.steps=6",
]
QUICK_SUITE: dict[str, Any] = {"tasks": DRAWERS[:1], "episodes": 1, "variants": 1, "workers": 1}


def run_demo(output: str | Path = "demo_output", *, episodes: int = 12, quick: bool = False) -> dict[str, Any]:
    """Runs all steps with so many rollouts per task and set of words; returns what was measured, by model."""
    console, began = Console(), time.perf_counter()
    output, settings = Path(output).resolve(), QUICK if quick else FULL
    use_own_cache(output / "huggingface")
    heading(console, 1, "Recording demonstrations and questions in the simulator")
    record(output, settings, 90 if quick else 450)
    heading(console, 2, "Training: plain fine-tuning, then the recipe (one encoder frozen, digits, half questions)")
    processes = 1 if quick else min(os.cpu_count() or 1, 2)
    for name, row in ROWS.items():
        Run(row, 0, output, name).train(processes, settings)
    heading(console, 3, f"Publishing to a folder, verifying in a fresh interpreter, loading {REPO_ID} by name")
    publish(output)
    models = load_models(output)
    heading(console, 4, "Rolling out on layouts never seen in training, and asking held-out questions")
    suite = QUICK_SUITE if quick else {"tasks": DRAWERS, "episodes": episodes}
    found = {name: measure(name, *loaded, output, suite) for name, loaded in models.items()}
    heading(console, 5, "Filming, and a card with the figures")
    films = film({name: models[name] for name in ROWS}, suite["tasks"], output)
    write_figures(output, *models[PLUS])
    console.rule("[bold]Done", align="left")
    console.print(comparison(found))
    show_files(console, output, films)
    console.print(f"  {(time.perf_counter() - began) / 60:.1f} minutes in all")
    return found


def heading(console: Console, number: int, words: str) -> None:
    """Begins one of the five steps on the screen."""
    console.rule(f"[bold]{number}/5  {words}", align="left")


def use_own_cache(folder: Path) -> None:
    """A Hugging Face cache of the demo's own, offline. Must come before anything imports huggingface_hub."""
    if "huggingface_hub" in sys.modules and os.environ.get("HF_HOME") != str(folder):
        raise RuntimeError("got huggingface_hub imported already, expected the demo to set HF_HOME before that")
    os.environ.update(HF_HOME=str(folder), HF_HUB_CACHE=str(folder / "hub"), HF_HUB_OFFLINE="1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def record(output: Path, settings: list[str], questions: int) -> None:
    """What both train on, and held-out questions, where they are missing."""
    from gen_vla.commands.record import record_missing_data
    from gen_vla.commands.train import parse_overrides
    from gen_vla.evaluation.recording.questions import record_questions
    from gen_vla.training.recipes.loading import load_recipe

    recipe = load_recipe(RECIPE, parse_overrides(settings))
    record_missing_data(recipe, output)
    if not (held_out := output / "held_out_questions").exists():
        record_questions(held_out, questions, seed=HELD_OUT_SEED, image_size=recipe.data.image_size)


def publish(output: Path) -> None:
    """The repository folder of the recipe's model, verified, and its copy in the cache."""
    from gen_vla.training.publishing.assembling import install_in_cache, publish_to_folder

    folder = publish_to_folder(output / PLUS, REPO_ID, output / "repository")
    print(f"  verified {folder}")
    print(f"  in the cache as {install_in_cache(folder, REPO_ID)}")


def write_figures(output: Path, model: Any, processor: Any) -> None:
    """The card once more, with what was measured, and all else in the repository as it is."""
    from gen_vla.training.publishing.assembling import install_in_cache
    from gen_vla.training.publishing.card import write_card

    write_card(output / "repository", REPO_ID, model, card_of(output), processor.cameras)
    print(f"  in the cache as {install_in_cache(output / 'repository', REPO_ID)}")


def load_models(output: Path) -> dict[str, tuple[Any, Any]]:
    """Each model and its processor; the published one as any user loads it, with the code of its repository."""
    from transformers import AutoModel, AutoProcessor

    from gen_vla.training.checkpoints import load_model, load_processor
    from gen_vla.training.model_building import initial_model_folder

    folders = {BASE: initial_model_folder(f"package://{BASE}", output), PLAIN: output / PLAIN}
    models = {name: (load_model(folder).float().eval(), load_processor(folder)) for name, folder in folders.items()}
    processor = AutoProcessor.from_pretrained(REPO_ID, trust_remote_code=True)
    model = AutoModel.from_pretrained(REPO_ID, trust_remote_code=True).eval()
    print(f"  {type(model).__module__}.{type(model).__name__}")
    return {**models, PLUS: (model, processor)}


def measure(name: str, model: Any, processor: Any, output: Path, suite: dict[str, Any]) -> dict[str, Any]:
    """Answers and points, and of a policy success and speed, as their suites write them to OUTPUT/results/NAME."""
    from gen_vla.commands.options import write_results
    from gen_vla.evaluation.benchmarks.latency import measure_latency, measure_parts
    from gen_vla.evaluation.tabletop.aimed_expert import evaluate_points
    from gen_vla.evaluation.tabletop.episodes import Mode
    from gen_vla.evaluation.tabletop.suite import SuiteSettings, control_contestants, model_contestant, run_suite
    from gen_vla.evaluation.vqa.scene_questions import evaluate_questions, load_questions

    print(f"  {TITLES[name]}", flush=True)
    folder, asked = output / "results" / name, output / "held_out_questions"
    title = REPO_ID if name == PLUS else str(output / name)
    found: dict[str, Any] = {"questions": asdict(evaluate_questions(model, processor, load_questions(asked)))}
    write_results({"model": title, **found["questions"]}, folder / "questions.json", [asked])
    size = processor.image_processor.image_size
    found["points"] = evaluate_points(model, processor, ("seen_variants",), ("pick_object",), POINTED, size)
    write_results({"model": title, "experts": {"model": found["points"]}}, folder / "aim.json")
    if name == BASE:
        return found
    found["latency"] = {"suite": "latency", "model": title, **measure_latency(model, processor)}
    found["latency"]["parts"] = measure_parts(model, processor)
    write_results(found["latency"], folder / "latency.json")
    trained_on = output / "demonstrations"
    plans: list[tuple[tuple[Mode, ...], dict[str, Any]]] = [
        (("matching", "paraphrase"), suite),
        (("seen_variants",), {**suite, "episodes": 1}),
    ]
    for modes, chosen in plans:
        played = model_contestant(model, processor, title, modes)
        controls = control_contestants(
            CONTROLS if name == PLUS and modes[0] == "matching" else (), ("matching",), played
        )
        settings = SuiteSettings(modes, **chosen, image_size=size, trained_on=trained_on)
        results = run_suite([played, *controls], settings, folder / modes[0])
        found |= results["policies"]["policy"]["scores"]
    return found


def film(models: dict[str, tuple[Any, Any]], tasks: tuple[Task, ...], output: Path) -> Path:
    """An episode of each task by both policies, as demonstrated and in another look -> their folder."""
    from gen_vla.evaluation.simulation.environment import TabletopEnv
    from gen_vla.evaluation.simulation.videos import record_video
    from gen_vla.evaluation.tabletop.episodes import plan_jobs
    from gen_vla.evaluation.tabletop.suite import model_contestant

    policies = {TITLES[name]: model_contestant(*loaded, name, ()).policy for name, loaded in models.items()}
    env = TabletopEnv(models[PLUS][1].image_processor.image_size)
    for job in plan_jobs(("matching", "seen_variants"), tasks, episodes=1):
        if job.mode == "matching" or job.variant == VIDEO_LOOK:
            record_video(env, policies, job, output / "videos" / f"{job.task}-{job.mode}.mp4", size=320)
    return output / "videos"


def card_of(output: Path) -> dict[str, Any]:
    """The figures for the model card."""
    from gen_vla.evaluation.report.tables import card_results, make_report

    names = ("matching/results", "seen_variants/results", "questions", "latency")
    (card,) = card_results(make_report([output / "results" / PLUS / f"{name}.json" for name in names])).values()
    return card


def comparison(found: dict[str, dict[str, Any]]) -> Table:
    """What the visitor came for: both policies, and what they started from."""
    from gen_vla.evaluation.tables import percent, percent_range, results_table

    def rates(mode: str) -> list[str]:
        scores = [found[name].get(mode) for name in TITLES]
        return [f"{percent(s['mean'])} % ({percent_range(s['interval'])})" if s else "" for s in scores]

    def answers(kind: str | None) -> list[str]:
        scores = [f["questions"]["kinds"][kind] if kind else f["questions"]["total"] for f in found.values()]
        return [f"{percent(s['right'] / s['n'])} % ({percent_range(s['interval'])})" for s in scores]

    points = [found[name]["points"]["scores"]["seen_variants"] for name in TITLES]
    kinds = sorted(found[BASE]["questions"]["kinds"])
    speeds = [found[name].get("latency", {}).get("median_ms") for name in TITLES]
    rows = [
        ("tasks done", *rates("matching")),
        ("  in other words", *rates("paraphrase")),
        ("  in looks of the questions", *rates("seen_variants")),
        ("questions answered", *answers(None)),
        *((f"  {kind.replace('_', ' ')}", *answers(kind)) for kind in kinds),
        ("picked up by a script, where it points", *(f"{p['all']['successes']} of {p['all']['n']}" for p in points)),
        ("milliseconds per action", *("" if speed is None else f"{speed:.1f}" for speed in speeds)),
    ]
    return results_table("With and without the recipe (95 % intervals)", ("", *TITLES.values()), rows)


def show_files(console: Console, output: Path, films: Path) -> None:
    """Where everything is."""
    curves = {f"loss per source, {TITLES[name]}": output / name / "training_curves.png" for name in ROWS}
    files = {"results": output / "results", "repository": output / "repository", "videos, side by side": films}
    for words, path in {**files, **curves}.items():
        if path.exists():
            console.print(f"  {words:38} {shorten(path)}", highlight=False, soft_wrap=True)
    cache = shorten(output / "huggingface")
    console.print(f"  load it by name with HF_HOME={cache} HF_HUB_OFFLINE=1", highlight=False, soft_wrap=True)


def shorten(path: Path) -> str:
    """Relative to where the user is, if it lies below."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
