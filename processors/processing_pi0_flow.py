"""Processor of the flow-matching π0, whose prompt is the instruction and a newline:

<image> x N <bos>  pick up the can \\n
"""

from collections.abc import Sequence
from typing import Any

from .action_strings import check_binary_dims, check_sizes
from .processing_openvla_plus import OpenVLAPlusProcessor
from .prompt_texts import prompt_parts


# isort: split
# What those files import: transformers 4 copies from a local folder only what this file names itself.
from .action_bins import ActionBins  # noqa: F401
from .action_grammar import ActionGrammar  # noqa: F401
from .action_statistics import normalize_actions  # noqa: F401
from .image_processing_openvla_plus import flatten_images  # noqa: F401
from .relative_actions import to_relative  # noqa: F401
from .rgb_pictures import to_rgb  # noqa: F401
from .robot_state import StateInputs  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401


PI0_FLOW_PROMPT_TEMPLATE = {"action": "{instruction}\n", "question": "{question}\n", "answer": "{answer}"}
NO_WORDS = "the flow-matching π0 writes no words: it has no output layer for them; the other families answer questions"


def make_flow_action_config(action_dim: int = 7, horizon: int = 1, binary_dims: Sequence[int] = ()) -> dict[str, Any]:
    """The `action_config` of actions float [T, D] in [-1, 1], to which no tokens belong.

    Args:
        binary_dims: dimensions that are 0 or 1 (a gripper); predictions are rounded there.
    """
    check_sizes(action_dim=action_dim, horizon=horizon)
    check_binary_dims(binary_dims, action_dim)
    return {
        "representation": "flow",
        "action_dim": action_dim,
        "horizon": horizon,
        "binary_dims": sorted(set(binary_dims)),
        "lead_in": "",
        "lead_in_ids": [],
    }


class Pi0FlowProcessor(OpenVLAPlusProcessor):
    """Processor of the flow-matching π0; arguments and calls are those of `OpenVLAPlusProcessor`."""

    default_prompt_template = PI0_FLOW_PROMPT_TEMPLATE

    def row_start(self, images: int) -> list[int]:
        """Token ids before the text of a row: image tokens, then BOS."""
        return [*[self.image_token_id] * (self.num_image_tokens * images), self.tokenizer.bos_token_id]

    def normalized_prompt(self, prompt: str) -> str:
        """A prompt as in training, with the newline at its end, which may be missing."""
        text, (_, after) = super().normalized_prompt(prompt), prompt_parts(self.prompt_template, "action")
        return text if text.endswith(after) or not text.strip() else text.rstrip() + after

    def question_inputs(self, image: Any, question: Any, return_tensors: str | None = "pt") -> Any:
        """Raises `ValueError`: this model answers no questions."""
        raise ValueError(f"got a question, expected an instruction for action_inputs: {NO_WORDS}")

    @property
    def action_strings(self) -> Any:
        """Raises `ValueError`: the actions of this model are vectors."""
        raise ValueError(
            f"got a request for an action's text, expected its vector (predict_actions(...).normalized): {NO_WORDS}"
        )
