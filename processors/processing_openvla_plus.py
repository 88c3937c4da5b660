"""Processor of OpenVLA+: pictures and texts to model inputs. Training and inference share its layout of a row:

    <s> <image> x N  In: What action should the robot take to pick up the can?\\nOut: \\n | +0.0312-0.1200... </s>
    <s> <image> x N  In: How many blocks are there?\\nOut:                               | two </s>
    BOS image tokens  prompt                                                 lead-in       answer EOS

Image tokens always follow BOS directly, where OpenVLA puts the patches, wherever a text has its `<image>`
placeholders; those of several cameras follow each other in the order of `cameras`. A BOS of a chat template is not
written again. Prompt, lead-in and action are tokenised separately and joined as ids, so that no vocabulary
merges across their borders. In instructions, questions and answers `</s>`, `<image>` and the like are text; in a call
with a whole prompt they are control tokens, which chat templates write.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .image_processing_openvla_plus import (
    ALWAYS_DONE,
    as_rows,
    by_camera,
    check_arguments,
    check_camera_count,
    checked_cameras,
    images_per_row,
    is_batch,
    pictures_in_order,
    with_open_pictures,
)
from .prompt_texts import (
    PROMPT_TEMPLATE,
    LoadableTokenizerMixin,
    chat_template_for,
    check_no_control_tokens,
    check_prompt_template,
    checked_text,
    checked_token_id,
    continuation_ids,
    control_tokens,
    encode_as_text,
    is_text,
    normalized_prompt,
    prompt_parts,
)
from .robot_state import StateInputs, stacked_states


# isort: split
# What those files import: transformers 4 copies from a local folder only what this file names itself.
from .action_bins import ActionBins  # noqa: F401
from .action_grammar import ActionGrammar  # noqa: F401
from .action_statistics import normalize_actions  # noqa: F401
from .action_strings import ActionStringProcessor  # noqa: F401
from .relative_actions import to_relative  # noqa: F401
from .rgb_pictures import to_rgb  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401


CALL_ARGUMENTS = ("images", "text", "return_tensors", "padding", "padding_side", "add_special_tokens")
CALL_ARGUMENTS += ("split_special_tokens", "max_length", "truncation")


class OpenVLAPlusProcessor(StateInputs, LoadableTokenizerMixin, ProcessorMixin):
    """Processor of the family: `action_inputs` for robots, `question_inputs` or a call for everything else.

    Args:
        image_processor: an `OpenVLAPlusImageProcessor`.
        tokenizer: a fast tokenizer with BOS, EOS, PAD and `image_token`, the placeholder, in its vocabulary.
        num_image_tokens: N, the tokens one picture takes.
        action_config: the action format (`action_grammar.make_action_config`), the same as in the model's config.
        prompt_template: texts with `{instruction}`, `{question}` and `{answer}`.
        chat_template: Jinja; by default derived from `prompt_template`.
        cameras: names of the cameras of an action's pictures, in the order of training; `None` for one of any name.
        state_statistics: see `StateInputs`.
    """

    default_prompt_template = PROMPT_TEMPLATE
    # Arguments of other processors that are accepted with the value that describes what is done here.
    fixed_arguments = {**ALWAYS_DONE, "return_attention_mask": True, "return_token_type_ids": False}  # noqa: RUF012
    fixed_arguments |= {"text_kwargs": {}, "images_kwargs": {}, "common_kwargs": {}}
    if transformers.__version__.startswith("4."):  # transformers 5 reads the signature below and warns about these
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 256,
        action_config: dict[str, Any] | None = None,
        prompt_template: dict[str, str] | None = None,
        image_token: str = "<image>",
        chat_template: str | None = None,
        cameras: list[str] | None = None,
        state_statistics: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.state_statistics = state_statistics
        self.cameras = checked_cameras(cameras)
        self.num_image_tokens = num_image_tokens
        self.action_config = action_config
        self.prompt_template = dict(prompt_template or self.default_prompt_template)
        self.image_token = image_token
        check_prompt_template(self.prompt_template)
        if tokenizer is not None:
            self.image_token_id = checked_token_id(tokenizer, image_token)
        template = chat_template or chat_template_for(self.prompt_template, image_token)
        super().__init__(image_processor, tokenizer, chat_template=template)

    def action_prompt(self, instruction: str, state: Any = None, unnorm_key: str | None = None) -> str:
        """The prompt that asks for an action, lead-in included; the instruction is lower-cased, as OpenVLA does."""
        prompt = super().action_prompt(instruction, state, unnorm_key)
        self._without_marks(instruction.lower())
        return prompt + self._lead_in[0]

    def _without_marks(self, words: str) -> str:
        """The words; `ValueError` if a control token of the prompt template is in them, where it would stay one."""
        template = "".join(self.prompt_template.values())
        for token in control_tokens(self.tokenizer):
            if token in words and token in template:
                raise ValueError(
                    f"got {token!r} in {words[:60]!r}, expected words: this model's prompts are made with that "
                    "control token; take it out"
                )
        return words

    def action_inputs(
        self,
        image: Any,
        instruction: Any,
        return_tensors: str | None = "pt",
        *,
        state: Any = None,
        unnorm_key: str | Sequence[str] | None = None,
    ) -> BatchFeature:
        """Inputs for `predict_action` and `predict_actions`.

        Args:
            image: for one instruction, a picture (PIL, uint8 [H, W, 3], path, URL or bytes); of several `cameras`, a
                dictionary by their names or a list in their order. For B instructions a list of B of these; or, for
                one camera, a stack [B, H, W, 3].
            instruction: one text, or a list of B.
            state: for a model that takes the robot's state (`takes_state`), float [P] in the units of its data set,
                or B of them.
            unnorm_key: the data set that the state is of, one for all rows or one per row; needed where there are
                several.

        Returns:
            `input_ids` and `attention_mask` int64 [B, L], left-padded; `pixel_values` float32 [pictures, C, H, W], row
            by row; `state` float64 [B, P] as it was given, where the model takes it.

        Raises:
            ValueError: if rows and instructions differ in number, a row has other pictures than those of the cameras
                of training, or an instruction is empty; for a state that is missing, wrong, or not taken.
            TypeError: if an image is not a picture or an instruction is not a text.
        """
        pictures, prompts, states = self.action_rows(image, instruction, state, unnorm_key)
        inputs = self(images=pictures, text=prompts, return_tensors=return_tensors, split_special_tokens=True)
        if self.takes_state:
            inputs["state"] = stacked_states(states)
        return inputs

    def question_inputs(self, image: Any, question: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Inputs for `generate` that ask B questions about B pictures (VQA), one each."""
        prompts = [self.question_prompt(text) for text in as_rows(question)]
        images = [[picture] for picture in as_rows(image)]
        if len(images) != len(prompts):
            raise ValueError(f"got {len(images)} images and {len(prompts)} questions, expected one of each per row")
        return self(images=images, text=prompts, return_tensors=return_tensors, split_special_tokens=True)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        *,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        max_length: int | None = None,
        truncation: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenizes texts and processes pictures.

        `images` and `text` may be given in either order, so that OpenVLA's `processor(prompt, image)` works. A prompt
        that asks for an action needs the pictures of `cameras`.

        Args:
            images: one picture, one per text, a list of lists (one per text, empty for a text-only row), or `None`;
                for a prompt that asks for an action, also a dictionary by camera.
            text: one text or a list of them. `<image>` placeholders are moved to the front of the row, and whitespace
                that no prompt of training has is removed (`normalized_prompt`).
            add_special_tokens: whether a row starts with BOS. Without it, a text that does not begin with BOS is a
                continuation of another, and may have no pictures.
            split_special_tokens: whether control tokens in `text`, also `<image>`, are text; those of the prompt
                template stay tokens.
            truncation: with `max_length`, a longer row raises; nothing is ever cut.
            kwargs: `fixed_arguments`; all others are as for a tokenizer.

        Raises:
            ValueError: if pictures and placeholders do not match, tensors are asked for in which an action has other
                pictures than in training, a row with pictures has no BOS, or a row is longer than `max_length`.
            TypeError: for an unknown argument, so that none is silently ignored.
        """
        check_arguments(kwargs, CALL_ARGUMENTS, self.fixed_arguments)
        if videos is not None or audio is not None:
            raise ValueError("got videos or audio, expected pictures and text; this model family has no other inputs")
        if is_text(images) and not is_text(text):
            images, text = text, images
        if text is None:
            return self.image_processor(images, return_tensors=return_tensors)
        texts = as_rows(text)
        if not texts:
            raise ValueError("got no texts, expected at least one")
        texts = [checked_text(line, "text", empty=True) for line in texts]
        marks = () if split_special_tokens else (self.image_token, self.tokenizer.bos_token)
        images, counts = self._pictures(images, texts, marks, check=return_tensors is not None)
        rows = [
            self._row(line, count, add_special_tokens, split_special_tokens)
            for line, count in zip(texts, counts, strict=True)
        ]
        limit = max_length if truncation or padding == "max_length" else None
        longest = max(len(row) for row in rows)
        if limit is not None and longest > limit:
            raise ValueError(
                f"got a row of {longest} tokens and max_length={limit}; nothing is cut, since that would lose image "
                "tokens or the end of an action; shorten the text or raise max_length"
            )
        inputs = self._pad(rows, padding, padding_side, limit, return_tensors)
        if sum(counts):
            inputs.update(self.image_processor(images, return_tensors=return_tensors))
        return inputs

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with all kinds of pictures that `action_inputs` takes; `ValueError` for a control token
        other than `<image>` in a message.
        """
        tokens = [token for token in control_tokens(self.tokenizer) if token != self.image_token]
        check_no_control_tokens(conversation, tokens)
        given = with_open_pictures(conversation) if kwargs.get("tokenize") else conversation
        return super().apply_chat_template(given, *args, **kwargs)

    def encode_text(self, text: str, split_special_tokens: bool = True) -> list[int]:
        """Token ids of a text at the beginning of a row, without BOS; `split_special_tokens` as for a call."""
        if split_special_tokens:
            return encode_as_text(self.tokenizer, text, self.prompt_template.values())
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_continuation(self, text: str, split_special_tokens: bool = True) -> list[int]:
        """As `encode_text`, of a text that continues another; raises `ValueError` where digits merge with it."""
        return continuation_ids(text, lambda whole: self.encode_text(whole, split_special_tokens))

    def encode_prompt(self, prompt: str, split_special_tokens: bool = True) -> list[int]:
        """As `encode_text`, of a prompt; the lead-in of an action is joined as its ids."""
        before, after = prompt_parts(self.prompt_template, "action")
        lead_in, lead_in_ids = self._lead_in
        if not lead_in_ids or not (prompt.startswith(before) and prompt.endswith(after + lead_in)):
            return self.encode_text(prompt, split_special_tokens)
        return [*self.encode_text(prompt.removesuffix(lead_in), split_special_tokens), *lead_in_ids]

    @property
    def _lead_in(self) -> tuple[str, list[int]]:
        """Text and ids between an action's prompt and the action; empty where the model generates them."""
        config = self.action_config or {}
        return (config["lead_in"], config["lead_in_ids"]) if config.get("lead_in_ids") else ("", [])

    def row_inputs(self, images: list[list[Any]], prompts: list[str], acting: list[bool]) -> dict[str, Any]:
        """Prompts of training rows, lead-ins included, and the pictures of each: `input_ids` as lists without padding,
        and pictures as tensors. `acting` says whether a row's answer is an action.
        """
        rows = self(images=images, text=prompts, padding=False, return_tensors=None, split_special_tokens=True)
        if "pixel_values" in rows:
            rows["pixel_values"] = torch.as_tensor(rows["pixel_values"])
        return {name: values for name, values in rows.items() if name != "attention_mask"}

    def answer_ids(self, prompt: str, answer: str, later: bool = False) -> list[int]:
        """Token ids of an answer behind its prompt, which may continue a conversation (`later`), and EOS; `ValueError`
        if prompt and answer cannot be told apart.
        """
        encode = self.encode_continuation if later else self.encode_text
        begun, whole = encode(prompt), encode(prompt + answer)
        if whole[: len(begun)] != begun or len(whole) == len(begun):
            raise ValueError(
                f"got prompt {prompt!r} and answer {answer!r}, expected the prompt's tokens to be a beginning of the "
                "whole row's; end the prompt where no piece of the vocabulary crosses over, and give every row an "
                "answer"
            )
        return [*whole[len(begun) :], self.tokenizer.eos_token_id]

    def later_prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt behind an answer; no space is put before them, and no BOS."""
        return self.encode_continuation(prompt)

    def row_start(self, images: int) -> list[int]:
        """Token ids before the text of a row: BOS and image tokens."""
        return [self.tokenizer.bos_token_id, *[self.image_token_id] * (self.num_image_tokens * images)]

    def normalized_prompt(self, prompt: str) -> str:
        """A prompt as in training, see `prompt_texts.normalized_prompt`."""
        return normalized_prompt(prompt, self.prompt_template, self._lead_in[0])

    def _pictures(self, images: Any, texts: list[str], marks: Sequence[str], check: bool) -> tuple[Any, list[int]]:
        """Pictures in the order of `cameras`, and how many belong to each text.

        `marks` are placeholder and BOS where they are not text. With `check`, prompts of actions must have pictures as
        in training, or none; training itself is not checked: its questions may be worded like an action's prompt.
        """
        beginning = prompt_parts(self.prompt_template, "action")[0]
        acting = [bool(self.action_config)] * len(texts)
        for row, text in enumerate(texts):
            for mark in marks:
                text = text.replace(mark, "")
            acting[row] = acting[row] and text.lstrip().startswith(beginning)
        rows = [images] if by_camera(images) else images
        if is_batch(rows) and len(rows) == len(texts):
            images = [
                pictures_in_order(row, self.cameras) if acts and by_camera(row) else row
                for row, acts in zip(rows, acting, strict=True)
            ]
        counts = images_per_row(images, texts, *marks[:1])
        if check and images is not None:
            for count in (count for count, acts in zip(counts, acting, strict=True) if acts and count):
                check_camera_count(count, self.cameras)
        return images, counts

    def _row(self, text: str, images: int, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        bos, starts_row = self.tokenizer.bos_token, add_special_tokens
        if not split_special_tokens:
            text = text.replace(self.image_token, "")
            starts_row = add_special_tokens or text.startswith(bos)
            while text.startswith(bos):
                text = text.removeprefix(bos)
        if starts_row:
            return [*self.row_start(images), *self.encode_prompt(self.normalized_prompt(text), split_special_tokens)]
        if images:
            raise ValueError(
                f"got a text with {images} pictures that does not start with {bos!r} while add_special_tokens=False, "
                "expected it there, since pictures follow it directly; write tokenizer.bos_token before the prompt"
            )
        return self.encode_continuation(text, split_special_tokens)

    def _pad(
        self, rows: list[list[int]], padding: bool | str, side: str, limit: int | None, return_tensors: str | None
    ) -> BatchFeature:
        if padding not in (True, False, None, "longest", "max_length", "do_not_pad") or side not in ("left", "right"):
            raise ValueError(
                f"got padding={padding!r}, padding_side={side!r}, expected True, 'longest', 'max_length' or False, "
                "and 'left' or 'right'"
            )
        width = limit if padding == "max_length" and limit else max(len(row) for row in rows)
        width = 0 if not padding or padding == "do_not_pad" else width
        padded: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
        fill = self.tokenizer.pad_token_id
        for row in rows:
            gap = max(width - len(row), 0)
            left, right = (gap, 0) if side == "left" else (0, gap)
            padded["input_ids"].append([fill] * left + row + [fill] * right)
            padded["attention_mask"].append([0] * left + [1] * len(row) + [0] * right)
        return BatchFeature(padded, tensor_type=return_tensors)

    def loadable_tokenizer(self, settings: dict[str, Any]) -> dict[str, Any]:
        """tokenizer_config.json: 5 writes a class that 4 does not have, and a list where 4 expects a dictionary."""
        settings.pop("backend", None)
        special = settings.pop("extra_special_tokens", None)
        if isinstance(special, list) and special:
            settings["additional_special_tokens"] = special
        return {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors a call returns."""
        return ["input_ids", "attention_mask", "pixel_values"]
