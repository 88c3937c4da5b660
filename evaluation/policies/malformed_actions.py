"""Tells a model's malformed answer from a mistake in the program."""


def wrote_no_action(error: ValueError) -> bool:
    """Whether decoding an action raised it; the class comes with a model's own code: only its name is known here."""
    return type(error).__name__ == "ActionStringError"
