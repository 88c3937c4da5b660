"""The folder of a run: what is written there, what is continued, and what is in the way.

WORK_DIR/<data sets>            as the recipe names them; recorded from the simulator where it says so
WORK_DIR/<recipe name>/         model, processor, recipe.yaml, dataset_statistics.json, training_log.json,
                                training_curves.png
WORK_DIR/<recipe name>/adapter/ with LoRA, the adapter; the model beside it has it merged in
WORK_DIR/<recipe name>/first_rows.png      some rows as the model sees them
WORK_DIR/<recipe name>/checkpoints/checkpoint-<step>/, and recipe.yaml and resume.json (`resume_record.py`), what a
                                resumed run must agree with
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from gen_vla.training.checkpoints import cast_weights, used_dtype
from gen_vla.training.lora import ADAPTER_FOLDER, save_adapter
from gen_vla.training.mixing.prepared_rows import ROBOT
from gen_vla.training.model_building import HUB_PREFIX, local_start
from gen_vla.training.provenance.origin import RUNS, note_run, provenance
from gen_vla.training.provenance.private_paths import publishable
from gen_vla.training.recipes.loading import as_settings, load_recipe
from gen_vla.training.recipes.schema import PACKAGE_PREFIX, Recipe
from gen_vla.training.resume_record import check_shape
from gen_vla.training.storage.json_files import read_json, write_json
from gen_vla.training.trainer import HELD_OUT_PREFIX, CoTrainer


# in a resumed run
FREE_TO_CHANGE = (
    "description",
    *(f"training.{name}" for name in ("save_steps", "save_total_limit", "eval_steps", "logging_steps", "report_to")),
    *(f"training.rollouts{name}" for name in ("", ".steps", ".trials", ".tasks", ".key")),
    "data.validation.rows",
)
SHAPE = ("training.batch_size", "training.gradient_accumulation_steps", "data.num_workers")  # see resume_record.py
ROBOT_COLOURS = ("#d1495b", "#edae49", "#8d5a97", "#a3333d")
QUESTION_COLOURS = ("#2e6f95", "#5fa8d3", "#1b9e77", "#8c6bb1", "#a3b18a")
TABLETOP_COLOUR = "#444444"  # of trials in the simulator
FEWEST_POINTS = 5  # of the longest curve of a picture
PANELS = (  # figure, title, label of the axis, whether it is a share
    ("loss", "Loss, unweighted", "nats per token", False),
    ("token_accuracy", "Tokens right", "", True),
    ("exact", "Answers right to the last token", "", True),
    ("sign_accuracy", "Signs of actions right", "", True),
    ("malformed", "Malformed actions", "", True),
    ("success", "Trials on the tabletop that succeed", "", True),
    ("action_error", "Error of the action", "mean absolute, data set's units", False),
)


def claim_checkpoints(recipe: Recipe, checkpoints: Path, resume: bool) -> Path | None:
    """The checkpoint to continue from, or `None`; raises where another run's checkpoints are in the way.

    A run from the first step must not find any: its own, of fewer steps, would be overlooked when it is resumed.
    """
    last, record = last_checkpoint(checkpoints), checkpoints / "recipe.yaml"
    if last and not resume:
        raise FileExistsError(
            f"got {last} of an earlier run, expected none; resume it (--resume) or delete {checkpoints}"
        )
    if last and record.is_file():
        earlier, now = flat(as_settings(load_recipe(record))), flat(as_settings(recipe))
        changed = sorted(name for name in earlier.keys() | now.keys() if earlier.get(name) != now.get(name))
        changed = [name for name in changed if name not in FREE_TO_CHANGE + SHAPE]
        if changed:
            settings = "; ".join(f"{name} was {earlier.get(name)!r} and is {now.get(name)!r}" for name in changed)
            raise ValueError(
                f"got another recipe than that of {last}: {settings}; a resumed run keeps its recipe: restore these "
                f"settings, or start over without {checkpoints}"
            )
    elif is_first_process():
        checkpoints.mkdir(parents=True, exist_ok=True)
        if last is None:
            (checkpoints / RUNS).unlink(missing_ok=True)
        write_recipe(record, recipe)
    if last:
        check_shape(recipe, checkpoints)
    return last


def discard_checkpoints(recipe: Recipe, work_dir: Path) -> None:
    """Removes what an earlier mini run left to resume, so that a look at the data can be repeated."""
    if "RANK" not in os.environ:  # the processes of a launcher would remove each other's
        shutil.rmtree(work_dir / recipe.name / "checkpoints", ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: the trainer's state is what it writes last."""
    states = {
        path: re.fullmatch(r"checkpoint-(\d+)", path.parent.name) for path in folder.glob("*/trainer_state.json")
    }
    complete = {int(match[1]): path.parent for path, match in states.items() if match and path.stat().st_size}
    return complete[max(complete)] if complete else None


def steps_taken(checkpoint: Path | None) -> int:
    return read_json(checkpoint / "trainer_state.json")["global_step"] if checkpoint else 0


def begin_record(recipe: Recipe, work_dir: Path, checkpoints: Path, data: dict[str, Any]) -> dict[str, Any]:
    """How this run, its start and its data sets (`OpenedData.origins`) came about, noted for who continues it."""
    name = recipe.model.initial_model
    if name:
        name = name.removeprefix(HUB_PREFIX) if name.startswith(HUB_PREFIX) else local_start(name, work_dir)
    record = provenance(name)
    if str(recipe.model.initial_model).startswith(PACKAGE_PREFIX):  # where it lies says nothing
        record["model"]["name"] = recipe.model.initial_model
    record["data"] = [{"name": name, **publishable(origin)} for name, origin in data.items()]
    note_run(checkpoints, record)
    return record


def save_run(
    recipe: Recipe,
    trainer: CoTrainer,
    state: dict[str, Any] | None,
    processor: Any,
    log: dict[str, Any],
    output_dir: Path,
) -> None:
    """Writes the model, whose weights are `state` where it holds only a part of them, processor and records."""
    output_dir.mkdir(parents=True, exist_ok=True)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    model: Any = save_adapter(trained, output_dir / ADAPTER_FOLDER)
    if model is not trained:  # statistics and action format are this run's, not those of the model it started from
        model.config.save_pretrained(output_dir / ADAPTER_FOLDER)
        processor.save_pretrained(output_dir / ADAPTER_FOLDER)
        write_recipe(output_dir / ADAPTER_FOLDER / "recipe.yaml", recipe)
    settings = recipe.training
    wanted = "float32" if settings.save_dtype == "auto" and not settings.bf16 else settings.save_dtype
    dtype = used_dtype(model, wanted)
    names = dict(model.named_parameters())
    state = state and {name: tensor.to(dtype) if name in names else tensor for name, tensor in state.items()}
    cast_weights(model, dtype)
    model.save_pretrained(output_dir, state_dict=state)
    processor.save_pretrained(output_dir)
    write_json(output_dir / "training_log.json", log)
    write_recipe(output_dir / "recipe.yaml", recipe)
    plot_curves(trainer.state.log_history, output_dir / "training_curves.png", f"{recipe.name}, by source")


def write_recipe(path: Path, recipe: Recipe) -> None:
    path.write_text(yaml.safe_dump(as_settings(recipe), sort_keys=False), encoding="utf-8")


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def is_first_process() -> bool:
    """Whether this is the process that speaks for a run; also before the processes know of each other."""
    return int(os.environ.get("RANK", "0")) == 0


def plot_curves(history: list[dict[str, Any]], path: str | Path, title: str) -> Path | None:
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for entry in history:
        for key, value in entry.items():
            source, _, figure = key.rpartition("/")
            if "/" in source or figure == "success":  # of a source, not of a kind
                curves.setdefault(figure, {}).setdefault(source, []).append((entry["step"], value))
    sources = list(curves.get("loss", {}))
    if max((len(curves["loss"][source]) for source in sources), default=0) < FEWEST_POINTS:
        return None
    # here, since every process of every run imports this file
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    sources = list(dict.fromkeys(source.removeprefix(HELD_OUT_PREFIX) for source in sources))
    robot = [source for source in sources if source.startswith(f"{ROBOT}/")]
    pairs = [(robot, ROBOT_COLOURS), ([source for source in sources if source not in robot], QUESTION_COLOURS)]
    colours = {name: shades[n % len(shades)] for names, shades in pairs for n, name in enumerate(names)}
    colours |= {"tabletop": TABLETOP_COLOUR} if "success" in curves else {}
    shown = [panel for panel in PANELS if panel[0] in curves]
    rows = -(-len(shown) // 3)
    with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold"}):
        picture, grid = plt.subplots(rows, 3, figsize=(12, 3.1 * rows + 0.7), layout="constrained", squeeze=False)
        for axes in list(grid.flat)[len(shown) :]:
            axes.axis("off")
        for axes, panel in zip(grid.flat, shown):
            _draw_panel(axes, panel, curves[panel[0]], colours)
        handles = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in colours.items()]
        if any(source.startswith(HELD_OUT_PREFIX) for source in curves["loss"]):
            handles.append(Line2D([], [], color="black", linewidth=2, linestyle="--", label="held out"))
        picture.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
        picture.suptitle(title, fontsize=12, fontweight="bold")
        picture.savefig(path, dpi=120)
        plt.close(picture)
    return Path(path)


def _draw_panel(
    axes: Any, panel: tuple[str, str, str, bool], curves: dict[str, list[tuple[int, float]]], colours: dict[str, str]
) -> None:
    _, title, label, share = panel
    for source, points in curves.items():
        style = {"linewidth": 1.6, "marker": "o" if len(points) < 12 else "", "ms": 3}
        style |= {"linestyle": "--" if source.startswith(HELD_OUT_PREFIX) else "-"}
        axes.plot(*zip(*points), color=colours[source.removeprefix(HELD_OUT_PREFIX)], **style)
    axes.set_title(title, loc="left")
    axes.set(xlabel="step", ylabel=label)
    axes.set_ylim(*((-0.03, 1.03) if share else (0, None)))
    if share:
        axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
