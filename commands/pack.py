"""`gen-vla pack RECIPE --output FOLDER`."""

import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option


def pack(
    recipe: Annotated[str, Argument(help="A name from gen-vla train --list, or a YAML file.")],
    output: Annotated[
        str, Option(help="A folder; or hf://datasets/OWNER/NAME, by way of WORK_DIR/packed/OWNER/NAME.")
    ],
    work_dir: Annotated[str, Option(help="Where data sets lie.")] = "outputs",
    shard: Annotated[
        str, Option(metavar="I/N", help="Pack the I-th of N parts alone, counted from 0; others pack the rest.")
    ] = "0/1",
    workers: Annotated[int, Option(help="Processes on this machine.")] = 1,
    picture_size: Annotated[
        int | None,
        Option(help="Pixels that a picture's shorter side needs (default: data.image_size); 0 keeps all as they are."),
    ] = None,
    private: Annotated[bool, Option("--private", help="Make a new repository on the Hub private.")] = False,
    overrides: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="Override a setting of the recipe; may be repeated."),
    ] = None,
) -> None:
    """Pack a recipe's vision-language sets for training: rows checked, pictures small, read in sequence."""
    from gen_vla.commands.train import parse_overrides
    from gen_vla.training.recipes.loading import load_recipe
    from gen_vla.training.recipes.packing import pack_recipe
    from gen_vla.training.storage.hub_data import upload_data, upload_target
    from gen_vla.training.storage.storage_problems import make_work_dir

    part = parse_shard(shard)
    loaded = load_recipe(recipe, parse_overrides(overrides or []))
    target = upload_target(output)
    folder = make_work_dir(Path(work_dir) / "packed" / target[0] if target else output)
    side = loaded.data.image_size if picture_size is None else picture_size or None
    for name, manifest in pack_recipe(loaded, Path(work_dir), folder, side, part, workers).items():
        print(sentence(name, manifest, folder))
    if target:
        upload_data(folder, target, private)
    print(f"To train from them: --set data.packed={output if target else folder.absolute()}", file=sys.stderr)


def parse_shard(text: str) -> tuple[int, int]:
    """`"3/16"` to (3, 16)."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ValueError(f"got --shard {text}, expected I/N with I from 0 to N - 1, such as 3/16")
    return int(number), int(count)


def sentence(name: str, manifest: dict[str, Any] | None, folder: Path) -> str:
    """What was packed of one set."""
    if manifest is None:
        return f"{name}: this part is done, others are not yet"
    problems = manifest["problems"]
    bad = "; ".join(f"{reason} ({count:,})" for reason, count in problems["by_reason"].items())
    return (
        f"{name}: {manifest['rows']:,} rows, {manifest['bytes'] / 1e9:.2f} GB in {folder / name}; "
        f"{manifest['re_encoded']:,} of {manifest['pictures']:,} pictures made smaller; "
        f"{problems['skipped']:,} bad rows{f': {bad}' if bad else ''}"
    )
