"""Whole training steps of this package's trainer beside those of TRL's plain SFTTrainer: rows per second and memory.

Both train the same LLaVA of SigLIP and Llama, without a second encoder, from random weights, on the same rows: a PNG
and the string of an action of seven values. A step is all of it, from decoding pictures to AdamW. Each trainer has a
process of its own; a step's time is that from the end of the one before.
"""

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture
from rich.box import SIMPLE_HEAD
from rich.table import Table
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gen_vla.evaluation.benchmarks.random_models import SIZES, VOCABULARY
from gen_vla.evaluation.benchmarks.training_step import memory_bytes, reset_peak
from gen_vla.evaluation.tables import results_table
from gen_vla.training.model_building import build_model
from gen_vla.training.provenance.origin import describe_machine
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import build_collator, build_preparer, run_recipe


ROWS = 64  # of the data set
TRAINERS = ("gen-vla", "TRL")
PARTS = ("batch", "passes", "optimizer")  # passes: forward, backward and the norm of the gradient


class StepClock(TrainerCallback):
    """Notes when the parts of steps end, the most memory behind the first step, and tokens, padding left out."""

    def __init__(self) -> None:
        self.times: list[dict[str, float]] = []
        self.peak = self.tokens = 0
        self.ended = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        def count(module: Any, arguments: Any, named: Any) -> None:
            self.tokens += int(named["attention_mask"].sum())

        model.register_forward_pre_hook(count, with_kwargs=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.computed = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if self.ended:
            parts = (self.begun - self.ended, self.computed - self.begun, now - self.computed, now - self.ended)
            self.times.append(dict(zip((*PARTS, "step"), parts, strict=True)))
            self.peak = memory_bytes("VmHWM")
        else:
            reset_peak()
        self.ended = now

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(found[name] for found in self.times) for name in self.times[0]}


def measure(size: str, batch_size: int, steps: int, trainer: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="gen-vla-throughput-") as temporary:
        work_dir, clock = Path(temporary), StepClock()
        recipe = made_up_recipe(work_dir, size, batch_size, steps + 1)
        if trainer == TRAINERS[1]:
            run_plain(recipe, work_dir, clock)
        else:
            run_recipe(recipe, work_dir, callbacks=[clock], progress=False)
    seconds = clock.medians()
    return {
        "size": size,
        "batch_size": batch_size,
        "trainer": trainer,
        "tokens_per_row": round(clock.tokens / (batch_size * (steps + 1)), 1),
        "rows_per_second": round(batch_size / seconds["step"], 3),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_gb": round(clock.peak / 1e9, 3),
        "n": steps,
    }


def run_plain(recipe: Recipe, work_dir: Path, clock: StepClock) -> None:
    """The stock model inside of ours, on the prompts and completions that ours gets, by TRL's own collator."""
    from transformers import LlavaProcessor

    opened = open_data(recipe, work_dir)
    model, processor = build_model(recipe, work_dir, opened)
    collator = build_collator(recipe, model.config, processor, opened.names)
    prepare, table = build_preparer(recipe, processor, opened.norm_stats, collator, model.config), opened.tables
    prepared = [prepare(table["robot/random"][row], "robot/random", row) for row in range(ROWS)]
    image = processor.image_token
    rows = [{"images": r["images"], "prompt": image + r["prompt"], "completion": r["completion"]} for r in prepared]
    vlm, settings = model.config.vlm_config, recipe.training
    arguments = SFTConfig(
        output_dir=str(work_dir / "plain"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        max_length=None,
        logging_steps=settings.logging_steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    stock = LlavaProcessor(
        processor.image_processor,
        processor.tokenizer,
        patch_size=vlm.vision_config.patch_size,
        vision_feature_select_strategy=vlm.vision_feature_select_strategy,
        image_token=image,
    )
    SFTTrainer(
        model.vlm, arguments, train_dataset=Dataset.from_list(rows), processing_class=stock, callbacks=[clock]
    ).train()


def made_up_recipe(work_dir: Path, size: str, batch_size: int, steps: int) -> Recipe:
    (width, blocks, heads), (side, patch) = SIZES[size]["vision"], SIZES[size]["image"]
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (ROWS, side, side, 3), dtype=np.uint8)
    actions = random.uniform(-0.05, 0.05, (ROWS, 7)).astype(np.float32)
    actions[:, 6] = np.arange(ROWS) % 2
    rows = {
        "image": [Picture.fromarray(picture) for picture in pictures],
        "instruction": ["put the red block on the green plate and come back"] * ROWS,
        "action": actions.tolist(),
        "episode_index": [0] * ROWS,
    }
    kinds = {"image": Image(), "instruction": Value("string"), "action": List(Value("float32"), length=7)}
    Dataset.from_dict(rows, features=Features({**kinds, "episode_index": Value("int64")})).save_to_disk(
        str(work_dir / "random")
    )
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads, "patch_size": patch}
    text = {**dict(zip(names, SIZES[size]["text"], strict=True)), "vocab_size": VOCABULARY["openvla_plus"]}
    settings = {
        "name": "throughput",
        "description": "A step's work.",
        "model": {
            "family": "vla_plus",
            "frozen": None,
            "siglip": {**vision, "intermediate_size": 4 * width},
            "text": {**text, "num_key_value_heads": text["num_attention_heads"], "max_position_embeddings": 2048},
        },
        "tokenizer": {"vocab_size": 400, "texts_from": ["random"]},
        "data": {"image_size": side, "robot": [{"path": "random", "key": "random"}]},
        "training": {"steps": steps, "batch_size": batch_size, "bf16": False, "gradient_checkpointing": False}
        | {"save_steps": 10**6, "logging_steps": steps},
    }
    file = work_dir / "throughput.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return load_recipe(file)


def run_benchmark(sizes: list[str], batch_size: int, steps: int) -> dict[str, Any]:
    results: dict[str, Any] = {"suite": "training_throughput", "machine": describe_machine(), "dtype": "float32"}
    results["runs"] = []
    for size in sizes:
        for trainer in TRAINERS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results["runs"].append(pool.apply(measure, (size, batch_size, steps, trainer)))
    return results


def throughput_table(results: dict[str, Any]) -> Table:
    plain = {run["size"]: run for run in results["runs"] if run["trainer"] == TRAINERS[1]}
    rows = []
    for run in results["runs"]:
        beside = plain[run["size"]]
        shown = [f"{run['rows_per_second']:.2f}", f"{run['peak_gb']:.2f}"]
        ratios = [f"{run[name] / beside[name]:.2f}" for name in ("rows_per_second", "peak_gb")]
        parts = [f"{run['seconds'][part] / run['seconds']['step']:.0%}" for part in PARTS]
        tokens = f"{run['tokens_per_row']:.0f}"
        rows.append((run["size"], run["trainer"], tokens, shown[0], ratios[0], shown[1], ratios[1], *parts))
    columns = ("model", "trainer", "tokens", "rows/s", "x TRL", "GB", "x TRL", *PARTS[:2], "update")
    title = f"Training steps of {results['runs'][0]['batch_size']} rows, {results['machine']['device']}, float32"
    return results_table(title, columns, rows, left=2, box=SIMPLE_HEAD, pad_edge=False)
