"""The policy: a model of the family in this process, or a `gen-vla serve` that is asked.

A batch is LeRobot's: pictures float [B, 3, H, W] in [0, 1] under `observation.images.*`, `task` a list of B
instructions, `action` float [B, T, D] in the units of the data set for training; for a model that takes the robot's
state, `observation.state` float [B, P] in the same units.
"""

import importlib
import os
from collections import deque
from collections.abc import Iterable
from copy import copy
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .configuration_gen_vla import SAVED, GenVLAConfig, saved_settings
from .processor_gen_vla import save_settings


QUESTION = "query_text"  # where LeRobot's rollout puts what `/vqa` asks


class GenVLAPolicy(PreTrainedPolicy):
    """Acts, trains and answers; raises `ValueError` for a model that cannot act, a camera without a picture, or
    actions of another size."""

    config_class = GenVLAConfig
    name = "gen_vla"

    def __init__(self, config: GenVLAConfig, dataset_stats: Any = None, dataset_meta: Any = None):
        super().__init__(config)
        self.config: GenVLAConfig = config
        config.validate_features()
        self.client = self.model = self.processor = None
        if config.server:
            self.client = connect(config.server)
            self.horizon, self.action_dim = (self.client.metadata[name] for name in ("action_horizon", "action_dim"))
            self.names, self.takes_state = self.client.metadata["cameras"], self.client.metadata["needs_state"]
        else:
            self.model, self.processor = load(config)
            action = self.model.config.action_config
            self.horizon, self.action_dim = action["horizon"], action["action_dim"]
            self.statistics = self.model.get_action_stats(config.unnorm_key)
            self.names, self.takes_state = getattr(self.processor, "cameras", None), bool(action.get("state"))
        self.cameras = self._chosen(config.image_features) if config.image_features else None
        self.steps = config.n_action_steps or self.horizon
        if self.steps > self.horizon:
            raise ValueError(f"got n_action_steps {self.steps}, expected at most the model's {self.horizon}")
        expected = config.action_feature
        if expected is not None and tuple(expected.shape) != (self.action_dim,):
            raise ValueError(
                f"got an environment or data set with actions of shape {tuple(expected.shape)}, expected "
                f"({self.action_dim},) as the model writes them; use the robot that the model was trained for"
            )
        self.reset()

    # Acting

    def reset(self) -> None:
        self._action_queue: deque[Tensor] = deque()
        if self.client is not None:
            self.client.reset(unnorm_key=self.config.unnorm_key)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action, float32 [B, D]; the model is asked when a chunk has been carried out."""
        self.eval()
        if not self._action_queue:
            self._action_queue.extend(self.predict_action_chunk(batch)[:, : self.steps].unbind(dim=1))
        return self._action_queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Actions float32 [B, T, D] in the units of the data set."""
        rows, words = self._pictures(batch), instructions(batch, self.config.instruction)
        if self.client is not None:
            told = [{"prompt": text} for text in words]
            if self.takes_state:
                told = [{**of, "state": state} for of, state in zip(told, self._states(batch), strict=True)]
            answers = [self.client.act({**row, **of}) for row, of in zip(rows, told, strict=True)]
            return torch.from_numpy(np.stack(answers)).to(self.config.device)
        state = {"state": self._states(batch), "unnorm_key": self.config.unnorm_key} if self.takes_state else {}
        inputs = self.processor.action_inputs(self._shown(rows), words, **state).to(self.model.device)
        prediction = self.model.predict_actions(**inputs, unnorm_key=self.config.unnorm_key)
        return torch.as_tensor(np.asarray(prediction.actions), dtype=torch.float32).to(self.config.device)

    # Answering

    def supports_text_generation(self) -> bool:
        """Whether the model answers questions: all do but the flow-matching one."""
        kind = self.client.metadata["model_type"] if self.client is not None else self.model.config.model_type
        return kind != "pi0_flow"

    @torch.no_grad()
    def generate_text(self, batch: dict[str, Any]) -> str:
        """The answer to the question in `query_text` about the first camera's picture."""
        question = batch.get(QUESTION)
        question = question[0] if isinstance(question, (list, tuple)) and question else question
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"got no question, expected one under {QUESTION}")
        [row, *_] = self._pictures(batch)
        if self.client is not None:
            return self.client.ask(row, question)
        picture = Image.fromarray(next(iter(row.values())))
        inputs = self.processor.question_inputs([picture], [question]).to(self.model.device)
        output = self.model.generate(**inputs, max_new_tokens=self.config.max_answer_tokens, do_sample=False)
        written = output[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(written, skip_special_tokens=True)[0].strip()

    # Training

    def get_optim_params(self) -> Any:
        """All that train; a frozen encoder stays frozen."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The paper's loss on a batch of robot data: the mean cross-entropy of the tokens that write the actions.

        Steps behind the end of an episode (`action_is_pad` bool [B, T]) do not count. Nothing is co-trained here, and
        tokens have no weights: that is `gen-vla train`.
        """
        if self.model is None:
            raise ValueError("got a policy that asks a server, expected one that holds its model, to train it")
        shown, words = self._shown(self._pictures(batch)), instructions(batch, self.config.instruction)
        states = [(state, self.config.unnorm_key) for state in self._states(batch)] if self.takes_state else ()
        prompts = [
            self.processor.action_prompt(text, *state) for text, state in zip(words, states or [()] * len(words))
        ]
        rows = [self._row(*row) for row in zip(shown, prompts, *self._targets(batch), strict=True)]
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        fill |= dict.fromkeys(getattr(self.processor, "answer_types", {}), 0)
        inputs = {
            name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value)
            for name, value in fill.items()
        }
        for name in rows[0].keys() - fill.keys():
            inputs[name] = torch.cat([torch.as_tensor(row[name]) for row in rows])
        device = self.model.device
        output = self.model(**{name: value.to(device) for name, value in inputs.items()})
        return output.loss, {"loss": output.loss.item(), "tokens": int((inputs["labels"] != -100).sum())}

    def _targets(self, batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Actions float64 [B, T, D] in [-1, 1], and which steps are padding, bool [B, T]."""
        actions = batch["action"].detach().cpu().numpy()
        if actions.shape[1:] != (self.horizon, self.action_dim):
            raise ValueError(
                f"got actions of shape {list(actions.shape)}, expected [B, {self.horizon}, {self.action_dim}]"
            )
        padding = batch.get("action_is_pad")
        none = np.zeros(actions.shape[:2], dtype=bool)
        states = (self._states(batch),) if self.takes_state else ()
        normalized = self._code("action_statistics").normalize_actions(actions, self.statistics, *states)
        return normalized.astype(np.float64), none if padding is None else padding.cpu().numpy()

    def _states(self, batch: dict[str, Any]) -> np.ndarray:
        """The robot's state of each row, float64 [B, P]."""
        if OBS_STATE not in batch:
            raise ValueError(
                f"got a batch with {sorted(batch)}, expected the robot's state under {OBS_STATE}: the model takes it"
            )
        return batch[OBS_STATE].detach().cpu().double().numpy()

    def _row(self, pictures: Any, asked: str, action: np.ndarray, padding: np.ndarray) -> dict[str, Any]:
        """Token ids, mask and labels of one row, and its pixels."""
        pictures = pictures if isinstance(pictures, list) else [pictures]
        prompt = self.processor.row_inputs([pictures], [asked], [True])
        answer = self._answer(action, padding)
        before = prompt.pop("input_ids")[0]
        types = getattr(self.processor, "answer_types", {})
        row = {name: prompt.pop(name)[0] + [value] * len(answer) for name, value in types.items()}
        return {
            **prompt,
            **row,
            "input_ids": before + answer,
            "attention_mask": [1] * (len(before) + len(answer)),
            "labels": [-100] * len(before) + answer,
        }

    def _answer(self, action: np.ndarray, padding: np.ndarray) -> list[int]:
        """The tokens of an action [T, D] and EOS, or those of its first steps where the others are padding [T]."""
        config, strings = self.processor.action_config, self.processor.action_strings
        lead_in = "" if config["lead_in_ids"] else strings.lead_in
        if not padding.any():
            return [*self.grammar.token_ids(lead_in + strings.encode(action)), self.processor.tokenizer.eos_token_id]
        # Whatever the last steps are, the tokens before them are the same.
        binary = np.isin(np.arange(self.action_dim), config.get("binary_dims") or ())
        texts = []
        for low, high in ((-1.0, 0.0), (1.0, 1.0)):
            filled = np.where(padding[:, None], np.where(binary, high, low), action)
            texts.append(self.grammar.token_ids(lead_in + strings.encode(filled)))
        same = [low for low, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))]
        while same and not self.grammar.text_of[same[-1]].strip():  # what separates steps belongs to the later one
            same.pop()
        return same

    # Files

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """The policy's `config.json` and pipelines, and beside them the model as a repository of the family.

        LeRobot from 0.6 on passes the policy's `state_dict` where FSDP holds its weights in parts.
        """
        config = copy(self.config)
        if self.model is not None:
            whole = state_dict and {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
            self.model.save_pretrained(save_directory / SAVED, state_dict=whole)
            self.processor.save_pretrained(save_directory / SAVED)
            config.checkpoint_path = SAVED
        save_settings(config, save_directory)

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: Any, *, config: GenVLAConfig | None = None, **kwargs: Any
    ) -> "GenVLAPolicy":
        """A policy that was saved: a folder or a repository with the model in a folder of it, or its name.

        LeRobot's rollout passes `None` where settings alone name the model.
        """
        hub = {name: kwargs.pop(name, None) for name in ("revision", "cache_dir", "token")}
        rest = {name: kwargs[name] for name in ("dataset_stats", "dataset_meta") if name in kwargs}
        if pretrained_name_or_path is not None:
            folder = Path(pretrained_name_or_path)
            if not folder.is_dir():
                folder = Path(snapshot_download(str(pretrained_name_or_path), **hub))
            config = config or PreTrainedConfig.from_pretrained(folder)  # which reads the type
            config.pretrained_path = folder
        return cls(config, **rest).to(config.device).eval()

    # Pictures

    def _chosen(self, keys: Iterable[str]) -> dict[str, str]:
        return chosen_pictures(self.names, self.config.cameras, list(keys))

    def _pictures(self, batch: dict[str, Any]) -> list[dict[str, np.ndarray]]:
        """Per row, the picture of each camera by name, uint8 [H, W, 3]."""
        found = {}
        if self.cameras is None:  # LeRobot's rollout makes the policy before it knows the robot
            self.cameras = self._chosen(key for key in batch if key.startswith(OBS_IMAGES))
        for name, key in self.cameras.items():
            if key not in batch:
                raise ValueError(f"got a batch with {sorted(batch)}, expected a picture under {key}")
            pictures = batch[key]
            if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
                raise ValueError(
                    f"got {key} of shape {list(pictures.shape)} and {pictures.dtype}, expected floats [B, 3, H, W]"
                )
            if not (pictures.min() >= 0 and pictures.max() <= 1):
                raise ValueError(f"got {key} with values outside [0, 1], expected pictures that are not normalised")
            found[name] = (255 * pictures).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]

    def _shown(self, rows: list[dict[str, np.ndarray]]) -> list[Any]:
        """The same as the processor takes it: a picture, or a list of them."""
        shown = [[Image.fromarray(picture) for picture in row.values()] for row in rows]
        return shown if self.names else [row[0] for row in shown]

    @cached_property
    def grammar(self) -> Any:
        return self._code("action_grammar").grammar_from_action_config(self.processor.action_config)

    def _code(self, module: str) -> Any:
        return importlib.import_module(f"{type(self.processor).__module__.rpartition('.')[0]}.{module}")


def load(config: GenVLAConfig) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    name = config.checked_checkpoint()
    saved_settings(name)
    dtype: Any = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    return AutoModel.from_pretrained(name, trust_remote_code=True, dtype=dtype).eval(), processor


def connect(address: str) -> Any:
    """A client of `gen-vla serve`; raises `ValueError` with what to install."""
    try:
        from gen_vla.serving import PolicyClient
    except ModuleNotFoundError as error:
        raise ValueError(
            f"got no {error.name}, expected it to ask {address}; pip install websockets msgpack, and "
            "pip install --no-deps gen-vla"
        ) from error
    return PolicyClient(address, os.environ.get("GEN_VLA_API_KEY") or None, timeout=60.0)


def chosen_pictures(names: list[str] | None, given: dict[str, str], keys: list[str]) -> dict[str, str]:
    """The observation's key of each of the model's cameras, in the model's order; `names` is `None` for one of any
    name. Raises `ValueError` where it is not clear which of the pictures `keys` is which."""
    short = {key.rsplit(".", 1)[-1]: key for key in keys}
    found = {name: short.get(key, key) for name, key in given.items()}
    if names:
        found = {name: found.get(name) or short.get(name) for name in names}
    elif not found and len(keys) == 1:
        found = {"image": keys[0]}
    if not found or (not names and len(found) > 1) or not set(found.values()) <= set(keys):
        wanted = f"cameras {', '.join(names)}" if names else "one camera"
        example = (names or ["image"])[0]
        raise ValueError(
            f"got the pictures {', '.join(keys)} and cameras {given} for a model of {wanted}; say which picture is "
            f"which, as in --policy.cameras='{{{example}: {keys[0]}}}'"
        )
    return found


def instructions(batch: dict[str, Any], instead: str | None = None) -> list[str]:
    """The `task` of each row, or what stands instead where it is blank; raises `ValueError` without one."""
    words = batch.get("task")
    words = [words] if isinstance(words, str) else list(words or [])
    words = [text if isinstance(text, str) and text.strip() else instead for text in words]
    if not words or None in words:
        raise ValueError(
            f"got task {batch.get('task')}, expected an instruction for each row; pass --dataset.single_task, or "
            "--policy.instruction where the environment has none"
        )
    return words
