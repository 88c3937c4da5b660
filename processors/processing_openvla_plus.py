"""Pictures and words to model inputs: prompts, one BOS, image tokens in their place, left padding.

Decides: the layout of a row, which training and inference share:

    <s> <image> x N  In: What action should the robot take to pick up the can?\\nOut: \\n | +0.0312-0.1200... </s>
    <s> <image> x N  In: How many blocks are there?\\nOut:                               | two </s>
    BOS image tokens  prompt                                                 lead-in       answer EOS

Image tokens always follow BOS directly, wherever a text has its `<image>` placeholders: that is where OpenVLA puts the
patches. A row without pictures has none, one of several cameras has theirs one behind the other, in the order of
`cameras`. A BOS that a chat template already wrote is not written again. Prompt, lead-in and action are tokenised each
on its own and joined as ids, so that no vocabulary merges across their borders. In instructions, questions and answers
`</s>`, `<image>` and the like are text; in a call with a whole prompt they are control tokens, which chat templates
write.

Refuses to know: how prompts are worded (`prompt_texts.py`), how pictures become pixels
(`image_processing_openvla_plus.py`), how actions are spelled (`action_strings.py`), units, the model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .action_bins import ActionBins, codec_from_action_config
from .action_strings import ActionStringProcessor
from .image_processing_openvla_plus import (
    ALWAYS_DONE,
    as_rows,
    by_camera,
    check_camera_count,
    checked_cameras,
    flatten_images,
    is_batch,
    pictures_in_order,
    refuse_arguments,
    with_open_pictures,
)
from .prompt_texts import (
    PROMPT_TEMPLATE,
    around_words,
    chat_template_for,
    check_prompt_template,
    checked_instruction,
    checked_text,
    is_text,
    refuse_control_tokens,
    tidied,
    without,
)
from .text_tokens import checked_token_id, control_tokens, encode_words, ids_behind, make_tokenizer_loadable


# isort: split
# What those files import: transformers 4 copies from a local folder only what this file names itself.
from .action_grammar import ActionGrammar  # noqa: F401
from .rgb_pictures import to_rgb  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401


CALL_ARGUMENTS = (
    "images",
    "text",
    "return_tensors",
    "padding",
    "padding_side",
    "add_special_tokens",
    "split_special_tokens",
    "max_length",
    "truncation",
)

UPLOAD_ARGUMENTS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


class OpenVLAPlusProcessor(ProcessorMixin):
    """Processor of the family: `action_inputs` for robots, `question_inputs` or a call for everything else.

    Args:
        image_processor: an `OpenVLAPlusImageProcessor`.
        tokenizer: a fast tokenizer with BOS, EOS, PAD and `image_token` in its vocabulary.
        num_image_tokens: N, the tokens one picture takes.
        action_config: the action format (`action_grammar.make_action_config`), the same as in the model's config.
        prompt_template: texts with `{instruction}`, `{question}` and `{answer}`.
        image_token: the placeholder token.
        chat_template: Jinja; by default derived from `prompt_template`.
        cameras: names of the cameras whose pictures ask for an action, in the order of training; `None` for one of any
            name.
    """

    default_prompt_template = PROMPT_TEMPLATE
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
        **kwargs: Any,
    ):
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

    @property
    def action_strings(self) -> ActionStringProcessor | ActionBins:
        """A new codec in the model's action format, its clip counters at zero."""
        if not self.action_config:
            raise ValueError("got a processor without action_config, expected one; it was not made for actions")
        return codec_from_action_config(self.action_config)

    def action_prompt(self, instruction: str) -> str:
        """The prompt that asks for an action, lead-in included; the instruction is lower-cased, as OpenVLA does."""
        words = checked_instruction(instruction, self.prompt_template)
        return self.prompt_template["action"].format(instruction=words) + self._lead_in[0]

    def question_prompt(self, question: str) -> str:
        """The prompt that asks a question about a picture, or without one."""
        return self.prompt_template["question"].format(question=checked_text(question, "question").strip())

    def answer_text(self, answer: str) -> str:
        """What the model should write after `question_prompt`, EOS excepted."""
        return self.prompt_template["answer"].format(answer=checked_text(answer, "answer").strip())

    def action_inputs(self, image: Any, instruction: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Inputs for `predict_action` and `predict_actions`.

        Args:
            image: what the cameras show for one instruction, or a list of B of that for a list of instructions: a
                picture (PIL, uint8 [H, W, 3], path, URL or bytes); of several `cameras`, a dictionary by their names,
                or a list in their order. Pictures of one camera may be a stack [B, H, W, 3].
            instruction: one text, or a list of B.

        Returns:
            `input_ids` and `attention_mask` int64 [B, L], left-padded; `pixel_values` float32 [pictures, C, H, W], row
            by row.

        Raises:
            ValueError: if rows and instructions differ in number, a row has pictures of other cameras than those of
                training, or more or fewer, or an instruction is empty.
            TypeError: if an image is not a picture or an instruction is not a text; see `rgb_pictures.to_rgb`.
        """
        prompts = [self.action_prompt(text) for text in as_rows(instruction)]
        alone = not isinstance(instruction, (list, tuple)) and not is_batch(image)
        rows = [image] if alone else as_rows(image)
        if len(rows) != len(prompts):
            raise ValueError(f"got {len(rows)} images and {len(prompts)} instructions, expected one of each per row")
        pictures = [pictures_in_order(row, self.cameras) for row in rows]
        return self(images=pictures, text=prompts, return_tensors=return_tensors, split_special_tokens=True)

    def question_inputs(self, image: Any, question: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Inputs for `generate` that ask B questions about B pictures (VQA), one each."""
        prompts = [self.question_prompt(text) for text in as_rows(question)]
        pictures = as_rows(image)
        if len(pictures) != len(prompts):
            raise ValueError(f"got {len(pictures)} images and {len(prompts)} questions, expected one of each per row")
        images = [[picture] for picture in pictures]
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
        that asks for an action needs the pictures of `cameras`, however it is given.

        Args:
            images: one picture, one per text, a list of lists (one per text, empty for a text-only row), or `None`;
                for a prompt that asks for an action, a dictionary by camera as well.
            text: one text or a list of them. `<image>` placeholders are moved to the front of the row, and blanks that
                no prompt of training has are taken off (`tidied`).
            padding, padding_side, max_length, return_tensors: as for a tokenizer.
            add_special_tokens: whether a row starts with BOS. Without it, and without a BOS at its beginning, a text
                is taken for the continuation of another, and may have no pictures.
            split_special_tokens: as for a tokenizer, whether control tokens written in `text` are text, `<image>` too;
                those of the prompt template stay tokens.
            truncation: only to be told apart from `None`: nothing is ever cut, a longer row raises.
            kwargs: arguments of other processors of transformers, as long as they ask for what happens anyhow.

        Raises:
            ValueError: if pictures and placeholders do not match, tensors are asked for in which an action has more
                or fewer pictures than in training, a row with pictures has no BOS, or a row is longer than
                `max_length` allows.
            TypeError: for an argument that this processor does not have, so that none is silently without effect.
        """
        refuse_arguments(kwargs, CALL_ARGUMENTS, self.already_done)
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
        """As in transformers; messages are words or lists of parts, and pictures whatever `action_inputs`
        takes.

        Raises:
            ValueError: for a control token in a message, which the rendered text could not tell from its own;
                `<image>` is a placeholder.
        """
        tokens = [token for token in control_tokens(self.tokenizer) if token != self.image_token]
        refuse_control_tokens(conversation, tokens)
        given = with_open_pictures(conversation) if kwargs.get("tokenize") else conversation
        return super().apply_chat_template(given, *args, **kwargs)

    @property
    def already_done(self) -> dict[str, Any]:
        """Arguments of other processors that may be given, with the value that describes what happens here."""
        kinds = {f"return_{name}": name in self.model_input_names for name in ("attention_mask", "token_type_ids")}
        nothing = {"text_kwargs": {}, "images_kwargs": {}, "common_kwargs": {}}
        return {**ALWAYS_DONE, **kinds, **nothing}

    def encode_text(self, text: str, split_special_tokens: bool = True) -> list[int]:
        """Token ids of a text at the beginning of a row, without BOS.

        Args:
            split_special_tokens: whether control tokens written in it are text, those of the prompt template excepted.
        """
        if split_special_tokens:
            return encode_words(self.tokenizer, text, self.prompt_template.values())
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_continuation(self, text: str, split_special_tokens: bool = True) -> list[int]:
        """As `encode_text`, of a text behind another one; raises `ValueError` if digits merge with what follows."""
        return ids_behind(text, lambda whole: self.encode_text(whole, split_special_tokens))

    def encode_prompt(self, prompt: str, split_special_tokens: bool = True) -> list[int]:
        """As `encode_text`, of a prompt: where it ends in the lead-in of an action, that is joined as its ids."""
        before, after = around_words(self.prompt_template, "action")
        lead_in, lead_in_ids = self._lead_in
        if not lead_in_ids or not (prompt.startswith(before) and prompt.endswith(after + lead_in)):
            return self.encode_text(prompt, split_special_tokens)
        return [*self.encode_text(prompt.removesuffix(lead_in), split_special_tokens), *lead_in_ids]

    @property
    def _lead_in(self) -> tuple[str, list[int]]:
        """What stands between an action's prompt and the action, and its ids; nothing where the model writes it."""
        config = self.action_config or {}
        return (config["lead_in"], config["lead_in_ids"]) if config.get("lead_in_ids") else ("", [])

    def row_start(self, images: int) -> list[int]:
        """Token ids before the text of a row that has no other row before it: BOS and image tokens."""
        return [self.tokenizer.bos_token_id, *[self.image_token_id] * (self.num_image_tokens * images)]

    def tidied(self, prompt: str) -> str:
        """A prompt as training has it, without stray blanks; see `prompt_texts.py`."""
        return tidied(prompt, self.prompt_template, self._lead_in[0])

    def _pictures(self, images: Any, texts: list[str], marks: Sequence[str], check: bool) -> tuple[Any, list[int]]:
        """Pictures in the order of `cameras`, and how many belong to each text.

        Args:
            marks: placeholder and BOS where they are not text.
            check: whether actions need the pictures of training, unless they are explicitly given none. Training
                itself asks for no tensors and is not checked: its questions may be worded like an action's prompt.
        """
        beginning = around_words(self.prompt_template, "action")[0]
        acting = [bool(self.action_config) and without(text, marks).lstrip().startswith(beginning) for text in texts]
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
            return [*self.row_start(images), *self.encode_prompt(self.tidied(text), split_special_tokens)]
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
        if not padding or padding == "do_not_pad":
            width = 0
        padded: dict[str, list[list[int]]] = {}
        for row in rows:
            gap = max(width - len(row), 0)
            left, right = (gap, 0) if side == "left" else (0, gap)
            for name, (values, fill) in self.token_inputs(row).items():
                padded.setdefault(name, []).append([fill] * left + values + [fill] * right)
        return BatchFeature(padded, tensor_type=return_tensors)

    def token_inputs(self, row: list[int]) -> dict[str, tuple[list[int], int]]:
        """Everything the model is told about the tokens of a row, by name: one value per token, and padding's value.

        Training asks the same of a prompt and of an answer, which is a row without a beginning.
        """
        return {"input_ids": (row, self.tokenizer.pad_token_id), "attention_mask": ([1] * len(row), 0)}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in transformers, with a tokenizer that both of its generations can load."""
        upload = {name: kwargs.pop(name) for name in UPLOAD_ARGUMENTS if name in kwargs}
        repo_id = kwargs.pop("repo_id", None) or Path(save_directory).name
        written = super().save_pretrained(save_directory, **kwargs)
        make_tokenizer_loadable(Path(save_directory))
        if push_to_hub:  # which saves once more, so that what goes up is what lies here
            self.push_to_hub(repo_id, **upload)
        return written

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors a call returns."""
        return ["input_ids", "attention_mask", "pixel_values"]


def images_per_row(images: Any, texts: list[str], image_token: str | None = None) -> list[int]:
    """How many pictures belong to each text; raises `ValueError` where that is not clear.

    Args:
        image_token: the placeholder, if texts may have any.
    """
    placeholders = [text.count(image_token) if image_token else 0 for text in texts]
    if images is None:
        counts = [0] * len(texts)
    elif isinstance(images, (list, tuple)) and all(isinstance(entry, (list, tuple)) for entry in images):
        counts = [len(flatten_images(entry)) for entry in images]
    elif any(placeholders):
        counts = placeholders if sum(placeholders) == len(flatten_images(images)) else [-1]
    else:
        pictures = len(flatten_images(images))
        counts = [pictures] if len(texts) == 1 else [1] * pictures
    wrong = len(counts) != len(texts) or any(marks not in (0, count) for marks, count in zip(placeholders, counts))
    if wrong or -1 in counts:
        pictures = 0 if images is None else len(flatten_images(images))
        raise ValueError(
            f"got {pictures} images for {len(texts)} texts with {sum(placeholders)} {image_token or ''} placeholders, "
            "expected one image per text, or one per placeholder, or a list of images per text"
        )
    return counts
