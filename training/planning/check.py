"""`gen-vla train RECIPE --check`: shows a recipe's data as its run would see it (`data_check.py`), without training.

It needs the data, but no GPU and no pretrained weights; where the tokenizer of the model to start from is missing, a
stand-in is made. Data sets are read where they lie: no table is written, even for a recipe that does not stream.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from gen_vla.training.checkpoints import has_processor
from gen_vla.training.mixing.prepared_rows import RowPreparer
from gen_vla.training.model_building import (
    HUB_PREFIX,
    apply_recipe,
    fetch_model,
    local_start,
    new_config,
    new_processor,
    read_start,
    recipe_texts,
)
from gen_vla.training.planning.data_check import check_data, show_data
from gen_vla.training.planning.plan import loading_sentence, planned_config
from gen_vla.training.planning.row_lengths import measure_lengths, write_lengths
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import OpenedData, open_data
from gen_vla.training.run import build_collator, build_preparer, stream_buffers
from gen_vla.training.storage.hub_requests import NO_ANSWER, reason
from gen_vla.training.tokenizer import train_tokenizer


STAND_IN_PIECES, STAND_IN_ROWS = 8192, 50


def run_check(recipe: Recipe, work_dir: str | Path) -> None:
    """Opens a recipe's data and shows it; raises what a run would about data that cannot be used.

    Rows at which a run would stop are an error behind everything that is shown.
    """
    work_dir = Path(work_dir)
    opened, processor, note, collator, prepare = prepared_data(recipe, work_dir)
    checks = check_data(opened, prepare, collator)
    show_data(checks, work_dir / recipe.name, recipe.name)
    if not recipe.is_flow:
        lengths = measure_lengths(opened, prepare, collator)
        write_lengths(work_dir / recipe.name, lengths)
        for name, each in lengths.items():
            longer = f"; {each.over:.1%} are longer than the recipe takes" if each.over else ""
            print(f"{name}: rows of {each} of {each.rows:,}{longer}")
    if opened.streams and recipe.data.streaming:
        for name, size in stream_buffers(recipe, opened, processor).items():
            print(f"{name}: a loader holds {size.rows:,} rows; shards that it reads side by side: {size.lanes}")
    if recipe.data.streaming:
        print(loading_sentence(recipe))
    if note:
        print(note)
    if stops := [f"{check.name}: {check.stops}" for check in checks if check.stops]:
        raise ValueError(f"a run would stop at its rows: {'; '.join(stops)}")


def tokens_over(recipe: Recipe, work_dir: Path) -> int:
    """How many tokens the longest of some robot rows is longer than the model takes; 0 or less where it fits."""
    opened, _, _, collator, prepare = prepared_data(recipe, work_dir)
    lengths = measure_lengths(opened, prepare, collator)
    return max((each.longest for each in lengths.values()), default=0) - collator.max_tokens


def prepared_data(recipe: Recipe, work_dir: Path) -> tuple[OpenedData, Any, str | None, Any, RowPreparer]:
    """A recipe's data, no table written, its processor, a sentence where that is a stand-in, collator and preparer."""
    opened = open_data(recipe, work_dir, write_tables=False)
    config, processor, note = config_and_processor(recipe, work_dir, opened)
    collator = build_collator(recipe, config, processor, opened.names)
    return opened, processor, note, collator, build_preparer(recipe, processor, opened.norm_stats, collator, config)


def config_and_processor(recipe: Recipe, work_dir: Path, opened: OpenedData) -> tuple[Any, Any, str | None]:
    """Configuration and processor of the run, and a sentence where they are stand-ins; raises `ValueError` if the
    model to start from is here, and of another family or with another number of encoders.
    """
    start = recipe.model.initial_model
    if start is None:
        tokenizer = train_tokenizer(recipe_texts(recipe, work_dir, opened), recipe.tokenizer.vocab_size)
        config = new_config(recipe, tokenizer, opened.norm_stats)
        return config, new_processor(recipe, tokenizer, config, opened), None
    try:
        hub = start.startswith(HUB_PREFIX)
        folder = fetch_model(start, ["*.json", "*.jinja"]) if hub else local_start(start, work_dir)
        if has_processor(folder):
            processor, config = read_start(folder, recipe, start)
            apply_recipe(processor, config, recipe, opened)
            return config, processor, None
        missing = f"there is no model at {folder}"
    except NO_ANSWER as error:
        missing = f"{start} could not be fetched ({reason(error)})"
    config, processor = stand_in(recipe, work_dir, opened)
    note = (
        f"Tokens, and how many there are, are those of a small tokenizer made for this look: {missing}. Texts, "
        "pictures and numbers are those of the run."
    )
    return config, processor, note


def stand_in(recipe: Recipe, work_dir: Path, opened: OpenedData) -> tuple[Any, Any]:
    texts = replace(recipe.tokenizer, texts_from=[], texts_from_rows=STAND_IN_ROWS)
    tokenizer = train_tokenizer(recipe_texts(replace(recipe, tokenizer=texts), work_dir, opened), STAND_IN_PIECES)
    actions = replace(recipe.actions, bin_tokens="bytes")  # the last pieces of this vocabulary are words
    config = planned_config(recipe, work_dir)
    processor = new_processor(recipe, tokenizer, config, opened)
    apply_recipe(processor, config, replace(recipe, actions=actions), opened)
    return config, processor
