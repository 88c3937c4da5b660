"""The robot's state for models that take it; suites without one, or with another, refuse them."""

from collections.abc import Sequence
from typing import Any


def takes_state(processor: Any) -> bool:
    """Whether an action is asked for with the robot's state, also of a repository with older code."""
    return bool((processor.action_config or {}).get("state"))


def state_arguments(processor: Any, states: Any, unnorm_key: str | Sequence[str | None] | None) -> dict[str, Any]:
    """Arguments of `action_inputs`; empty for a model that takes no state, whatever there is."""
    return {"state": states, "unnorm_key": unnorm_key} if takes_state(processor) else {}


def neutral_state(processor: Any, unnorm_key: str | None, rows: int | None = None) -> dict[str, Any]:
    """The same for trials without a robot: a state in the middle of the data set's, for one observation or `rows`."""
    if not takes_state(processor):
        return {}
    state = processor.neutral_state(unnorm_key)
    return state_arguments(processor, state if rows is None else [state] * rows, unnorm_key)


def check_state(processor: Any, unnorm_key: str | None, width: int, place: str) -> None:
    """Raises `ValueError` for a model that takes a state of other than `width` numbers, which `place` has."""
    state = processor.neutral_state(unnorm_key) if takes_state(processor) else None
    if state is not None and len(state) != width:
        raise ValueError(
            f"got a model that takes a robot's state of {len(state)} numbers, expected the {width} that {place} has; "
            "use one trained on its demonstrations, or without the state"
        )


def check_no_state(processor: Any, place: str) -> None:
    """Raises `ValueError` for a model that takes the state; `place` is what has none, as in "SimplerEnv"."""
    if takes_state(processor):
        raise ValueError(
            f"got a model that takes the robot's state, expected one without: {place} does not have the state of the "
            "robot that it was trained on; use one trained with data.state: false and without relative actions"
        )
