"""When an error says that a model wrote no action, and is not a mistake in the program.

Decides: how the two are told apart. Refuses to know: what becomes of an answer that is no action.
"""


def wrote_no_action(error: ValueError) -> bool:
    """Whether decoding an action raised it; the class comes with a model's own code: only its name is known here."""
    return type(error).__name__ == "ActionStringError"
