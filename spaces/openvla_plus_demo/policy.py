"""A model of the family as this Space uses it: loaded by name with the code that comes with it, acting and answering.

Nothing but the model's own repository is needed: `processor.action_inputs` and `model.predict_actions` for actions,
`processor.question_inputs` and `model.generate` for questions.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import metadata_load
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor


DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
MAX_CHARACTERS = 200  # of an instruction or a question
MAX_ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Piece:
    """One token of an action string: its text, its probability, whether the format left any choice there."""

    text: str
    probability: float
    choice: bool


@dataclass(frozen=True)
class PredictedAction:
    text: str  # as the model wrote it
    pieces: tuple[Piece, ...]  # its tokens
    steps: np.ndarray  # float32 [T, 7], x, y, z in metres, roll, pitch, yaw in radians, gripper 0..1 with 1 = open
    normalized: np.ndarray  # float32 [T, 7], the same in [-1, 1], the range of the data set
    data_set: str  # whose units these are
    milliseconds: float  # from picture and instruction to the action
    forward_passes: int  # through the language model


class Policy:
    """A model and its processor, on the GPU if there is one.

    Attributes:
        cameras: whose pictures an action needs, in the order of training; empty for one picture of any camera.
        data_sets: those whose units the model knows.
    """

    def __init__(self, name: str):
        """Loads a folder or a name on the Hub, and acts once, so that a model that cannot act fails here; raises
        `OSError` if there is none, `ValueError` if it does not write actions, those of one arm, or knows no data set's
        units."""
        self.name = name
        check_config(name, AutoConfig.from_pretrained(name, trust_remote_code=True))  # before weights are loaded
        self.processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        self.model: Any = AutoModel.from_pretrained(name, trust_remote_code=True, dtype="auto").eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        cameras = tuple(getattr(self.processor, "cameras", None) or ())
        self.cameras: tuple[str, ...] = cameras if len(cameras) > 1 else ()
        self.data_sets: list[str] = list(self.model.config.norm_stats)
        self.act([Image.new("RGB", (64, 64))] * max(len(cameras), 1), "stay", self.data_sets[0])

    def act(self, pictures: Sequence[Image.Image], instruction: str, data_set: str) -> PredictedAction:
        """The action for what the cameras show, a picture of each, and what is asked, in the units of a data set;
        raises `ValueError` on an instruction that is empty or too long, or an unknown data set."""
        words = checked_words(instruction, "instruction")
        began = time.perf_counter()
        shown = dict(zip(self.cameras, pictures, strict=True)) if self.cameras else pictures[0]
        inputs = self.processor.action_inputs(shown, words).to(self.model.device)
        prediction = self.model.predict_actions(**inputs, unnorm_key=data_set)
        milliseconds = 1000 * (time.perf_counter() - began)
        return PredictedAction(
            text=prediction.text[0],
            pieces=self._pieces(prediction.token_ids[0].tolist(), prediction.digit_probabilities[0].tolist()),
            steps=prediction.actions[0],
            normalized=prediction.normalized[0],
            data_set=data_set,
            milliseconds=milliseconds,
            forward_passes=prediction.forward_passes,
        )

    def ask(self, picture: Image.Image, question: str) -> tuple[str, float]:
        """The model's answer in words, and the milliseconds it took; raises `ValueError` on a question that is empty
        or too long."""
        words = checked_words(question, "question")
        began = time.perf_counter()
        inputs = self.processor.question_inputs(picture, words).to(self.model.device)
        with torch.no_grad():
            output = self.model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)
        answer = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        return answer.strip(), 1000 * (time.perf_counter() - began)

    def _pieces(self, token_ids: list[int], probabilities: list[float]) -> tuple[Piece, ...]:
        """The tokens of an action, EOS left out; a walk through the grammar shows where there was a choice."""
        grammar, state, pieces = self.model.action_grammar, 0, []
        for token, probability in zip(token_ids, probabilities):
            if token == grammar.eos_token_id:
                break
            allowed = grammar.transitions[state]
            pieces.append(Piece(grammar.text_of[token], probability, len(allowed) > 1))
            state = allowed[token]
        return tuple(pieces)


def check_config(name: str, config: Any) -> None:
    """Raises `ValueError` for a model whose actions this Space cannot show, by its configuration."""
    if config.model_type == "pi0_flow":
        raise ValueError(
            f"got {name}, a flow-matching π0, expected a model that writes actions and answers: this Space shows "
            "the probabilities of what is written; gen-vla predict shows this model's actions"
        )
    action_config = getattr(config, "action_config", None)
    if not action_config:
        raise ValueError(
            f"got {name}, a model of type {config.model_type} without action_config, expected a policy: this model "
            "answers questions at most; train a policy from it, or name one"
        )
    if action_config.get("state"):
        raise ValueError(
            f"got {name}, a model that takes the robot's state, expected one without: this Space has pictures and "
            "words alone; gen-vla predict --state shows this model's actions"
        )
    if action_config.get("action_dim") != len(DIMENSIONS):
        raise ValueError(
            f"got {name} with action_dim={action_config.get('action_dim')}, expected {len(DIMENSIONS)} "
            f"({', '.join(DIMENSIONS)}); this Space shows the actions of one arm"
        )
    if not getattr(config, "norm_stats", None):
        raise ValueError(
            f"got {name} without statistics (norm_stats in config.json), expected those of a data set at least: they "
            "say how many millimetres and degrees the model's numbers are; name a model that was trained on robot data"
        )


def checked_words(text: str | None, what: str) -> str:
    words = (text or "").strip()
    if not words:
        raise ValueError(f"The {what} is empty. Write a few words, then try again.")
    if len(words) > MAX_CHARACTERS:
        raise ValueError(f"The {what} has {len(words)} characters; at most {MAX_CHARACTERS} fit. Shorten it.")
    return words


def model_names(folder: Path) -> tuple[str, str | None]:
    """The model, and the one to compare it with if there is one; raises `ValueError` if neither names a model.

    `GEN_VLA_MODEL` and `GEN_VLA_BASELINE` (folders, or names on the Hub) come before what `models:` lists in the front
    matter of the README. A local model is never compared with one on the Hub that nobody asked for.
    """
    chosen, baseline = os.environ.get("GEN_VLA_MODEL"), os.environ.get("GEN_VLA_BASELINE")
    if chosen:
        return chosen, baseline
    named = (metadata_load(folder / "README.md") or {}).get("models")
    if not named:
        raise ValueError(
            "got no model, expected its name on the Hub under `models:` in the front matter of README.md, or a folder "
            "in GEN_VLA_MODEL"
        )
    return named[0], baseline or (named[1] if len(named) > 1 else None)
