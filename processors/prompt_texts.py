"""Prompts: templates, checks of instructions and messages, the chat template; and texts as token ids.

Control tokens (BOS, EOS, padding, `<image>`) in words are encoded as text, and a text can continue another.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


# OpenVLA's prompts; `answer` is what follows a question's prompt.
PROMPT_TEMPLATE = {
    "action": "In: What action should the robot take to {instruction}?\nOut:",
    "question": "In: {question}\nOut:",
    "answer": " {answer}",
}


def check_prompt_template(prompt_template: dict[str, str]) -> None:
    """Raises `ValueError` unless each prompt has its placeholder exactly once."""
    for name, placeholder in (("action", "{instruction}"), ("question", "{question}"), ("answer", "{answer}")):
        prompt = prompt_template.get(name)
        if prompt is None or prompt.count(placeholder) != 1:
            raise ValueError(f"got prompt_template[{name!r}]={prompt!r}, expected a text with {placeholder} once")
    if "{state}" in prompt_template["action"].partition("{instruction}")[0]:
        raise ValueError(f"got {{state}} before {{instruction}} in {prompt_template['action']!r}, expected it behind")


def normalized_prompt(prompt: str, prompt_template: dict[str, str], lead_in: str) -> str:
    """A prompt of `prompt_template` without whitespace around its words and after it; any other text unchanged.

    A space after `Out:`, typed by hand, would be a token that the model never saw there. The lead-in of an action
    stays.
    """
    (before, after), asked = (prompt_parts(prompt_template, name) for name in ("action", "question"))
    bare, tail = prompt.strip(), prompt[len(prompt.rstrip()) :]
    found = []
    for start, end in ((before, after + lead_in), (before, after), asked):
        words = bare.removeprefix(start.lstrip()).removesuffix(end.rstrip())
        whole = len(words) == len(bare) - len(start.lstrip()) - len(end.rstrip())
        if whole and words.strip() and end[len(end.rstrip()) :] in tail:
            found.append(start + words.strip() + end)
    return prompt if prompt in found or not found else found[0]


def prompt_parts(prompt_template: dict[str, str], name: str) -> tuple[str, str]:
    """The text of a prompt before and after its words, to which the robot's state belongs."""
    before, _, after = prompt_template[name].partition("{instruction}" if name == "action" else "{question}")
    return before, after.rpartition("{state}")[2]


def chat_template_for(prompt_template: dict[str, str], image_token: str) -> str:
    """Jinja that renders messages with the prompts of `prompt_template`: BOS, images, then the turns.

    The text of a system message begins the question after it, on a line of its own. Other roles than system, user and
    assistant are an error, and so is a system message with no question after it.
    """
    before, after = (repr(part) for part in prompt_template["question"].split("{question}"))
    lead, tail = (repr(part) for part in prompt_template["answer"].split("{answer}"))
    words = (
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    )
    return (
        "{{ bos_token }}"
        "{% for m in messages %}{% if m.content is not string %}{% for c in m.content %}"
        f"{{% if c.type == 'image' %}}{{{{ {image_token!r} }}}}{{% endif %}}{{% endfor %}}{{% endif %}}{{% endfor %}}"
        "{% set waiting = namespace(text='') %}"
        f"{{% for m in messages %}}{{% set words %}}{words}{{% endset %}}{{% if m.role == 'assistant' %}}"
        f"{{{{ {lead} }}}}{{{{ words }}}}{{{{ {tail} }}}}{{{{ eos_token }}}}"
        "{% elif m.role == 'system' %}{% set waiting.text = waiting.text ~ words ~ '\\n' %}"
        f"{{% elif m.role == 'user' %}}{{{{ {before} }}}}{{{{ waiting.text }}}}{{{{ words }}}}{{{{ {after} }}}}"
        "{% set waiting.text = '' %}{% else %}"
        "{{ raise_exception('got a message of role ' ~ m.role ~ ', expected system, user or assistant') }}"
        "{% endif %}{% endfor %}{% if waiting.text %}"
        "{{ raise_exception('got a system message with no message of the user after it, expected one') }}{% endif %}"
    )


def check_no_control_tokens(conversation: Any, tokens: Sequence[str]) -> None:
    """Raises `ValueError` if a message of a conversation, or of a batch of them, contains one of the tokens."""
    if isinstance(conversation, (list, tuple)):
        for each in conversation:
            check_no_control_tokens(each, tokens)
    elif isinstance(conversation, Mapping):
        if "role" in conversation and not conversation.get("content") and conversation.get("content") != "":
            raise ValueError(
                f"got a message without content ({dict(conversation)}), expected words or a list of parts"
            )
        for words in (conversation.get("content"), conversation.get("text")):
            if isinstance(words, str) and (found := [token for token in tokens if token in words]):
                raise ValueError(
                    f"got {found[0]!r} in a message ({words[:60]!r}), expected words: in a rendered conversation it "
                    "is a control token; take it out, or ask by question_inputs or action_inputs, where it is text"
                )
            check_no_control_tokens(words if isinstance(words, (list, tuple)) else (), tokens)


def checked_text(value: Any, name: str, empty: bool = False) -> str:
    """`value` if it is a text, and not blank unless `empty`; else an error that names it."""
    if not isinstance(value, str):
        raise TypeError(f"got {type(value).__name__} as {name}, expected a string")
    if not empty and not value.strip():
        raise ValueError(f"got an empty {name}, expected words; the model has nothing to act on without them")
    return value


def checked_instruction(value: Any, prompt_template: dict[str, str]) -> str:
    """An instruction in lower case, as in prompts; a whole prompt raises `ValueError`."""
    words = checked_text(value, "instruction").strip().lower()
    before = prompt_parts(prompt_template, "action")[0].strip().lower()
    if before and words.startswith(before):
        raise ValueError(
            f"got the instruction {value!r}, which is a whole prompt, expected its words alone; "
            "a prompt is for processor(prompt, image)"
        )
    return words


def is_text(value: Any) -> bool:
    """Whether `value` is a text or a list of texts."""
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], str))


UPLOAD_ARGUMENTS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


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


class LoadableTokenizerMixin:
    """For a processor: saved with a tokenizer that transformers 4 and 5 can load, in what is uploaded, too."""

    def save_pretrained(self: Any, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in transformers, with a tokenizer that versions 4 and 5 can load."""
        upload = {name: kwargs.pop(name) for name in UPLOAD_ARGUMENTS if name in kwargs}
        repo_id = kwargs.pop("repo_id", None) or Path(save_directory).name
        written = super().save_pretrained(save_directory, **kwargs)  # pyright: ignore
        path = Path(save_directory) / "tokenizer_config.json"
        settings = self.loadable_tokenizer(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if push_to_hub:  # which saves once more
            self.push_to_hub(repo_id, **upload)
        return written
