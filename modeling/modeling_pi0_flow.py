"""π0 with flow matching, the paper's baseline: transformers' PI0 with actions of robots and their units.

A row of the prefix and what follows it, for a horizon of T; x = attends to:

                      i  p  s  a1..aT
    i  image          x  x  .  .        PaliGemma's prefix, computed once
    p  prompt         x  x  .  .
    s  state          x  x  x  .        the action expert: one token of state, one per step of the actions
    a1..aT            x  x  x  x

x_t = t * noise + (1 - t) * actions; the expert predicts the velocity noise - actions at time t in (0, 1]. Actions of D
dimensions fill the first D of `max_action_dim` and are zero behind them; `config.noise_in_padding` says whether noise,
velocity and loss are zero there, too. In the published weights of π0 they are not: its loss is openpi's, a mean over
all of `max_action_dim`.

A model that was trained with the robot's state (`action_config["state"]`) gets it in the state token, scaled to
[-1, 1] by q01 and q99 of its data set. Of others that token is of zeros.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .action_statistics import normalize_actions, statistics_per_row, unnormalize_actions
from .base_configuration import check_context
from .configuration_pi0_flow import Pi0FlowConfig
from .cpu_threads import limit_cpu_threads
from .openvla_contract import ActionPrediction, OpenVLAContractMixin


# isort: split
# What those files import: transformers copies from a local folder only what this file names itself.
from .relative_actions import to_relative  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401


# After the configuration, which raises an understandable error where transformers has no PI0.
from transformers import PI0ForConditionalGeneration  # isort: skip


# Names in files of transformers' PI0 and of openpi's and LeRobot's PyTorch weights (`lerobot/pi0_base`), and ours.
FOREIGN_NAMES = {
    r"^(model\.)?paligemma_with_expert\.gemma_expert\.model\.": "model.dit.",
    r"^(model\.)?paligemma_with_expert\.paligemma\.lm_head\.": "model.vlm.language_model.embed_tokens.",
    r"^(model\.)?paligemma_with_expert\.paligemma\.model\.": "model.vlm.",
    **{
        rf"^(model\.)?{name}\.": f"embed_action_time.{name}."
        for name in ("state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out")
    },
    r"^model\.action_out_proj\.": "action_out_proj.",
}


class FlowPrediction(ActionPrediction):
    """What `predict_actions` of a flow returns; the fields of `ActionPrediction`, where:

    normalized: is clipped to [-1, 1], binary dimensions are rounded to 0 or 1.
    text: holds the normalised values of each row for people, four decimals, one line per step.
    token_ids, digit_probabilities: are empty, [B, 0].
    forward_passes: counts one through the vision-language model, and one through the action expert per step.
    """


class Pi0FlowForActionPrediction(OpenVLAContractMixin, PI0ForConditionalGeneration):
    """The model; `forward` computes velocities and the loss, `predict_actions` actions.

    Of PaliGemma's last layer only keys and values are used, so that no gradient reaches the rest, which is frozen. The
    action expert has no embedding of words.
    """

    config_class = Pi0FlowConfig
    config: Any
    model: Any
    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # the loss is a mean over the batch, which trainers that accumulate gradients divide
    _no_split_modules = ["SiglipEncoderLayer", "GemmaDecoderLayer"]  # noqa: RUF012  # transformers' own declaration
    _supports_flash_attn = False  # see openvla_contract.py
    _keys_to_ignore_on_load_unexpected = [r"gemma_expert\.lm_head", r"^model\.dit\.embed_tokens"]  # noqa: RUF012

    def __init__(self, config: Pi0FlowConfig):
        super().__init__(config)
        self.model.dit.embed_tokens = None
        self.freeze()

    def freeze(self) -> None:
        """Freezes what no gradient reaches; `train()` does it again, since loading creates parameters anew."""
        for part in unreached(self.model.vlm.language_model):
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Any:
        """As in torch."""
        super().train(mode)
        self.freeze()
        return self

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; files of transformers' PI0 and of `lerobot/pi0_base` are read, too."""
        kwargs["key_mapping"] = {**FOREIGN_NAMES, **(kwargs.get("key_mapping") or {})}
        return super().from_pretrained(*args, **kwargs)

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers, with tensors under the model's own names whatever file they came from."""
        super().save_pretrained(save_directory, is_main_process, **{"save_original_format": False, **kwargs})

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        actions: Any = None,
        action_is_pad: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        pixel_attention_mask: Any = None,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The velocity at a point of the flow and, for `actions`, the loss.

        Args:
            input_ids, attention_mask: int64 [B, L], padded on either side.
            pixel_values: float [B * cameras, 3, H, W] with the same cameras in each row, or [B, cameras, 3, H, W].
            actions: float [B, T, D] normalised to [-1, 1]; or padded with zeros, [B, T, max_action_dim].
            action_is_pad: bool [B, T], steps after the end of an episode, which do not count.
            state: float [B, S], S up to `max_state_dim`, padded with zeros; by default zeros.
            noise: float [B, T, max_action_dim], or D without `noise_in_padding`; by default normal. Without
                `actions` it is x_t itself.
            timestep: float [B], t; by default drawn as in π0 (`time_sampling_*` of the configuration).
            token_type_ids: no effect: a prompt is all prefix.

        Returns:
            `CausalLMOutputWithPast`, or a tuple where `return_dict` is false. `logits`: the velocity, float [B, T,
            max_action_dim]; `loss`: its squared error, a mean over the flow's dimensions and the steps that count.
        """
        inputs = [value for value in (input_ids, noise, actions) if value is not None]
        if not inputs:
            raise ValueError(
                "got none of input_ids, noise and actions, expected at least one, for the size of the batch"
            )
        rows, dtype = len(inputs[0]), self.action_out_proj.weight.dtype
        if noise is None:
            noise = self.draw_noise(rows)
        device = self._device_for(inputs[0])
        noise = self._in_flow(self._padded(noise, "noise", rows, device, self.config.flow_dim))
        target = None if actions is None else self._in_flow(self._padded(actions, "actions", rows, device))
        if pixel_values is not None:
            pixel_values, pixel_attention_mask = as_cameras(pixel_values, pixel_attention_mask, rows)
            if input_ids is not None:
                self._check_pictures(input_ids, pixel_attention_mask)
        if target is not None:
            kwargs["actions"] = target.to(dtype)
        outputs: Any = super().forward(
            state=self._state(state, rows, device),
            noise=noise.to(dtype),
            timestep=timestep,
            input_ids=input_ids,
            pixel_values=None if pixel_values is None else pixel_values.to(dtype),
            pixel_attention_mask=pixel_attention_mask,
            attention_mask=attention_mask,
            **kwargs,
        )
        outputs.logits = self._in_flow(outputs.logits)
        if target is not None:
            outputs.loss = self._loss(outputs.logits, noise - target, action_is_pad)
        return outputs.to_tuple() if return_dict is False else outputs

    @torch.no_grad()
    @limit_cpu_threads
    def predict_actions(
        self,
        input_ids: Any = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        unnorm_key: str | Sequence[str] | None = None,
        *,
        state: Any = None,
        num_steps: int | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        pixel_attention_mask: Any = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FlowPrediction:
        """The actions for a batch of observations: noise, and `num_steps` steps of the flow from it.

        Args:
            state: for a model that takes the robot's state, float [B, P] in the units of its data set; for others as
                for `forward`, and so are all that are not named here.
            unnorm_key: one data set for all rows, or one per row.
            num_steps: steps of the flow; by default `config.num_inference_steps`, 10.
            noise: as for `forward`, where the flow begins; by default drawn.
            generator: draws it, on the CPU; by default torch's global one.
            kwargs: options of token decoding, as long as they have their default.

        Raises:
            ValueError: if weights are missing, the model has no action format or statistics, the key is unknown,
                inputs are missing, the prompt is too long, an option is one of token decoding, or a prediction is not
                finite.
        """
        self.check_weights()
        check_no_options(kwargs)
        action_config = self._action_config()
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(f"got no {missing}, expected those of processor.action_inputs(image, instruction)")
        steps = self.config.num_inference_steps if num_steps is None else num_steps
        if steps < 1:
            raise ValueError(f"got num_steps={num_steps}, expected at least 1")
        rows = len(input_ids)
        action_statistics = statistics_per_row(self.config.norm_stats, unnorm_key, rows)
        states: Sequence[np.ndarray | None] = [None] * rows
        if action_config.get("state"):
            states = self.states_per_row(state, unnorm_key, rows)
            state = self._shown_states(states, unnorm_key) if action_config["state"] == "input" else None
        pixel_values, pixel_attention_mask = as_cameras(pixel_values, pixel_attention_mask, rows)
        self._check_pictures(input_ids, pixel_attention_mask)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        context = self.config.text_config.max_position_embeddings
        check_context(int(mask.sum(dim=1).max()), 1 + self.config.chunk_size, context)  # a state, and the steps
        noise = self.draw_noise(rows, generator) if noise is None else noise
        device = self._device_for(input_ids)
        flow = self.sample_actions(
            state=self._state(state, rows, device),
            input_ids=input_ids,
            pixel_values=pixel_values.to(self.action_out_proj.weight.dtype),
            noise=self._in_flow(self._padded(noise, "noise", rows, device, self.config.flow_dim)),
            attention_mask=mask,
            pixel_attention_mask=pixel_attention_mask,
            num_steps=steps,
        )
        normalized = self._normalized(flow, action_config)
        actions = [unnormalize_actions(*row) for row in zip(normalized, action_statistics, states, strict=True)]
        return FlowPrediction(
            actions=np.stack(actions),
            normalized=normalized,
            text=["\n".join(" ".join(f"{value:+.4f}" for value in step) for step in row) for row in normalized],
            token_ids=np.zeros((rows, 0), np.int64),
            digit_probabilities=np.zeros((rows, 0), np.float32),
            forward_passes=1 + steps,
        )

    def draw_noise(self, rows: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Normal noise float32 [rows, T, `config.flow_dim`], the same on every device and in every batch."""
        shape = (self.config.chunk_size, self.config.flow_dim)
        noise = torch.stack([torch.randn(shape, generator=generator, dtype=torch.float32) for _ in range(rows)])
        return noise if self.device.type == "meta" else noise.to(self.device)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Raises `ValueError`: this model writes no tokens."""
        raise ValueError(
            "got a call of generate, expected predict_action or predict_actions: the flow-matching π0 has no output "
            "layer for words and answers no questions"
        )

    @property
    def _action_dim(self) -> int:
        """D; all of `max_action_dim` as long as there is no action format."""
        return (self.config.action_config or {}).get("action_dim", self.config.max_action_dim)

    def _action_config(self) -> dict[str, Any]:
        if not self.config.action_config:
            raise ValueError(
                "got a model without config.action_config, expected one: it was not trained to act on a robot. "
                "make_flow_action_config(action_dim, horizon) in gen_vla.processors writes it"
            )
        return self.config.action_config

    def _in_flow(self, values: Any) -> torch.Tensor:
        """Float [B, T, max_action_dim], zero behind the dimensions of the flow."""
        width, dims = self.config.max_action_dim, self.config.flow_dim
        return values if dims == width else nn.functional.pad(values[..., :dims], (0, width - dims))

    def _padded(
        self, values: torch.Tensor, name: str, rows: int, device: torch.device, dims: int | None = None
    ) -> torch.Tensor:
        """Float [B, T, dims (by default D) or max_action_dim] with zeros behind, on a device; another shape raises."""
        width, horizon = self.config.max_action_dim, self.config.chunk_size
        dims = self._action_dim if dims is None else dims
        if values.ndim != 3 or values.shape[:2] != (rows, horizon) or values.shape[2] not in (dims, width):
            raise ValueError(
                f"got {name} of shape {list(values.shape)}, expected [{rows}, {horizon}, {dims}]: batch, horizon "
                f"(config.chunk_size) and {'action dimensions' if dims < width else 'config.max_action_dim'}"
            )
        return nn.functional.pad(values, (0, width - values.shape[2])).to(device)

    def _device_for(self, given: torch.Tensor) -> torch.device:
        """The device of the model; that of its inputs where its weights are offloaded."""
        return given.device if self.device.type == "meta" else self.device

    def _state(self, state: torch.Tensor | None, rows: int, device: torch.device) -> torch.Tensor:
        """The state padded with zeros, or zeros, float [B, max_state_dim]."""
        width, dtype = self.config.max_state_dim, self.action_out_proj.weight.dtype
        if state is None:
            return torch.zeros(rows, width, dtype=dtype, device=device)
        if state.ndim != 2 or len(state) != rows or state.shape[1] > width:
            raise ValueError(f"got state of shape {list(state.shape)}, expected [{rows}, at most {width}]")
        return nn.functional.pad(state, (0, width - state.shape[1])).to(device, dtype)

    def _shown_states(self, states: Sequence[Any], unnorm_key: str | Sequence[str] | None) -> torch.Tensor:
        """States of rows [P] in units, as the model was shown them: float32 [B, max_state_dim], zeros behind each."""
        statistics = statistics_per_row(self.config.norm_stats, unnorm_key, len(states), "proprio")
        scaled = [torch.from_numpy(normalize_actions(*row)) for row in zip(states, statistics, strict=True)]
        return torch.cat([self._state(row[None], 1, torch.device("cpu")) for row in scaled])

    def _check_pictures(self, input_ids: torch.Tensor, pixel_attention_mask: torch.Tensor) -> None:
        """Raises `ValueError` unless every row has the image tokens of its pictures; PI0 itself does not check."""
        each = self.config.num_image_tokens
        found = (input_ids == self.config.image_token_id).sum(1)
        wanted = pixel_attention_mask.sum(1) * each
        if torch.compiler.is_compiling():  # where nothing may depend on what a tensor holds
            torch.ops.aten._assert_async.msg((found == wanted).all(), "Image features and image tokens do not match")
            return
        tokens, features = found.tolist(), wanted.tolist()
        if tokens != features:
            raise ValueError(
                f"Image features and image tokens do not match: got {tokens} image tokens in the rows of input_ids "
                f"and {features} features ({each} per picture); use the processor that belongs to the model, and cut "
                "no row"
            )

    def _loss(self, velocity: torch.Tensor, target: torch.Tensor, action_is_pad: torch.Tensor | None) -> torch.Tensor:
        """The mean squared error over the dimensions of the flow and steps that are no padding, float32."""
        dims = self.config.flow_dim
        errors = (velocity[..., :dims].float() - target[..., :dims].float()).square().mean(dim=-1)
        if action_is_pad is None:
            return errors.mean()
        counts = ~action_is_pad.to(errors.device).bool()
        return (errors * counts).sum() / counts.sum().clamp(min=1)

    def _normalized(self, flow: torch.Tensor, action_config: dict[str, Any]) -> np.ndarray:
        """The normalised actions at the end of a flow, float32 [B, T, D] in [-1, 1], 0 or 1 in binary dimensions."""
        values = flow[..., : self._action_dim].float().cpu().numpy()
        if not np.isfinite(values).all():
            raise ValueError(
                "got actions that are not finite numbers, expected finite ones; weights or pictures are broken, or "
                "float16 overflowed: load the model with dtype=torch.bfloat16 or float32"
            )
        values = values.clip(-1.0, 1.0)
        binary = list(action_config.get("binary_dims", ()))
        values[..., binary] = values[..., binary] > 0.5
        return values

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs: Any) -> None:
        """Of the vision encoder only: a checkpointed layer of Gemma drops the cache, which actions attend to."""
        self.model.vlm.vision_tower._set_gradient_checkpointing(enable, **kwargs)


def unreached(language_model: nn.Module) -> list[nn.Module]:
    """Modules that no key or value depends on: the end of the last layer, and the norm after it."""
    last: Any = language_model.layers[-1]  # pyright: ignore
    attention = last.self_attn
    return [attention.q_proj, attention.o_proj, last.mlp, last.post_attention_layernorm, language_model.norm]  # pyright: ignore


def as_cameras(pixel_values: torch.Tensor, pixel_attention_mask: Any, rows: int) -> tuple[torch.Tensor, Any]:
    """Pictures float [B, cameras, 3, H, W] and which of them exist, bool [B, cameras].

    Pictures may be given as [B * cameras, 3, H, W], row after row, as the processor returns them.
    """
    if pixel_values.ndim == 4:
        if len(pixel_values) % rows:
            raise ValueError(f"got {len(pixel_values)} pictures for {rows} rows, expected as many for each row")
        pixel_values = pixel_values.unflatten(0, (rows, -1))
    if pixel_attention_mask is None:
        pixel_attention_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
    return pixel_values, pixel_attention_mask


def check_no_options(options: dict[str, Any]) -> None:
    """Raises `ValueError` for options of token decoding, except their defaults, which OpenVLA's scripts pass."""
    defaults = {"do_sample": False, "use_cache": True, "num_beams": 1}
    given = {name: value for name, value in options.items() if value is not None}
    wrong = sorted(name for name, value in given.items() if name not in defaults or value != defaults[name])
    if wrong:
        raise ValueError(
            f"got {', '.join(wrong)}, expected state, num_steps, noise or generator: the flow-matching π0 decodes no "
            "tokens, so that trees, previous actions, sampling and caches mean nothing to it"
        )
