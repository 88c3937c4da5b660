"""What scripts written for OpenVLA expect of a model: loading options, statistics, the action of one observation.

    load_in_8bit, load_in_4bit    gone from transformers 5; here on both generations, as a `quantization_config`
    attn_implementation="flash_attention_2"    becomes "sdpa", with a warning: flash attention knows causal and full
        masks, not those of a draft tree (`tree_decoding.py`) or a prefix. On a GPU, PyTorch's own sdpa runs the same
        algorithm where there is no mask, as in the encoders.
    model.norm_stats = {...}      OpenVLA's way to add the statistics of a fine-tuning; here it is `config.norm_stats`

A model with missing weights neither acts nor answers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BitsAndBytesConfig, LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.utils import logging

from .action_statistics import select_statistics, statistics_per_row


logger = logging.get_logger(__name__)


@dataclass
class ActionPrediction:
    """What `predict_actions` returns. B observations, T steps, D dimensions, L tokens of the longest action.

    Attributes:
        actions: float32 [B, T, D], in the units of each row's data set.
        normalized: float32 [B, T, D], in [-1, 1] as the model wrote them.
        text: the B action strings; for bins, the bin numbers.
        token_ids: int64 [B, L]; rows that ended early are filled with EOS.
        digit_probabilities: float32 [B, L], the model's probability of each token among those the grammar allowed
            there, 1 where there was no choice; at the sampling temperature, without the effect of other options of
            `generate` (`top_p`, beams, penalties).
        forward_passes: passes through the language model, the prefill included.
        tree_nodes: nodes of draft trees that those passes verified, over all rows; 0 for token by token.
    """

    actions: np.ndarray
    normalized: np.ndarray
    text: list[str]
    token_ids: np.ndarray
    digit_probabilities: np.ndarray
    forward_passes: int
    tree_nodes: int = 0


class OpenVLAContractMixin:
    """For a `PreTrainedModel`, before it in the list of bases."""

    config: Any
    predict_actions: Any
    _no_split_modules: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        replace_flash_attention(config)
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]

    def post_init(self) -> None:
        """As in transformers; `_no_split_modules` then names no class that is not there, which FSDP refuses."""
        super().post_init()  # pyright: ignore[reportAttributeAccessIssue]
        classes = {type(part).__name__ for part in self.modules()}  # pyright: ignore[reportAttributeAccessIssue]
        self._no_split_modules = classes.intersection(self._no_split_modules or ())

    @property
    def missing_weights(self) -> Sequence[str]:
        """Names of the weights that `from_pretrained` did not find, or found in another shape, and drew at random.

        They are saved in the configuration. `load_state_dict` removes what it sets, and this package's training what
        it trains; after other training, or where a weight was set by hand, assign `()`.
        """
        return getattr(self.config, "missing_weights", ())

    @missing_weights.setter
    def missing_weights(self, names: Sequence[str]) -> None:
        if names:
            self.config.missing_weights = list(names)
        elif hasattr(self.config, "missing_weights"):
            del self.config.missing_weights

    @classmethod
    def from_pretrained(cls, *args: Any, load_in_8bit: bool = False, load_in_4bit: bool = False, **kwargs: Any) -> Any:
        """As in transformers, with OpenVLA's two switches for quantised weights (they need `bitsandbytes`), and
        `missing_weights`; `ValueError` if both are on, or one of them beside a `quantization_config`.
        """
        if load_in_8bit or load_in_4bit:
            if load_in_8bit and load_in_4bit:
                raise ValueError("got load_in_8bit and load_in_4bit, expected one of them")
            if kwargs.get("quantization_config") is not None:
                raise ValueError("got load_in_8bit or load_in_4bit beside a quantization_config, expected one of them")
            kwargs["quantization_config"] = BitsAndBytesConfig(load_in_8bit=load_in_8bit, load_in_4bit=load_in_4bit)
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # pyright: ignore
        mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
        model.missing_weights = sorted({*info["missing_keys"], *mismatched, *model.missing_weights})
        return (model, info) if with_info else model

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As in torch."""
        loaded = super().load_state_dict(state_dict, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self.missing_weights = [name for name in self.missing_weights if name not in state_dict]
        return loaded

    def check_weights(self) -> None:
        """Raises `ValueError` if there are `missing_weights`."""
        if self.missing_weights:
            names = ", ".join(self.missing_weights[:3])
            raise ValueError(
                f"got a model whose file has no weights of the right shape for {len(self.missing_weights)} tensors "
                f"({names}{', ...' if len(self.missing_weights) > 3 else ''}), expected all: these are random numbers "
                "now, and so would be its actions and answers. Load a complete file, or train the model; where the "
                "weights were set since, assign model.missing_weights = ()"
            )

    def without_image_token(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of `generate`, by which it never writes the image token."""
        never = SuppressTokensLogitsProcessor([self.config.image_token_id])
        return {**options, "logits_processor": LogitsProcessorList([*(options.get("logits_processor") or ()), never])}

    def predict_action(self, input_ids: Any = None, unnorm_key: str | None = None, **kwargs: Any) -> np.ndarray:
        """The action for one observation, OpenVLA's contract: float32 [D] for a horizon of 1, else [T, D], in the data
        set's units; arguments are those of `predict_actions`.
        """
        if input_ids is not None and input_ids.shape[0] != 1:
            raise ValueError(
                f"got {input_ids.shape[0]} observations, expected 1; "
                "predict_actions takes a batch and returns [B, T, D]"
            )
        actions = self.predict_actions(input_ids=input_ids, unnorm_key=unnorm_key, **kwargs).actions[0]
        return actions[0] if len(actions) == 1 else actions

    def states_per_row(
        self, state: Any, unnorm_key: str | Sequence[str] | None, rows: int
    ) -> Sequence[np.ndarray | None]:
        """The robot's state of each row, float64 [P] in units; `None` for a model that takes none.

        Args:
            state: float [B, P], zeros behind shorter ones, as `processor.action_inputs` gives it.

        Raises:
            ValueError: for a state that is missing, not taken, of another shape, or not finite.
        """
        if not (self.config.action_config or {}).get("state"):
            if state is not None:
                raise ValueError("got a state, expected none: this model was trained without it; leave it out")
            return [None] * rows
        if state is None:
            raise ValueError(
                "got no state, expected the robot's, which this model was trained with; use "
                "processor.action_inputs(image, instruction, state=...)"
            )
        statistics = statistics_per_row(self.config.norm_stats, unnorm_key, rows, "proprio")
        widths = [len(entry["q01"]) for entry in statistics]
        given = state.detach().cpu().double().numpy() if isinstance(state, torch.Tensor) else np.asarray(state, float)
        if given.shape != (rows, max(widths)) or not np.isfinite(given).all():
            raise ValueError(
                f"got states of shape {list(given.shape)}, expected finite numbers [{rows}, {max(widths)}]: those of "
                "processor.action_inputs"
            )
        return [row[:width] for row, width in zip(given, widths, strict=True)]

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers, with `dataset_statistics.json` beside the weights, as in OpenVLA."""
        self.config.norm_stats = self.config.norm_stats  # checked again, since entries may have been added
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)  # pyright: ignore
        if is_main_process and self.config.norm_stats:
            text = json.dumps(self.config.norm_stats, indent=2) + "\n"
            (Path(save_directory) / "dataset_statistics.json").write_text(text, encoding="utf-8")

    @property
    def norm_stats(self) -> dict[str, Any]:
        """`config.norm_stats`: statistics by data set, see `action_statistics.py`."""
        return self.config.norm_stats

    @norm_stats.setter
    def norm_stats(self, value: dict[str, Any]) -> None:
        self.config.norm_stats = value  # which checks it, see base_configuration.py

    def get_action_stats(self, unnorm_key: str | None = None) -> dict[str, Any]:
        """The action statistics of a data set (OpenVLA's method)."""
        return select_statistics(self.config.norm_stats, unnorm_key)

    def get_action_dim(self, unnorm_key: str | None = None) -> int:
        """D, the dimensions of an action in a data set (OpenVLA's method)."""
        return len(self.get_action_stats(unnorm_key)["q01"])


def replace_flash_attention(config: Any) -> None:
    """Leaves the choice to transformers where a configuration or a part of it asks for flash attention, and warns."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    asking = [part for part in parts if part is not None and "flash" in (part._attn_implementation or "")]
    if not asking:
        return
    logger.warning_once(
        f"got attn_implementation={asking[0]._attn_implementation!r}, using 'sdpa', or 'eager' where there is no "
        "other: flash attention cannot take the mask of a draft tree, which saves more time than it does"
    )
    for part in asking:
        part._attn_implementation = None  # eager for Gemma 2, else SDPA


def check_fills_caches(language_model: Any) -> None:
    """Raises `ValueError` where layers are checkpointed, which then ignore a cache."""
    if any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in language_model.layers):
        raise ValueError(
            "got a model in training mode with gradient checkpointing, expected evaluation mode to answer or act: "
            "checkpointed layers fill no cache, so that all but the first token would be wrong; call model.eval()"
        )
