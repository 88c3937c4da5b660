"""Texts to token ids: control tokens (BOS, EOS, padding, `<image>`) as text, and texts that continue another."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class ControlTokenError(ValueError):
    """A text that holds a control token where it would be read as one."""


def control_tokens(tokenizer: Any) -> list[str]:
    """The texts of a tokenizer's control tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def encode_as_text(tokenizer: Any, text: str, template: Iterable[str]) -> list[int]:
    """Token ids of a text without BOS, its control tokens encoded as text, except those that occur in `template`."""
    written = [token for token in control_tokens(tokenizer) if token in text]
    marks = [token for token in written if any(token in part for part in template)]
    if len(written) == len(marks):
        return tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]:
        ids += tokenizer.encode(part, add_special_tokens=False, split_special_tokens=part not in marks)
    return ids


def continuation_ids(text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Token ids of a text that continues another, where tokenizers like Llama's put no space: after a digit.

    Raises:
        ValueError: if the tokenizer merges a digit with what follows it.
    """
    digit, whole = encode("0"), encode("0" + text)
    if whole[: len(digit)] != digit:
        raise ValueError(
            f"got a tokenizer that merges a digit with {text[:20]!r}, expected one token for every digit: a text that "
            "continues another needs a tokenizer such as Llama-2's or Gemma's"
        )
    return whole[len(digit) :]


def checked_token_id(tokenizer: Any, token: str) -> int:
    """The id of `token`; raises `ValueError` if the tokenizer lacks it, BOS, EOS or padding."""
    missing = [name for name in ("bos_token", "eos_token", "pad_token") if getattr(tokenizer, name) is None]
    if missing:
        raise ValueError(
            f"got a tokenizer without {', '.join(missing)}, expected all three; "
            f"add them with tokenizer.add_special_tokens({{{missing[0]!r}: ...}})"
        )
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(
            f"got a tokenizer without {token!r}, expected it in the vocabulary; "
            f"add it with tokenizer.add_special_tokens({{'additional_special_tokens': [{token!r}]}})"
        )
    return found


def make_tokenizer_loadable(folder: Path) -> None:
    """Rewrites tokenizer_config.json as transformers 4 and 5 both read it.

    transformers 5 writes a class that 4 does not have, and a list of special tokens where 4 expects a dictionary.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("backend", None)
    special = settings.pop("extra_special_tokens", None)
    if isinstance(special, list) and special:
        settings["additional_special_tokens"] = special
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
