"""Which of `generate`'s options `predict_actions` takes."""

from difflib import get_close_matches
from typing import Any

from transformers import GenerationConfig


SAMPLING_OPTIONS = {"temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
OUTPUT_OPTIONS = {f"output_{name}" for name in ("scores", "logits", "attentions", "hidden_states")}
# Options of `generate` with the values that change nothing.
NEUTRAL = {
    "use_cache": True,
    "num_beams": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    **dict.fromkeys(("top_k", "min_p", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "min_length"), 0),
}


def checked_options(options: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """Those of `generate`'s options that have an effect; an action takes up to `max_tokens`.

    Raises:
        ValueError: for options that `generate` does not have or that do not give one legal action a row.
    """
    sampling, beams = bool(options.get("do_sample")), options.get("num_beams")
    if sampling and (beams or 1) > 1:
        raise ValueError(
            f"got do_sample=True with num_beams={beams}, expected one or the other: sampling beams draws more "
            "continuations than the grammar allows"
        )
    temperature = options.get("temperature")
    if sampling and temperature is not None and not temperature > 0:
        raise ValueError(
            f"got temperature={temperature} with do_sample=True, expected a number above 0; leave both out for the "
            "most probable action"
        )
    if (limit := options.get("max_new_tokens")) is not None and limit < max_tokens:
        raise ValueError(
            f"got max_new_tokens={limit}, expected none: an action of this model takes up to {max_tokens} tokens, "
            "and the grammar ends it"
        )
    if beams == 0 or any(options.get(f"forced_{end}_token_id") for end in ("bos", "eos")):
        raise ValueError(
            f"got num_beams={beams} or a forced token, expected at least one beam, and only tokens of the action's "
            "grammar"
        )
    known = vars(GenerationConfig())
    for name in options:
        if name not in known or name == "num_return_sequences":
            near = get_close_matches(name, known, n=1) if name not in known else []
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"got the option {name!r}, expected options of generate that leave one action per observation; {hint}"
                "call generate with ActionLogitsProcessor for anything else"
            )
    # An action ends before the limits of length, and a prediction has fields of its own.
    unused = {"max_new_tokens", "max_length", "return_dict_in_generate", *OUTPUT_OPTIONS}
    unused |= set() if sampling or options.get("penalty_alpha") else SAMPLING_OPTIONS
    unused |= set() if (beams or 1) > 1 else {"length_penalty", "early_stopping"}
    return {
        name: value
        for name, value in options.items()
        if name not in unused and value is not None and value != NEUTRAL.get(name)
    }
