"""A data set's row to a prompt and its answer: pictures decoded, instruction and pictures augmented, action spelled.

    robot row             prompt "In: What action should the robot take to close the drawer?\\nOut:\\n"
                          completion "+0.0312-0.1200..."                            source "robot/bridge_orig"
    vision-language row   prompt "In: How many drawers are there?\\nOut:"
                          completion " two", more_turns for a conversation          source "vision_language/onevision"

A chunk's steps behind the end of an episode repeat its last action, so that every chunk is spelled alike, and are not
supervised: nobody recorded them, and a displacement that is repeated goes on.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from gen_vla.processors import normalize_actions
from gen_vla.processors.image_processing_openvla_plus import resize
from gen_vla.processors.prompt_texts import ControlTokenError
from gen_vla.processors.robot_state import RobotStateError
from gen_vla.training.mixing.encoded_pictures import PictureError, decode_picture


ROBOT, VISION_LANGUAGE = "robot", "vision_language"


class RowTooLong(ValueError):
    """A row that does not fit into the model's context."""


class RowOverLimit(RowTooLong):
    """A row that fits, and is longer than the recipe takes (`data.max_tokens`)."""


BAD_ROW = (PictureError, RowTooLong, ControlTokenError, RobotStateError)  # what a single row may be


@dataclass(frozen=True)
class RowPreparer:
    """Turns rows of data sources (`data_source.py`) into what `CoTrainingCollator` takes. Can be pickled."""

    processor: Any  # knows the prompts and the action format
    norm_stats: dict[str, Any]  # statistics of the robot data sets by key
    label_decimals: int | None = None  # decimals kept in the labels; `None` for all
    augment_instruction: Callable[[str, int], str] | None = None  # (instruction, place in the run) -> instruction
    augment_picture: Callable[[Image.Image, str], Image.Image] | None = None  # (picture, name of place and camera)
    # A prepared vision-language row as it fits, perhaps without its last turns; raises `RowTooLong` or
    # `ControlTokenError` for one that cannot be used. All actions are of one length, which is the recipe's.
    fit: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def __call__(self, row: dict[str, Any], source: str, place: int) -> dict[str, Any]:
        """One prepared row.

        Args:
            source: its name, `robot/KEY` or `vision_language/NAME`.
            place: the row's number in the run, which seeds its augmentation.

        Returns:
            `images` (PIL, RGB), `prompt`, `completion`, `more_turns`, `source`, `identity`; of a robot row
            `action_is_pad` bool [T], the steps behind the end of its episode.
        """
        images = [decode_picture(picture, row["identity"]) for picture in row["images"]]
        kind, _, name = source.partition("/")
        if kind == ROBOT:
            if self.augment_picture is not None:
                images = [self.augment_picture(image, f"{place}/{number}") for number, image in enumerate(images)]
            turns = [self._robot_turn(row, name, place)]
        else:
            turns = [self._question_turn(turn) for turn in row["turns"]]
        prepared = {"images": images, **turns[0], "more_turns": turns[1:]}
        prepared |= {"source": source, "identity": row["identity"]}
        return self.fit(prepared) if kind != ROBOT and self.fit is not None else prepared

    def _robot_turn(self, row: dict[str, Any], key: str, place: int) -> dict[str, Any]:
        prompt, strings = self.prompt(row, key, place), self.processor.action_strings
        # Where the lead-in is no part of the prompt (legacy), the model has to write it.
        lead_in = "" if self.processor.action_config["lead_in_ids"] else strings.lead_in
        answer = lead_in + strings.encode(self.normalized(row, key))
        padding = np.asarray(row["action_is_pad"], dtype=bool)
        return {"prompt": prompt, "completion": answer, "action_is_pad": padding}

    def prompt(self, row: dict[str, Any], key: str, place: int) -> str:
        """What asks for a robot row's action, its instruction augmented."""
        instruction = row["instruction"]
        if self.augment_instruction is not None:
            instruction = self.augment_instruction(instruction, place)
        state = (row["state"], key) if self.processor.takes_state else ()
        return self.processor.action_prompt(instruction, *state)

    def normalized(self, row: dict[str, Any], key: str) -> np.ndarray:
        """The action chunk in [-1, 1], float64 [T, D], rounded as the labels are."""
        actions = np.asarray(row["action"], dtype=np.float64)
        horizon, action_dim = (self.processor.action_config[name] for name in ("horizon", "action_dim"))
        if actions.shape != (horizon, action_dim):
            raise ValueError(
                f"{row['identity']}: got an action of shape {list(actions.shape)}, expected actions.horizon="
                f"{horizon} by actions.action_dim={action_dim}; correct the recipe or the data set"
            )
        values = normalize_actions(actions, self.norm_stats[key]["action"], row.get("state")).astype(np.float64)
        return values if self.label_decimals is None else np.round(values, self.label_decimals)

    def _question_turn(self, turn: dict[str, str]) -> dict[str, str]:
        question = turn["question"].strip()  # it is empty where a picture alone asks for its caption
        prompt = self.processor.prompt_template["question"].format(question=question)
        return {"prompt": prompt, "completion": self.processor.answer_text(turn["answer"])}


def augment_resized(
    picture: Image.Image,
    name: str,
    size: int | None,
    augment: Callable[[Image.Image, str], Image.Image],
    resize_strategy: str = "resize-naive",
) -> Image.Image:
    """A picture resized as the image processor does it, if it makes squares of this size, and changed, which takes the
    time of its pixels."""
    return augment(picture if size is None else resize(picture, size, resize_strategy), name)


def row_generator(seed: int, purpose: str, row: int | str) -> np.random.Generator:
    """Random numbers, the same for the same seed, purpose and row, in whichever process and order it is read."""
    key = hashlib.blake2b(f"{seed}\0{purpose}\0{row}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "little"))
