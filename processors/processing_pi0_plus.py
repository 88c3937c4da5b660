"""Processor of π0+: PaliGemma's layout of a row, and `token_type_ids`, which tell prompt from answer.

    <image> x N <bos>  What action should the robot take to pick up the can? \\n | +0.0312-0.1200... <eos>
    <image> x N <bos>  How many blocks are there? \\n                            | two <eos>
    0 ... 0     0      0 ...                                                     | 1 ...

Image tokens stand before BOS, and a newline ends the prompt; for actions it is the lead-in of the action format.
"""

from collections.abc import Mapping
from typing import Any

from .processing_openvla_plus import OpenVLAPlusProcessor


# isort: split
# What those files import: transformers 4 copies from a local folder only what this file names itself.
from .action_bins import ActionBins  # noqa: F401
from .action_grammar import ActionGrammar  # noqa: F401
from .action_strings import ActionStringProcessor  # noqa: F401
from .image_processing_openvla_plus import flatten_images  # noqa: F401
from .prompt_texts import PROMPT_TEMPLATE  # noqa: F401
from .rgb_pictures import to_rgb  # noqa: F401
from .text_tokens import encode_as_text  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401


PI0_PROMPT_TEMPLATE = {
    "action": "What action should the robot take to {instruction}?",
    "question": "{question}\n",
    "answer": "{answer}",
}


class Pi0PlusProcessor(OpenVLAPlusProcessor):
    """Processor of π0+; arguments and calls are those of `OpenVLAPlusProcessor`.

    A call also returns `token_type_ids` int64 [B, L]: 0 on image tokens, prompt and padding, 1 on an answer, which is
    a text without BOS under `add_special_tokens=False`, as TRL's collator passes it.
    """

    default_prompt_template = PI0_PROMPT_TEMPLATE

    def row_start(self, images: int) -> list[int]:
        """Token ids before the text of a row: image tokens, then BOS."""
        return [*[self.image_token_id] * (self.num_image_tokens * images), self.tokenizer.bos_token_id]

    def token_inputs(self, row: list[int]) -> dict[str, tuple[list[int], int]]:
        """As `OpenVLAPlusProcessor.token_inputs`; a row that does not begin with BOS, or image tokens and BOS, is an
        answer.
        """
        images = next((place for place, token in enumerate(row) if token != self.image_token_id), len(row))
        begins = row[images : images + 1] == [self.tokenizer.bos_token_id]
        return {**super().token_inputs(row), "token_type_ids": ([0 if begins else 1] * len(row), 0)}

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As `OpenVLAPlusProcessor.apply_chat_template`; `token_type_ids` are 1 from the first answer on.

        Raises:
            ValueError: if inputs are asked for of a conversation that ends in an answer: in training, the prompt would
                be supervised, too, whose tokens attend to those after them.
        """
        inputs = super().apply_chat_template(conversation, *args, **kwargs)
        if not kwargs.get("tokenize") or not kwargs.get("return_dict"):
            return inputs
        for row, messages in enumerate([conversation] if isinstance(conversation[0], Mapping) else conversation):
            roles = [message["role"] for message in messages]
            if roles[-1] == "assistant" and not kwargs.get("continue_final_message"):
                raise ValueError(
                    f"got a conversation that ends in an answer (row {row}), expected one that ends in a question: "
                    "the prompt of π0+ attends in both directions, and only answers are supervised. For TRL's "
                    "SFTTrainer give rows with 'prompt' and 'completion' instead of 'messages'; rows "
                    "without pictures are for CoTrainingCollator"
                )
            if roles[0] == "assistant":
                raise ValueError(f"got a conversation that begins with an answer (row {row}), expected a question")
            if "assistant" in roles:
                before = messages[: roles.index("assistant")]
                template = super().apply_chat_template(before, chat_template=kwargs.get("chat_template"))
                self._mark_answers(inputs, row, template.replace(self.image_token, ""))
        return inputs

    def _mark_answers(self, inputs: Any, row: int, prompt: str) -> None:
        """Sets `token_type_ids` of a row to 1 after its first prompt, a text with BOS and without pictures."""
        prompt_ids = self(text=[prompt], add_special_tokens=False, padding=False, return_tensors=None)["input_ids"][0]
        ids, mask, types = (inputs[name][row] for name in ("input_ids", "attention_mask", "token_type_ids"))
        places = [place for place, real in enumerate(mask) if real and int(ids[place]) != self.image_token_id]
        same = 0
        while same < len(prompt_ids) and int(ids[places[same]]) == prompt_ids[same]:
            same += 1
        for place in places[same:]:
            types[place] = 1

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors a call returns."""
        return ["input_ids", "attention_mask", "token_type_ids", "pixel_values"]
