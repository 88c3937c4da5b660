"""Which cameras' pictures a model is shown for an action; suites of one camera refuse models of several."""

from typing import Any


def camera_names(processor: Any) -> list[str] | None:
    """The cameras of an action's pictures, in order; `None` for one of any name."""
    return getattr(processor, "cameras", None)  # repositories bring their own code, older ones without the attribute


def pictures_per_action(processor: Any) -> int:
    return len(camera_names(processor) or [None])


def check_one_camera(processor: Any, place: str) -> None:
    """Raises `ValueError` for a model of several cameras; `place` is what has one picture, as in "the simulation"."""
    if pictures_per_action(processor) > 1:
        raise ValueError(
            f"got a model of {pictures_per_action(processor)} cameras ({', '.join(camera_names(processor) or [])}), "
            f"expected one of a single camera: {place} shows one picture"
        )
