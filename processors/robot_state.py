"""The robot's state (proprioception) as an input: written into the prompt, or numbers beside it.

    In: What action should the robot take to pick up the can? State: 128 3 255\\nOut:

Each value is scaled to [-1, 1] by q01 and q99 of its data set, clipped, and written as one of 256 bins, as openpi does
for π0-FAST and π0.5 (`src/openpi/models/tokenizer.py`): bin b holds [b / 128 - 1, (b + 1) / 128 - 1). At most four
tokens a value, and digits are tokens of their own wherever actions are strings. The flow-matching π0 gets the scaled
values as numbers, in its own token.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .action_bins import ActionBins, codec_from_action_config
from .action_statistics import normalize_actions, select_statistics
from .action_strings import ActionStringProcessor
from .image_processing_openvla_plus import as_rows, is_batch, pictures_in_order
from .prompt_texts import checked_instruction, checked_text


STATE_BINS = 256
STATE_TEXT = " State: {state}"
# action_config["state"]: the model sees it, or actions are relative to it and no more.
SHOWN, REFERENCE = "input", "reference"


class RobotStateError(ValueError):
    """A state that is missing, has another length, or is not finite."""


class StateInputs:
    """For a processor: the texts of actions and questions, with the state where the model takes one.

    Attributes:
        state_statistics: `norm_stats` with the entry "proprio" alone, for a model that takes a state; else `None`.
    """

    action_config: dict[str, Any] | None
    cameras: list[str] | None
    prompt_template: dict[str, str]
    state_statistics: dict[str, Any] | None

    @property
    def action_strings(self) -> ActionStringProcessor | ActionBins:
        """A new codec of the model's action format."""
        if not self.action_config:
            raise ValueError("got a processor without action_config, expected one; it was not made for actions")
        return codec_from_action_config(self.action_config)

    @property
    def takes_state(self) -> bool:
        """Whether `action_inputs` needs the robot's state."""
        return bool((self.action_config or {}).get("state"))

    def neutral_state(self, unnorm_key: str | None = None) -> np.ndarray | None:
        """A state float64 [P] in the middle of a data set's, for trials without a robot; `None` if none is taken."""
        if not self.takes_state:
            return None
        statistics = select_statistics(self.state_statistics or {}, unnorm_key, "proprio")
        return np.add(statistics["q01"], statistics["q99"]) / 2

    def normalized_state(self, state: Any, unnorm_key: str | None = None) -> np.ndarray:
        """A state [P] in units, scaled to [-1, 1] and clipped, float32 [P]; `RobotStateError` for one that is missing,
        of another length, or not finite.
        """
        statistics = select_statistics(self.state_statistics or {}, unnorm_key, "proprio")
        width = len(statistics["q01"])
        if state is None:
            raise RobotStateError(
                f"got no state, expected the robot's, {width} numbers in the units of its data set: this model was "
                "trained with it; pass state=[...]"
            )
        values = np.asarray(state, dtype=np.float64)
        if values.shape != (width,) or not np.isfinite(values).all():
            found = f"shape {list(values.shape)}" if values.shape != (width,) else "NaN or infinity in it"
            raise RobotStateError(
                f"got a state with {found}, expected {width} finite numbers, as the data set has them: joints, or a "
                "pose and a gripper, in the order of training"
            )
        return normalize_actions(values, statistics)

    def action_prompt(self, instruction: str, state: Any = None, unnorm_key: str | None = None) -> str:
        """What asks for an action, without a lead-in; the instruction is lower-cased, as OpenVLA does."""
        words = checked_instruction(instruction, self.prompt_template)
        if not self.takes_state and state is not None:
            raise RobotStateError("got a state, expected none: this model was trained without it; leave it out")
        text = state_text(self.normalized_state(state, unnorm_key)) if self.takes_state else ""
        return self.prompt_template["action"].format(instruction=words, state=text)

    def question_prompt(self, question: str) -> str:
        """The prompt that asks a question about a picture, or without one."""
        words = self._without_marks(checked_text(question, "question").strip())
        return self.prompt_template["question"].format(question=words)

    def answer_text(self, answer: str) -> str:
        """What the model should write after `question_prompt`, without what ends it."""
        words = self._without_marks(checked_text(answer, "answer").strip())
        return self.prompt_template["answer"].format(answer=words)

    def _without_marks(self, words: str) -> str:
        """The words, if they may stand in a prompt."""
        return words

    def action_rows(
        self, image: Any, instruction: Any, state: Any, unnorm_key: str | Sequence[str] | None
    ) -> tuple[list[list[Any]], list[str], list[tuple[Any, Any]]]:
        """Of each row, the pictures in the order of `cameras`, the prompt, and the state with its key."""
        words = as_rows(instruction)
        states = self.state_rows(state, unnorm_key, len(words))
        prompts = [self.action_prompt(text, *row) for text, row in zip(words, states, strict=True)]
        alone = not isinstance(instruction, (list, tuple)) and not is_batch(image)
        rows = [image] if alone else as_rows(image)
        if len(rows) != len(prompts):
            raise ValueError(f"got {len(rows)} images and {len(prompts)} instructions, expected one of each per row")
        return [pictures_in_order(row, self.cameras) for row in rows], prompts, states

    def state_rows(self, state: Any, unnorm_key: str | Sequence[str] | None, rows: int) -> list[tuple[Any, Any]]:
        """The state, or `None`, and the key of each row of a batch; one row's may be a state [P] or [1, P]."""
        keys = [unnorm_key] * rows if unnorm_key is None or isinstance(unnorm_key, str) else list(unnorm_key)
        states: list[Any] = [None] * rows if state is None else list(state)
        if rows == 1 and states and np.ndim(states[0]) == 0 and states[0] is not None:
            states = [state]
        if len(states) != rows or len(keys) != rows:
            raise RobotStateError(
                f"got {len(states)} states and {len(keys)} unnorm_keys for {rows} observations, expected one each"
            )
        return list(zip(states, keys, strict=True))


def stacked_states(rows: Sequence[tuple[Any, Any]]) -> np.ndarray:
    """The states of `state_rows` in units, float64 [B, P], zeros behind shorter ones.

    It is no tensor, so that `inputs.to(device, torch.bfloat16)` does not round what actions are relative to.
    """
    states = [np.asarray(state, dtype=np.float64) for state, _ in rows]
    stacked = np.zeros((len(states), max(map(len, states))))
    for row, state in zip(stacked, states, strict=True):
        row[: len(state)] = state
    return stacked


def state_text(normalized: np.ndarray) -> str:
    """Bins of a state [P] in [-1, 1]: [-1.0, 0.0, 1.0] is "0 128 255"."""
    bins = np.floor((np.asarray(normalized, dtype=np.float64) + 1) * (STATE_BINS / 2))
    return " ".join(map(str, bins.clip(0, STATE_BINS - 1).astype(int).tolist()))


def template_with_state(prompt_template: dict[str, str], shown: bool) -> dict[str, str]:
    """Prompts whose action asks with the state, at the end of the instruction's line or turn, or without."""
    before, placeholder, after = prompt_template["action"].replace(STATE_TEXT, "").partition("{instruction}")
    end = re.search(r"\n|<\||$", after)  # the latter as in <|im_end|>
    assert end is not None
    state = STATE_TEXT if shown else ""
    return {**prompt_template, "action": f"{before}{placeholder}{after[: end.start()]}{state}{after[end.start() :]}"}
