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

from gen_vla.training.provenance.origin import origin, provenance, with_provenance
from gen_vla.training.recipes.loading import Recipe, load_recipe


REPO_ID = "gen-vla/mini-openvla-plus"
HELD_OUT_SEED = 1_000_000  # the first evaluation seed of the simulator
EXPECTED_SAMPLES_PER_SECOND = 150  # below this, the demo takes longer than its quarter of an hour

# What `--quick` changes: a few steps on a little data, to see every part run. Nothing is learnt in that time.
QUICK: dict[str, dict[str, Any]] = {
    "mini_vlm": {"data.vision_language.0.record.count": 200, "training.steps": 20},
    "mini_openvla_plus": {
        "data.robot.0.record.episodes_per_task": 4,
        "data.vision_language.0.record.count": 200,
        "training.steps": 20,
    },
}
QUICK_EPISODES = 2


def run_demo(output: str | Path = "demo_output", *, episodes: int = 50, quick: bool = False) -> dict[str, Any]:
    """Runs all steps with so many rollouts per task, 40 % of them for controls; returns what `results.json` holds."""
    console, began = Console(), time.perf_counter()
    output = Path(output).resolve()
    use_own_cache(output / "huggingface")
    episodes = QUICK_EPISODES if quick else episodes
    overrides: dict[str, dict[str, Any]] = QUICK if quick else {name: {} for name in QUICK}
    vlm, policy = (load_recipe(name, changes) for name, changes in overrides.items())
    heading(console, 1, "Recording demonstrations and questions in the simulator")
    record([vlm, policy], output, max(episodes, 20))
    heading(console, 2, f"Training the vision-language model ({vlm.name}, {vlm.training.steps} steps)")
    train(vlm, output, overrides["mini_vlm"])
    words = "the policy: robot data and questions, half each"
    heading(console, 3, f"Training {words} ({policy.name}, {policy.training.steps} steps)")
    train(policy, output, overrides["mini_openvla_plus"])
    heading(console, 4, f"Publishing to a folder, verifying in a fresh interpreter, loading {REPO_ID} by name")
    publish(output, results=None)
    model, processor = load_by_name()
    heading(console, 5, "Rolling out on layouts never seen in training, with controls")
    results = evaluate(model, processor, output, episodes)
    made = provenance(output / "repository", [output / "held_out_questions"])
    heading(console, 6, "Drawing")
    files = draw(model, processor, policy, output)
    seconds = time.perf_counter() - began
    written = write_results(results, made, output, seconds)
    console.rule("[bold]Done", align="left")
    show(console, results, files, policy, output)
    console.print(f"  {seconds / 60:.1f} minutes in all")
    return written


def heading(console: Console, number: int, words: str) -> None:
    """Begins one of the six steps on the screen."""
    console.rule(f"[bold]{number}/6  {words}", align="left")


def use_own_cache(folder: Path) -> None:
    """A Hugging Face cache of the demo's own, offline. Must come before anything imports huggingface_hub."""
    if "huggingface_hub" in sys.modules and os.environ.get("HF_HOME") != str(folder):
        raise RuntimeError("got huggingface_hub imported already, expected the demo to set HF_HOME before that")
    os.environ.update(HF_HOME=str(folder), HF_HUB_CACHE=str(folder / "hub"), HF_HUB_OFFLINE="1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def record(recipes: list[Recipe], output: Path, questions: int) -> None:
    """Every data set the recipes name, and held-out questions, where they are missing."""
    from gen_vla.commands.record import record_missing_data
    from gen_vla.evaluation.drawers.recording import record_questions

    for recipe in recipes:
        record_missing_data(recipe, output)
    held_out = output / "held_out_questions"
    if not held_out.exists():
        size = recipes[0].data.image_size
        record_questions(held_out, max(questions * 8, 100), seed=HELD_OUT_SEED, image_size=size)


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


def evaluate(model: Any, processor: Any, output: Path, episodes: int) -> dict[str, Any]:
    """Success, controls, questions and speed."""
    from gen_vla.evaluation.drawers.suite import run_suite
    from gen_vla.evaluation.vqa.scene_questions import load_questions

    questions = load_questions(output / "held_out_questions")
    control_episodes = max(episodes * 2 // 5, 1)
    return run_suite(model, processor, questions, episodes=episodes, control_episodes=control_episodes)


def draw(model: Any, processor: Any, recipe: Recipe, output: Path) -> dict[str, Path]:
    """An episode of each task, beside the curves that the training drew unless it was too short for any."""
    from gen_vla.evaluation.drawers.suite import record_episodes

    pictures, curves = output / "pictures", output / recipe.name / "training_curves.png"
    pictures.mkdir(exist_ok=True)
    files = {"loss per source": curves} if curves.is_file() else {}
    return {**files, **{f"episode, {path.stem}": path for path in record_episodes(model, processor, pictures)}}


def write_results(results: dict[str, Any], made: dict[str, Any], output: Path, seconds: float) -> dict[str, Any]:
    """Results on the model card and, as they are returned, in `results.json`; `made` says how they came about."""
    from gen_vla.evaluation.drawers.suite import as_card_results
    from gen_vla.training.provenance.training_record import with_record
    from gen_vla.training.run_folder import write_json

    publish(output, {**as_card_results(results), "commands": [origin({"provenance": made})]})
    written = {
        "model": REPO_ID,
        "rollouts": [report.to_dict() for report in results["rollouts"]],
        "questions": asdict(results["questions"]) if results["questions"] else None,
        "latency": results["latency"],
        "seconds": round(seconds),
    }
    written = with_provenance(with_record(written, str(output / "repository")), made)
    write_json(output / "results.json", written)
    return written


def show(console: Console, results: dict[str, Any], files: dict[str, Path], recipe: Recipe, output: Path) -> None:
    """The table, and where everything is."""
    from gen_vla.evaluation.drawers.suite import summary_table

    console.print(summary_table(results, f"{REPO_ID}, {recipe.training.steps} steps, seed {recipe.training.seed}"))
    for words, path in {"results": output / "results.json", "repository": output / "repository", **files}.items():
        console.print(f"  {words:38} {shorten(path)}", highlight=False, soft_wrap=True)
    cache = shorten(output / "huggingface")
    console.print(f"  load it by name with HF_HOME={cache} HF_HUB_OFFLINE=1", highlight=False, soft_wrap=True)


def shorten(path: Path) -> str:
    """Relative to where the user is, if it lies below."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
