"""What a recipe of the flow-matching π0 may ask for.

Decides: that family and actions are the flow's together, and which settings are for tokens. Refuses to know: how any
setting is carried out.

The flow-matching π0 is a baseline. It learns from robot data alone, since it has no output layer for words, and all of
its weights train: no D, no S, no C.
"""

from typing import Any


FAMILY, REPRESENTATION = "pi0_flow", "flow"


def is_flow(recipe: Any) -> bool:
    """Whether a `Recipe` trains the flow-matching π0."""
    return recipe.model.family == FAMILY


def flow_contradiction(recipe: Any) -> str | None:
    """What is wrong with a `Recipe`, or `None` for one without a flow and for one that is right."""
    family, representation = recipe.model.family, recipe.actions.representation
    if family != FAMILY and representation != REPRESENTATION:
        return None
    if family != FAMILY or representation != REPRESENTATION:
        return (
            f"got model.family={family!r} with actions.representation={representation!r}, expected {FAMILY!r} with "
            f"{REPRESENTATION!r} or neither: the flow-matching π0 writes no tokens, and the others nothing else"
        )
    loss, questions = recipe.loss, [source.name for source in recipe.data.questions]
    for setting, value, expected in (
        ("model.frozen", recipe.model.frozen, None),
        ("data.co_training", questions, []),
        ("training.lora", recipe.training.lora, None),
        ("loss.balance", loss.balance, "token"),
        ("loss.decimal_weights", loss.decimal_weights, []),
        ("loss.constant_dimension_weight", loss.constant_dimension_weight, 1.0),
    ):
        if value != expected:
            return (
                f"got {setting}={value!r} for the flow-matching π0, expected {expected!r}: it learns from robot data "
                "alone, with one loss over all numbers of an action, and all of its weights train"
            )
    return None
