"""Processor of `VLAPlusForVision2Seq`: the vision-language model's own, and `action_inputs`.

`AutoProcessor` gives an object of the stock class (`Qwen2_5_VLProcessor`, ...) that has the methods below besides. For
questions, chats and pipelines it is the stock processor. What a robot is told is a message of the user in the stock
chat template, with the lead-in of the action format behind it:

    <|im_start|>user <image> What action should the robot take to lift it? <|im_end|> <|im_start|>assistant \\n | +0.0

Where the generation prompt ends in the lead-in already, it is not written twice.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import BatchFeature, PaliGemmaProcessor
from transformers.processing_utils import ProcessorMixin

from .action_bins import ActionBins  # noqa: F401  # transformers 4 copies what this file names
from .action_grammar import ActionGrammar  # noqa: F401
from .action_statistics import normalize_actions  # noqa: F401
from .action_strings import ActionStringProcessor  # noqa: F401
from .image_processing_openvla_plus import as_rows, center_crop, checked_cameras
from .prompt_texts import (
    ControlTokenError,
    LoadableTokenizerMixin,
    check_prompt_template,
    control_tokens,
    encode_as_text,
)
from .relative_actions import to_relative  # noqa: F401
from .rgb_pictures import to_rgb
from .robot_state import StateInputs, stacked_states
from .transformers_version import check_vlm


VLA_PROMPT_TEMPLATE = {
    "action": "What action should the robot take to {instruction}?",
    "question": "{question}",
    "answer": "{answer}",
}
TILING = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")  # off for a robot: each tile costs as a picture
SETTINGS = "vla_plus"  # where processor_config.json holds these
SETTING_NAMES = ("action_config", "prompt_template", "cameras", "picture_options", "center_crop_area")
SETTING_NAMES += ("state_statistics",)
# PaliGemma has none, and puts BOS behind the last picture and a newline at the end.
PALIGEMMA_CHAT_TEMPLATE = """{% for message in messages -%}
{% if message['content'] is string %}{{ message['content'] }}{% else -%}
{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor -%}
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor -%}
{% endif -%}
{% if message['role'] == 'assistant' %}{{ eos_token }}{% elif not loop.last %}{{ '\n' }}{% endif -%}
{% endfor %}"""
MARK = "ANSWER"  # stands for one where a chat template is looked at


class ActionInputs(StateInputs, LoadableTokenizerMixin):
    """What is added to a stock processor.

    Attributes:
        action_config: the action format (`action_grammar.make_action_config`), the same as in the model's config.
        prompt_template: texts of messages, with `{instruction}`, `{question}` and `{answer}`.
        cameras: names of the cameras of an action's pictures, in the order of training; `None` for one of any name.
        picture_options: arguments of the stock image processor, such as `size`, for what the methods below are given.
        center_crop_area: share of each such picture's area to keep; `None` for all of it.
    """

    default_prompt_template = VLA_PROMPT_TEMPLATE

    picture_options: dict[str, Any]
    center_crop_area: float | None
    tokenizer: Any
    chat_template: Any
    image_token: str

    def action_inputs(
        self, image: Any, instruction: Any, *, state: Any = None, unnorm_key: str | Sequence[str] | None = None
    ) -> BatchFeature:
        """Inputs for `predict_action` and `predict_actions`: as `OpenVLAPlusProcessor.action_inputs`, with what else
        the stock processor returns.

        Raises:
            ValueError: also if an instruction contains a control token.
        """
        pictures, messages, states = self.action_rows(image, instruction, state, unnorm_key)
        inputs = self._inputs(pictures, messages)
        lead_in = torch.tensor(self._lead_in, dtype=torch.long)
        ids, length = inputs["input_ids"], len(lead_in)
        if length and not bool((ids[:, -length:] == lead_in).all()):
            inputs["input_ids"] = torch.cat((ids, lead_in.expand(len(ids), -1)), dim=1)
            for name in inputs:
                if name != "input_ids" and inputs[name].shape == ids.shape:  # the mask, and types of tokens
                    inputs[name] = torch.nn.functional.pad(inputs[name], (0, length), value=name == "attention_mask")
        if self.takes_state:
            inputs["state"] = stacked_states(states)
        return inputs

    def question_inputs(self, image: Any, question: Any) -> BatchFeature:
        """Inputs for `generate` that ask B questions about B pictures (VQA), one each."""
        prompts = [self.question_prompt(text) for text in as_rows(question)]
        return self._inputs([[row] for row in as_rows(image)], prompts)

    @property
    def answer_types(self) -> dict[str, int]:
        """What training needs per token besides ids and mask, with its value on answers."""
        types = {"PaliGemmaProcessor": {"token_type_ids": 1}, "Gemma3Processor": {"token_type_ids": 0}}
        names = [base.__name__ for base in type(self).__mro__]
        found = next((types[name] for name in names if name in types), {})
        return {"mm_token_type_ids": 0} if any(name.startswith("Qwen") for name in names) else found

    def row_inputs(self, images: list[list[Any]], prompts: list[str], acting: list[bool]) -> dict[str, Any]:
        """Messages of training rows, and pictures of each: `input_ids` and `answer_types` as lists without padding,
        and pictures as tensors. An action, where a row is `acting`, begins behind the lead-in.
        """
        inputs = self._inputs(images, prompts)
        mask, types = inputs.pop("attention_mask").bool(), self.answer_types
        rows: dict[str, list[list[int]]] = {name: [] for name in ("input_ids", *types)}
        for row, acts in enumerate(acting):
            ids, lead_in = inputs["input_ids"][row][mask[row]].tolist(), self._lead_in
            missing = lead_in if acts and ids[len(ids) - len(lead_in) :] != lead_in else []
            rows["input_ids"].append(ids + missing)
            for name in types:
                rows[name].append(inputs[name][row][mask[row]].tolist() + [0] * len(missing))
        kept = {name: values for name, values in inputs.items() if not name.endswith("type_ids")}
        return {**kept, **rows}

    def answer_ids(self, prompt: str, answer: str, later: bool = False) -> list[int]:
        """Token ids of an answer, and the control token that ends it in the chat template, else EOS."""
        end, _ = self._after_answer()
        return [*encode_as_text(self.tokenizer, answer, ()), end]

    def later_prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a further question, from behind the end of the answer before it to the next answer."""
        return self._after_answer(prompt)[1]

    def _after_answer(self, prompt: str = "") -> tuple[int, list[int]]:
        """What ends an answer, and the ids of a further question behind it."""
        if isinstance(self, PaliGemmaProcessor):
            return self.tokenizer.eos_token_id, encode_as_text(self.tokenizer, f"{prompt}\n", ())
        if not self.chat_template:
            return self.tokenizer.eos_token_id, encode_as_text(self.tokenizer, prompt, ())
        text = self._chat(["", MARK, prompt], asks=True).partition(MARK)[2]
        ids = encode_as_text(self.tokenizer, text, [text.replace(prompt, "") if prompt else text])
        if self.tokenizer.convert_ids_to_tokens(ids[0]) in control_tokens(self.tokenizer):
            return ids[0], ids[1:]
        return self.tokenizer.eos_token_id, ids  # such as LLaVA's, which ends an answer by a space

    @property
    def _lead_in(self) -> list[int]:
        return list((self.action_config or {}).get("lead_in_ids", ()))

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; what is added is an entry of its own."""
        own = {name: getattr(self, name) for name in SETTING_NAMES}
        stock_class = next(base for base in type(self).__mro__ if base.__module__.startswith("transformers."))
        return {**super().to_dict(), SETTINGS: {"stock_class": stock_class.__name__, **own}}  # pyright: ignore

    def loadable_tokenizer(self, settings: dict[str, Any]) -> dict[str, Any]:
        """tokenizer_config.json with a class, and named tokens, that versions 4 and 5 know."""
        if settings.get("tokenizer_class") == "TokenizersBackend":
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        more, named = settings.pop("extra_special_tokens", []), settings.pop("model_specific_special_tokens", {})
        if isinstance(more, list):  # only 5 writes one
            more, settings["additional_special_tokens"] = named, more
        return {**settings, "extra_special_tokens": more}

    def _inputs(self: Any, pictures: list[Any], messages: list[str]) -> BatchFeature:
        if len(pictures) != len(messages):
            raise ValueError(f"got pictures of {len(pictures)} rows and {len(messages)} texts, expected one each")
        control = [token for token in control_tokens(self.tokenizer) if any(token in text for text in messages)]
        if control:
            raise ControlTokenError(f"got {control[0]!r} in a text, expected words: it is a control token here")
        opened = [[to_rgb(picture) for picture in row] for row in pictures]
        if self.center_crop_area is not None:
            opened = [[center_crop(picture, self.center_crop_area) for picture in row] for row in opened]
        if issubclass(type(self), PaliGemmaProcessor):
            return self._paligemma_inputs(opened, messages)
        texts = [self._rendered(text, len(row)) for text, row in zip(messages, pictures, strict=True)]
        begun = bool(self.tokenizer.bos_token) and texts[0].startswith(self.tokenizer.bos_token)
        return self(
            images=opened if any(opened) else None,
            text=texts,
            padding=True,
            padding_side="left",
            add_special_tokens=not begun,
            return_tensors="pt",
            **self.picture_options,
        )

    def _paligemma_inputs(self: Any, pictures: list[list[Any]], messages: list[str]) -> BatchFeature:
        """As the stock processor's, which would put BOS into the words of a row without pictures."""
        images = [self.image_token * (self.image_seq_length * len(row)) for row in pictures]
        bos = self.tokenizer.bos_token
        texts = [f"{image}{bos}{text}\n" for image, text in zip(images, messages, strict=True)]
        options = {"add_special_tokens": False, "padding": True, "padding_side": "left", "return_tensors": "pt"}
        inputs = self.tokenizer(texts, return_token_type_ids=False, **options)
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        if flat := [picture for row in pictures for picture in row]:
            inputs |= self.image_processor(flat, return_tensors="pt", **self.picture_options)
        return BatchFeature(dict(inputs))

    def _rendered(self, text: str, pictures: int) -> str:
        if not self.chat_template:  # a base model
            return self.image_token * pictures + text
        return self._chat([text], pictures, asks=True)

    def _chat(self: Any, turns: list[str], pictures: int = 0, asks: bool = False) -> str:
        """A conversation that begins with the user, as the chat template writes it."""
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": text}]}
            for number, text in enumerate(turns)
        ]
        messages[0]["content"] = [*[{"type": "image"}] * pictures, *messages[0]["content"]]
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, add_generation_prompt=asks, tokenize=False
        )


class VLAPlusProcessor(ProcessorMixin):
    """What a repository names as its processor; `from_pretrained` gives the stock processor with `ActionInputs`."""

    default_prompt_template = VLA_PROMPT_TEMPLATE

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in transformers; no code of the repository runs."""
        kwargs.setdefault("trust_remote_code", False)  # else transformers asks, since there is code for the model
        settings, _ = ProcessorMixin.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        own = dict(settings[SETTINGS])
        stock_class = getattr(transformers, own.pop("stock_class"))
        return with_actions(read_stock(pretrained_model_name_or_path, stock_class, **kwargs), **own)


def with_actions(
    stock: Any,
    action_config: dict[str, Any] | None = None,
    prompt_template: dict[str, str] | None = None,
    cameras: list[str] | None = None,
    picture_options: dict[str, Any] | None = None,
    center_crop_area: float | None = None,
    state_statistics: dict[str, Any] | None = None,
) -> Any:
    """A stock processor with `ActionInputs`, changed in place; for the arguments see there.

    Pictures of a robot are by default not cut into tiles.
    """
    check_vlm()
    stock.__class__ = class_with_actions(type(stock))
    stock.action_config, stock.cameras = action_config, checked_cameras(cameras)
    stock.prompt_template = dict(prompt_template or VLA_PROMPT_TEMPLATE)
    check_prompt_template(stock.prompt_template)
    whole = {name: False for name in TILING if hasattr(stock.image_processor, name)}
    stock.picture_options = whole if picture_options is None else dict(picture_options)
    stock.center_crop_area, stock.state_statistics = center_crop_area, state_statistics
    if isinstance(stock, PaliGemmaProcessor) and not stock.chat_template:
        stock.chat_template = PALIGEMMA_CHAT_TEMPLATE
    return stock


@lru_cache
def class_with_actions(stock_class: type) -> type:
    """The stock class with `ActionInputs`; transformers saves it under the name of `VLAPlusProcessor`."""
    names: dict[str, Any] = {"__module__": VLAPlusProcessor.__module__, "_auto_class": "AutoProcessor"}
    names["__reduce__"] = lambda self: (new_with_actions, (stock_class.__name__,), self.__dict__)  # for pickle
    return type(VLAPlusProcessor.__name__, (ActionInputs, stock_class), names)


def new_with_actions(stock_class: str) -> Any:
    """A processor of `class_with_actions` without its attributes."""
    made: Any = class_with_actions(without_missing_parts(getattr(transformers, stock_class)))
    return made.__new__(made)


def read_stock(name: Any, stock_class: Any, **kwargs: Any) -> Any:
    """A stock processor; without its part for videos where torchvision is missing, which that part needs."""
    reduced = without_missing_parts(stock_class)
    if reduced is stock_class:
        return stock_class.from_pretrained(name, **kwargs)
    settings, more = reduced.get_processor_dict(name, **kwargs)
    found = reduced._get_arguments_from_pretrained(name, settings, **kwargs)
    by_name = dict(zip(reduced.get_attributes(), found, strict=True))
    return reduced.from_args_and_dict([by_name.get(part) for part in stock_class.get_attributes()], settings, **more)


@lru_cache
def without_missing_parts(stock_class: Any) -> Any:
    """The class of `read_stock`."""
    if transformers.__version__ < "5" or find_spec("torchvision"):
        return stock_class
    parts = stock_class.get_attributes()
    if "video_processor" not in parts:
        return stock_class
    pictures_only = [part for part in parts if part != "video_processor"]
    names: dict[str, Any] = {
        "__module__": stock_class.__module__,
        "get_attributes": classmethod(lambda _: pictures_only),
    }
    names["video_processor"] = SimpleNamespace(num_frames=None, fps=None)  # which SmolVLM's chat template asks for
    return type(stock_class.__name__, (stock_class,), names)
