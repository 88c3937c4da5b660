"""A model and its processor as a server uses them: batches of checked requests in, actions and answers out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image

from gen_vla.evaluation.policies.cameras import camera_names, pictures_per_action
from gen_vla.evaluation.policies.flow import FLOW, check_answers, starting_noise
from gen_vla.evaluation.policies.states import state_arguments, takes_state
from gen_vla.processors import normalize_actions, unnormalize_actions
from gen_vla.processors.action_statistics import action_bounds
from gen_vla.processors.relative_actions import to_relative
from gen_vla.serving.layouts import Layouts
from gen_vla.serving.requests import Request, Requests, Session


MAX_ANSWER_TOKENS = 64
TOLERANCE = 0.01  # how far a decided step may lie outside the range of actions, in widths of it
DESCRIPTIONS = ("names", "units", "fps", "displacements", "q01", "q99")  # of a data set's actions


@dataclass(frozen=True)
class Answer:
    actions: np.ndarray | None  # float32 [T, D], in the units of its data set; None for a question
    text: str  # the action string, or the answer to a question
    passes: int  # forward passes of its batch
    rows: int  # requests in its batch


class ServedPolicy:
    """Acts and answers, in the units of `default_key` where a request names no data set; raises `ValueError` for a
    model that cannot act, or a key it has no statistics for."""

    def __init__(
        self, model: Any, processor: Any, name: str, default_key: str | None = None, layouts: Layouts | None = None
    ):
        self.model, self.processor, self.name = model, processor, name
        self.continues = False  # whether it takes `prefix_actions`, see `warm_up`
        self.fixed_sizes = model.device.type == "cuda"  # of batches
        names = camera_names(processor)
        self.cameras = tuple(names) if names else None
        action = getattr(model.config, "action_config", None) or {}
        keys = list(model.config.norm_stats or {})
        if not action or not keys:
            raise ValueError(
                f"got {name}, which has no action format or no statistics, expected a model that was trained to act; "
                "this one answers questions at most"
            )
        self.states = {key: model.config.norm_stats[key]["proprio"] for key in keys if takes_state(processor)}
        self.requests = Requests(
            layouts or Layouts(self.cameras),
            keys,
            default_key,
            action["action_dim"],
            action["horizon"],
            {key: len(found["q01"]) for key, found in self.states.items()},
        )
        if default_key is not None:
            self.requests.checked_key(default_key)
        self.answers = model.config.model_type != FLOW

    def describe(self) -> dict[str, Any]:
        """What a client learns first: names, rates and ranges of actions, cameras, sizes."""
        requests = self.requests
        statistics = {key: self.model.get_action_stats(key) for key in requests.unnorm_keys}
        data_sets = {
            key: {name: plain(found[name]) for name in DESCRIPTIONS if found.get(name) is not None}
            for key, found in statistics.items()
        }
        for key, found in self.states.items():
            data_sets[key]["state"] = {name: plain(found[name]) for name in ("q01", "q99")}
        key = requests.default_key or (requests.unnorm_keys[0] if len(requests.unnorm_keys) == 1 else None)
        return {
            "server": "gen-vla",
            "version": version("gen-vla"),
            "model": self.name,
            "model_type": self.model.config.model_type,
            "action_dim": requests.action_dim,
            "action_horizon": requests.horizon,
            "action_chunk_size": requests.horizon,
            "action_names": data_sets[key].get("names") if key else None,
            "action_units": data_sets[key].get("units") if key else None,
            "fps": data_sets[key].get("fps") if key else None,
            "unnorm_key": key,
            "available_unnorm_keys": list(requests.unnorm_keys),
            "data_sets": data_sets,
            "cameras": list(self.cameras) if self.cameras else None,
            "pictures_per_action": pictures_per_action(self.processor),
            "layouts": {name: layout.cameras for name, layout in requests.layouts.known.items()},
            "needs_state": bool(self.states),
            "answers_questions": self.answers,
            "continues_chunks": self.continues,
        }

    def read(self, message: Any, session: Session) -> Request:
        """The request in a message; raises `ValueError` or `TypeError` for a mistake, or what this model cannot do."""
        request = self.requests.read(message, session)
        if request.asks:
            check_answers(self.model.config)
        else:
            state = (request.state, request.unnorm_key) if self.states else ()
            self.processor.action_prompt(request.words, *state)
        if request.prefix is not None and len(request.prefix):
            if not self.continues:
                raise ValueError("got prefix_actions, expected none: this model's code cannot continue a chunk")
            check_prefix(request.prefix, self.model.get_action_stats(request.unnorm_key), request.state)
        return request

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        return self._answer(requests) if requests[0].asks else self._act(requests)

    def batch_sizes(self, most: int) -> list[int]:
        """Sizes of batches up to `most` requests: on a GPU powers of two, for each of which passes are recorded."""
        return [2**power for power in range((most - 1).bit_length() + 1)] if self.fixed_sizes else [1]

    def _act(self, requests: Sequence[Request]) -> list[Answer]:
        asked = len(requests)
        if self.fixed_sizes:
            requests = [*requests, *[requests[-1]] * (self.batch_sizes(asked)[-1] - asked)]
        single = pictures_per_action(self.processor) == 1
        pictures = [request.pictures[0] if single else list(request.pictures) for request in requests]
        keys = [request.unnorm_key for request in requests]
        state = state_arguments(self.processor, [request.state for request in requests], keys)
        inputs = self.processor.action_inputs(pictures, [request.words for request in requests], **state)
        options = starting_noise(self.model, [request.noise_name for request in requests])
        if any(request.prefix is not None and len(request.prefix) for request in requests):
            nothing = np.zeros((0, self.requests.action_dim))
            options["prefix_actions"] = [nothing if each.prefix is None else each.prefix for each in requests]
        prediction = self.model.predict_actions(**inputs.to(self.model.device), unnorm_key=keys, **options)
        shape = (len(requests), self.requests.horizon, self.requests.action_dim)
        actions = np.asarray(prediction.actions, dtype=np.float32)
        if actions.shape != shape or not np.isfinite(actions).all():
            raise RuntimeError(f"got actions of shape {list(actions.shape)}, expected finite ones of {list(shape)}")
        texts, passes = prediction.text, prediction.forward_passes
        return [Answer(*row, passes, asked) for row in zip(actions, texts, strict=True)][:asked]

    @torch.no_grad()
    def _answer(self, requests: Sequence[Request]) -> list[Answer]:
        inputs = self.processor.question_inputs(
            [request.pictures[0] for request in requests], [request.words for request in requests]
        ).to(self.model.device)
        output = self.model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)
        written = output[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(written, skip_special_tokens=True)
        return [Answer(None, text.strip(), written.shape[1], len(requests)) for text in texts]

    def warm_up(self, most: int) -> None:
        """Acts once in batches of each size up to `most` rows, so that compiling and recording keep no robot waiting;
        raises `ValueError` if the model cannot act."""
        grey = (Image.new("RGB", (64, 64), "grey"),) * pictures_per_action(self.processor)
        key = self.requests.default_key or self.requests.unnorm_keys[0]
        asked = Request(grey, "stay", unnorm_key=key)
        asked = replace(asked, state=self.processor.neutral_state(key)) if self.states else asked
        answers = [self.run([asked] * size) for size in self.batch_sizes(most)]
        if self.requests.horizon > 1:
            try:
                self.run([replace(asked, prefix=np.asarray(answers[0][0].actions)[:1])])
                self.continues = True
            except ValueError:  # other styles, flow matching, or an older repository's code
                self.continues = False


def check_prefix(steps: np.ndarray, statistics: dict[str, Any], state: np.ndarray | None) -> None:
    """Raises `ValueError` for decided steps float [k, D] that the model cannot write: it would begin with others."""
    entry, relative = {**statistics, "relative": None}, statistics.get("relative")
    told = to_relative(steps, state, relative) if relative else steps
    low, high, mask = action_bounds(entry, steps.shape[-1])
    written = unnormalize_actions(normalize_actions(told, entry), entry)
    written = np.where(mask, written, np.clip(written, -1, 1))
    wrong = np.argwhere(~np.isclose(written, told, rtol=1e-5, atol=TOLERANCE * (high - low)))
    if len(wrong):
        step, dim = wrong[0]
        raise ValueError(
            f"got {told[step, dim]:g} in step {step}, dimension {dim} of prefix_actions"
            f"{', relative to the state' if relative else ''}, expected values that the model writes, "
            f"{low[dim] if mask[dim] else -1:g} to {high[dim] if mask[dim] else 1:g}, in the units of the actions; "
            "leave prefix_actions out"
        )


def plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
