"""OpenVLA+ up to the last hidden state: two vision encoders, the projector, the Llama with pictures among its words.

A row with N image tokens, left-padded; image features replace the embeddings of the image tokens:

    <pad> <pad> <s> <image> x N  In : ▁What ▁action ...
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .configuration_openvla_plus import OpenVLAPlusConfig
from .dual_vision_tower import DualVisionTower
from .openvla_contract import OpenVLAContractMixin, check_fills_caches
from .parallel_streams import is_recording
from .verification_passes import prompt_positions


class FusedProjector(nn.Module):
    """The 3-layer GELU MLP between vision and language; the first hidden layer is 4 times the vision width."""

    def __init__(self, vision_width: int, text_width: int):
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, text_width)
        self.fc3 = nn.Linear(text_width, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, N, vision width] to embeddings [B, N, text width]."""
        hidden = nn.functional.gelu(self.fc1(features))
        return self.fc3(nn.functional.gelu(self.fc2(hidden)))


class OpenVLAPlusPreTrainedModel(OpenVLAContractMixin, PreTrainedModel):
    """What transformers needs to know about the family."""

    config_class = OpenVLAPlusConfig
    base_model_prefix = "model"
    _no_split_modules = ["Dinov2WithRegistersLayer", "SiglipEncoderLayer", "LlamaDecoderLayer"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  # transformers' own declaration
    _supports_sdpa = True
    _supports_flash_attn = False  # see openvla_contract.py
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class OpenVLAPlusModel(OpenVLAPlusPreTrainedModel):
    """Everything up to the last hidden state."""

    def __init__(self, config: OpenVLAPlusConfig):
        super().__init__(config)
        self.vision_tower = DualVisionTower(config.encoder_configs, config.frozen)
        self.projector = FusedProjector(self.vision_tower.width, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the language model over text and image features.

        Args:
            input_ids: int64 [B, L]; each picture takes N consecutive image tokens.
            pixel_values: float [pictures, C, H, W], those of the image tokens in `input_ids`, in order.
            attention_mask: int64 [B, L + cached], 0 on padding.
            inputs_embeds: float [B, L, text width], instead of `input_ids`.
        """
        embeds = self.embed(input_ids, inputs_embeds, pixel_values, past_key_values)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = prompt_positions(attention_mask)[:, -embeds.shape[1] :]
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def get_input_embeddings(self) -> nn.Module:  # where transformers 4 does not look
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values float [B, C, H, W] to embeddings [B, N, text width]."""
        return self.projector(self.vision_tower(pixel_values))

    def embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        past_key_values: Any,
    ) -> torch.Tensor:
        """Embeddings float [B, L, text width] of words and of the pictures of the image tokens in `input_ids`.

        A single token without pictures is a decoding step and is not checked. `ValueError` as `check_pictures`, or if
        layers would ignore the cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("got both or neither of input_ids and inputs_embeds, expected exactly one")
        if past_key_values is not None and self.training:
            check_fills_caches(self.language_model)
        embeds = inputs_embeds if inputs_embeds is not None else self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            if input_ids is not None and input_ids.shape[1] > 1:
                self.check_pictures(input_ids, None)
            return embeds
        if input_ids is None:
            raise ValueError("got pixel_values with inputs_embeds, expected input_ids: they say where pictures go")
        self.check_pictures(input_ids, pixel_values)
        features = self.get_image_features(pixel_values).to(embeds.device, embeds.dtype)
        places = input_ids == self.config.image_token_id
        return embeds.masked_scatter(places.unsqueeze(-1).to(embeds.device), features)

    def check_pictures(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> None:
        """Raises `ValueError` if the numbers of image tokens and image features differ, pictures are missing, or a row
        holds a part of a picture.
        """
        if is_recording(input_ids.device):  # which begins with a plain call for the same numbers of image tokens
            return
        found = (input_ids == self.config.image_token_id).sum(dim=1)
        pictures, each = 0 if pixel_values is None else len(pixel_values), self.config.num_image_tokens
        if torch.compiler.is_compiling():  # where nothing may depend on what a tensor holds
            matches = (found.sum() == pictures * each) & (found % each == 0).all()
            torch.ops.aten._assert_async.msg(matches, "Image features and image tokens do not match")
            return
        rows = found.tolist()
        tokens = sum(rows)
        if pixel_values is None and tokens:
            raise ValueError(
                f"got {tokens} image tokens in input_ids and no pixel_values, expected the pictures they stand for; "
                "pass everything the processor returned"
            )
        if tokens != pictures * each:
            raise ValueError(
                f"Image features and image tokens do not match: got {tokens} image tokens in input_ids and "
                f"{pictures * each} features ({pictures} pictures of {each}); use the processor that belongs to the "
                "model, and cut no row"
            )
        if any(count % each for count in rows):
            raise ValueError(
                f"got {rows} image tokens in the rows of input_ids, expected a multiple of {each} in each: a picture "
                f"takes {each} tokens of one row; cut no row"
            )
