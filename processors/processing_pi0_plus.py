"""Pictures and words to π0+'s inputs: PaliGemma's layout of a row, and which tokens are prompt and which answer.

Decides: that image tokens stand before BOS, that a newline ends the prompt and the answer follows it directly, and
`token_type_ids`:

    <image> x N <bos>  What action should the robot take to pick up the can? \\n | +0.0312-0.1200... <eos>
    <image> x N <bos>  How many blocks are there? \\n                            | two <eos>
    0 ... 0     0      0 ...                                                     | 1 ...

For actions the newline is the lead-in of the action format. Everything else is the family's processor; refuses to
know what that refuses to know.
"""

from .processing_openvla_plus import OpenVLAPlusProcessor


# isort: split
# What those files import: transformers 4 copies from a local folder only what this file names itself.
from .action_bins import ActionBins  # noqa: F401
from .action_grammar import ActionGrammar  # noqa: F401
from .action_strings import ActionStringProcessor  # noqa: F401
from .image_processing_openvla_plus import flatten_images  # noqa: F401
from .prompt_texts import PROMPT_TEMPLATE  # noqa: F401
from .rgb_pictures import to_rgb  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401


PI0_PROMPT_TEMPLATE = {
    "action": "What action should the robot take to {instruction}?",
    "question": "{question}\n",
    "answer": "{answer}",
}


class Pi0PlusProcessor(OpenVLAPlusProcessor):
    """Processor of π0+; arguments and calls are those of `OpenVLAPlusProcessor`.

    A call also returns `token_type_ids` int64 [B, L]: 0 on image tokens, prompt and padding, 1 on a text that
    continues another, as TRL's collator passes answers: without BOS, and with `add_special_tokens=False`.
    """

    default_prompt_template = PI0_PROMPT_TEMPLATE

    def row_start(self, images: int) -> list[int]:
        """Token ids before the text of a row: image tokens, then BOS."""
        return [*[self.image_token_id] * (self.num_image_tokens * images), self.tokenizer.bos_token_id]

    def token_inputs(self, row: list[int]) -> dict[str, tuple[list[int], int]]:
        """See `OpenVLAPlusProcessor.token_inputs`; a row that does not begin with BOS, or image tokens and BOS, is an
        answer.
        """
        images = next((place for place, token in enumerate(row) if token != self.image_token_id), len(row))
        begins = row[images : images + 1] == [self.tokenizer.bos_token_id]
        return {**super().token_inputs(row), "token_type_ids": ([0 if begins else 1] * len(row), 0)}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors a call returns."""
        return ["input_ids", "attention_mask", "token_type_ids", "pixel_values"]
