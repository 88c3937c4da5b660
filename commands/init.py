"""`gen-vla init NAME --data DATA`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def init(
    name: Annotated[str, Argument(help="Of the recipe: NAME.yaml is written here, never over another.")],
    data: Annotated[str, Option(help="A LeRobot or RLDS data set: a folder, or OWNER/NAME on the Hub.")],
    base: Annotated[
        str,
        Option(help="openvla_plus, pi0_plus, pi0_flow, package://mini-vlm, or a model that gen-vla convert wrote."),
    ] = "openvla_plus",
    work_dir: Annotated[str, Option(help="Where data sets and models lie, as for gen-vla train.")] = "outputs",
    cameras: Annotated[list[str] | None, Option("--camera", help="One or several (default: all, at most 3).")] = None,
    action: Annotated[list[str] | None, Option(help="The stored features of an action, if not `action`.")] = None,
    state: Annotated[list[str] | None, Option(help="The stored features of the robot's state.")] = None,
    show_state: Annotated[bool, Option("--show-state", help="Show the model the robot's state.")] = False,
    relative: Annotated[bool, Option("--relative", help="Learn positions relative to the robot's state.")] = False,
    co_training: Annotated[
        bool, Option("--co-training/--no-co-training", help="Half of every batch vision-language data (C).")
    ] = True,
) -> None:
    """Look at a robot data set and write a recipe that fits it."""
    file = Path(f"{name.removesuffix('.yaml')}.yaml")
    if file.exists():
        raise FileExistsError(f"got the name of {file}, which exists, expected a new one: init never overwrites")
    path, place = data_place(data, Path(work_dir))
    from gen_vla.training.planning.data_look import look_at
    from gen_vla.training.planning.first_recipe import (
        describe,
        find_base,
        fitting_recipe,
        recipe_text,
        remarks,
        state_settings,
    )
    from gen_vla.training.storage.storage_problems import make_work_dir

    start = find_base(base, Path(work_dir))
    features = {name: named for name, named in (("action", action), ("state", state)) if named}
    key = file.stem.replace("-", "_")
    look = look_at(place, key, cameras, **features)
    make_work_dir(work_dir)
    name, source = key.replace("_", "-"), {"path": path, "key": key, **features}
    seen = state_settings(look, show_state, relative)
    settings = fitting_recipe(look, start, name, source, Path(work_dir), co_training, seen)
    text = recipe_text(name, start, settings, f"{look.dataset.reader.dataset}: {describe(look)}")
    file.write_text(text, encoding="utf-8")
    print(text)
    for remark in remarks(look):
        print(f"look at: {remark}")
    command = f"gen-vla train {file} --work-dir {work_dir}"
    print(f"Wrote {file}. Next: {command} --check; then --plan in place of --check; then neither")


def data_place(data: str, work_dir: Path) -> tuple[str, str]:
    """A data set as a recipe names it, and where it lies: in the work folder, seen from here, or on the Hub."""
    if "://" in data:
        return data, data
    if (work_dir / data).is_dir():
        return data, str(work_dir / data)
    if Path(data).is_dir():
        return str(Path(data).resolve()), data
    if data.count("/") == 1 and not data.startswith((".", "/", "~")):
        return (place := f"hf://datasets/{data}"), place
    raise FileNotFoundError(
        f"got --data {data!r}, which is no folder here or in {work_dir} and no OWNER/NAME of the Hub; correct the path"
    )
