"""The whole path of `gen-vla demo`: record, train, publish, load by name, roll out, draw.

Everything is written under the output folder, a Hugging Face cache of its own included, so that nothing of the user's
is touched. A second call continues where the first was stopped: data sets that are there are kept, training resumes
from its last checkpoint.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from gen_vla.training.recipes.loading import Recipe, load_recipe


REPO_ID = "gen-vla/mini-openvla-plus"
HELD_OUT_SEED = 1_000_000  # the first evaluation seed of the simulator
EXPECTED_SAMPLES_PER_SECOND = 75  # below this, the demo takes longer than its half an hour

# What `--quick` changes: a few steps on a little data, to see every part run. Nothing is learnt in that time.
QUICK: dict[str, dict[str, Any]] = {
    "mini_openvla_plus": {
        "data.robot.0.record.episodes_per_task": 2,
        "data.vision_language.0.record.count": 200,
        "training.steps": 20,
    },
}
QUICK_EPISODES = 1
CONTROLS = ("blank", "swapped", "expert", "blind", "random", "zero")


def run_demo(output: str | Path = "demo_output", *, episodes: int = 12, quick: bool = False) -> dict[str, Any]:
    """Runs all steps with so many rollouts per task and policy; returns the tabletop's results."""
    console, began = Console(), time.perf_counter()
    output = Path(output).resolve()
    use_own_cache(output / "huggingface")
    episodes = QUICK_EPISODES if quick else episodes
    overrides: dict[str, dict[str, Any]] = QUICK if quick else {name: {} for name in QUICK}
    policy = load_recipe("mini_openvla_plus", overrides["mini_openvla_plus"])
    heading(console, 1, "Recording demonstrations and questions in the simulator")
    record([policy], output, 90 if quick else 450)
    words = "the policy: robot data and questions, half each"
    heading(console, 2, f"Training {words} ({policy.name}, {policy.training.steps} steps)")
    train(policy, output, overrides["mini_openvla_plus"])
    heading(console, 3, f"Publishing to a folder, verifying in a fresh interpreter, loading {REPO_ID} by name")
    publish(output, results=None)
    model, processor = load_by_name()
    heading(console, 4, "Rolling out on layouts never seen in training, with controls")
    results, tables = evaluate(model, processor, output, episodes)
    heading(console, 5, "Drawing, and a card with the figures")
    files = draw(policy, output)
    publish(output, card_of(output))
    seconds = time.perf_counter() - began
    console.rule("[bold]Done", align="left")
    show(console, tables, files, output)
    console.print(f"  {seconds / 60:.1f} minutes in all")
    return results


def heading(console: Console, number: int, words: str) -> None:
    """Begins one of the five steps on the screen."""
    console.rule(f"[bold]{number}/5  {words}", align="left")


def use_own_cache(folder: Path) -> None:
    """A Hugging Face cache of the demo's own, offline. Must come before anything imports huggingface_hub."""
    if "huggingface_hub" in sys.modules and os.environ.get("HF_HOME") != str(folder):
        raise RuntimeError("got huggingface_hub imported already, expected the demo to set HF_HOME before that")
    os.environ.update(HF_HOME=str(folder), HF_HUB_CACHE=str(folder / "hub"), HF_HUB_OFFLINE="1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def record(recipes: list[Recipe], output: Path, questions: int) -> None:
    """Every data set the recipes name, and held-out questions, where they are missing."""
    from gen_vla.commands.record import record_missing_data
    from gen_vla.evaluation.recording.questions import record_questions

    for recipe in recipes:
        record_missing_data(recipe, output)
    held_out = output / "held_out_questions"
    if not held_out.exists():
        size = recipes[0].data.image_size
        record_questions(held_out, questions, seed=HELD_OUT_SEED, image_size=size)


def train(recipe: Recipe, output: Path, overrides: dict[str, Any]) -> None:
    """One recipe in as many processes as there are cores, two at most: at this size more only wait for each other."""
    folder = output / recipe.name
    if (folder / "training_log.json").is_file():
        check_same_recipe(recipe, folder)
        print(f"  {recipe.name} is trained already; delete {folder} to train it again")
        return
    settings = [f"--set={key}={json.dumps(value)}" for key, value in overrides.items()]
    name = recipe.name.replace("-", "_")
    command = [sys.executable, "-m", "gen_vla.commands.main", "train", name, "--work-dir", str(output), "--resume"]
    if subprocess.call([*command, f"--processes={min(os.cpu_count() or 1, 2)}", *settings]):
        raise ValueError(f"got a failure from training {recipe.name}, expected a model; its messages are above")
    log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    rate = log["history"][-1]["train_samples_per_second"]
    slow = rate < EXPECTED_SAMPLES_PER_SECOND
    remark = f", below the {EXPECTED_SAMPLES_PER_SECOND} this demo is sized for: it takes longer here" if slow else ""
    print(f"  {rate:.0f} samples per second{remark}")


def check_same_recipe(recipe: Recipe, folder: Path) -> None:
    """Raises `ValueError` if the model in the folder was trained with other settings than those asked for."""
    import yaml

    from gen_vla.training.recipes.loading import as_settings

    if yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) != as_settings(recipe):
        raise ValueError(
            f"got {folder} trained with other settings, expected those of {recipe.name}; delete it, or choose another "
            "output"
        )


def publish(output: Path, results: dict[str, Any] | None) -> None:
    """The repository folder, verified, and its copy in the cache."""
    from gen_vla.training.publishing.assembling import install_in_cache, publish_to_folder

    folder = publish_to_folder(output / "mini-openvla-plus", REPO_ID, output / "repository", results)
    print(f"  verified {folder}")
    print(f"  in the cache as {install_in_cache(folder, REPO_ID)}")


def load_by_name() -> tuple[Any, Any]:
    """What any user writes; the code that runs is the repository's."""
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(REPO_ID, trust_remote_code=True)
    model = AutoModel.from_pretrained(REPO_ID, trust_remote_code=True).eval()
    print(f"  {type(model).__module__}.{type(model).__name__}")
    return model, processor


def evaluate(model: Any, processor: Any, output: Path, episodes: int) -> tuple[dict[str, Any], list[Any]]:
    """Success with controls, questions and speed, as their suites write them -> the tabletop's results, all tables."""
    from gen_vla.commands.options import write_results
    from gen_vla.evaluation.benchmarks.latency import latency_table, measure_latency, measure_parts
    from gen_vla.evaluation.tabletop import suite
    from gen_vla.evaluation.tabletop.scores import tabletop_table
    from gen_vla.evaluation.vqa.scene_questions import evaluate_questions, load_questions, questions_table

    folder, asked = output / "results", output / "held_out_questions"
    size = processor.image_processor.image_size
    played = suite.model_contestant(model, processor, REPO_ID, ("matching", "paraphrase"))
    contestants = [played, *suite.control_contestants(CONTROLS, ("matching",), played)]
    settings = suite.SuiteSettings(
        ("matching", "paraphrase"), episodes=episodes, image_size=size, trained_on=output / "demonstrations"
    )
    results = suite.run_suite(contestants, settings, folder)
    suite.draw_results(contestants, results, settings, folder)
    answers = evaluate_questions(model, processor, load_questions(asked))
    write_results({"model": REPO_ID, **asdict(answers)}, folder / "questions.json", [asked])
    latency = {"suite": "latency", "model": REPO_ID, **measure_latency(model, processor)}
    latency["parts"] = measure_parts(model, processor)
    write_results(latency, folder / "latency.json")
    scores = {name: found["scores"] for name, found in results["policies"].items()}
    return results, [tabletop_table(scores, REPO_ID), questions_table(answers), latency_table(latency, "One action")]


def draw(recipe: Recipe, output: Path) -> dict[str, Path]:
    """The videos of the rollouts, and the curves that the training drew unless it was too short for any."""
    curves = output / recipe.name / "training_curves.png"
    files = {"loss per source": curves} if curves.is_file() else {}
    return {**files, "an episode of each task": output / "results" / "videos"}


def card_of(output: Path) -> dict[str, Any]:
    """The figures for the model card."""
    from gen_vla.evaluation.report.tables import card_results, make_report

    names = ("results", "questions", "latency")
    (card,) = card_results(make_report([output / "results" / f"{name}.json" for name in names])).values()
    return card


def show(console: Console, tables: list[Any], files: dict[str, Path], output: Path) -> None:
    """The tables, and where everything is."""
    for table in tables:
        console.print(table)
    for words, path in {"results": output / "results", "repository": output / "repository", **files}.items():
        console.print(f"  {words:38} {shorten(path)}", highlight=False, soft_wrap=True)
    cache = shorten(output / "huggingface")
    console.print(f"  load it by name with HF_HOME={cache} HF_HUB_OFFLINE=1", highlight=False, soft_wrap=True)


def shorten(path: Path) -> str:
    """Relative to where the user is, if it lies below."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
