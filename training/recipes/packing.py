"""Packs the vision-language sets that a recipe uses (`vision_language_data/packing.py`)."""

from pathlib import Path
from typing import Any

from gen_vla.training.mixing.skipped_rows import RowProblems
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.storage.hub_data import pinned
from gen_vla.training.vision_language_data.packing import pack_set
from gen_vla.training.vision_language_data.source import find_format, open_vision_language_source


def pack_recipe(
    recipe: Recipe, work_dir: Path, output: Path, side: int | None, shard: tuple[int, int], workers: int
) -> dict[str, dict[str, Any] | None]:
    """Packs one process's part of every set into `output/NAME`; raises `ValueError` without a set, for one that is
    packed already, or as `pack_set` does.

    Returns:
        By name, the manifest of a set; `None` while other parts are missing.
    """
    if not recipe.data.questions:
        raise ValueError(f"got {recipe.name} without vision-language sets, expected some to pack (data.co_training)")
    opened = []
    for source in recipe.data.questions:  # all of them, before the first is packed
        place, revision = pinned(source.path)
        place = place if "://" in place else str(work_dir / place)
        layout = find_format(place, source.format)
        if layout == "packed":
            raise ValueError(f"got {source.name} at {source.path}, which is packed, expected it as it was published")
        problems = RowProblems(recipe.data.max_bad_share, name=source.name)
        reader = open_vision_language_source(
            place, name=source.name, format=layout, configs=source.configs, problems=problems
        )
        described = {"path": source.path, "revision": revision, "format": layout, "configs": source.configs}
        opened.append((reader, {"source": described}))
    return {reader.name: pack_set(reader, output / reader.name, said, side, shard, workers) for reader, said in opened}
