"""OpenVLA+: pictures through two vision encoders and a projector into a Llama that writes words or actions.

Decides: the wiring (encoders -> projector -> language model -> output layer) and where image features go. Refuses to
know: which encoder is frozen and why (`dual_vision_tower.py`), how actions are decoded (`action_prediction.py`),
prompts, pixels' normalisation.

Layout of a row with N image tokens, left-padded; features replace the embeddings of the image tokens:

    <pad> <pad> <s> <image> x N  In : ▁What ▁action ...
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .action_prediction import ActionPredictionMixin
from .configuration_openvla_plus import OpenVLAPlusConfig
from .dual_vision_tower import DualVisionTower


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


class OpenVLAPlusPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about the family."""

    config_class = OpenVLAPlusConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = [  # noqa: RUF012  # transformers' own declaration
        "Dinov2WithRegistersLayer",
        "SiglipEncoderLayer",
        "LlamaDecoderLayer",
    ]
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
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

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values float [B, C, H, W] to embeddings [B, N, text width]."""
        return self.projector(self.vision_tower(pixel_values))

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
            pixel_values: float [pictures, C, H, W], in the order of their tokens; ignored once the cache holds them.
            attention_mask: int64 [B, L + cached], 0 on padding.
            inputs_embeds: float [B, L, text width], instead of `input_ids`.

        Raises:
            ValueError: if the numbers of image tokens and image features differ, or pictures are missing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("got both or neither of input_ids and inputs_embeds, expected exactly one")
        embeds = inputs_embeds if inputs_embeds is not None else self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            if is_empty(past_key_values):
                embeds = self._insert_image_features(input_ids, embeds, pixel_values)
        elif input_ids is not None and input_ids.shape[1] > 1 and is_empty(past_key_values):
            self._check_no_image_tokens(input_ids)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def _insert_image_features(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        if input_ids is None:
            raise ValueError("got pixel_values with inputs_embeds, expected input_ids: they say where pictures go")
        features = self.get_image_features(pixel_values).to(inputs_embeds.device, inputs_embeds.dtype)
        places = input_ids == self.config.image_token_id
        tokens, available = int(places.sum()), features.shape[0] * features.shape[1]
        if tokens != available:
            raise ValueError(
                f"Image features and image tokens do not match: got {tokens} image tokens in input_ids and "
                f"{available} features ({features.shape[0]} pictures of {features.shape[1]}); use the processor "
                "that belongs to the model, and cut no row"
            )
        return inputs_embeds.masked_scatter(places.unsqueeze(-1).to(inputs_embeds.device), features)

    def _check_no_image_tokens(self, input_ids: torch.Tensor) -> None:
        tokens = int((input_ids == self.config.image_token_id).sum())
        if tokens:
            raise ValueError(
                f"got {tokens} image tokens in input_ids and no pixel_values, expected the pictures they stand for; "
                "pass everything the processor returned"
            )


class OpenVLAPlusForVision2Seq(ActionPredictionMixin, OpenVLAPlusPreTrainedModel, GenerationMixin):
    """The model that answers questions (`generate`) and acts (`predict_action`, `predict_actions`)."""

    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }

    def __init__(self, config: OpenVLAPlusConfig):
        super().__init__(config)
        self.model = OpenVLAPlusModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As `OpenVLAPlusModel.forward`, with logits float [B, L, V] (the last `logits_to_keep` positions, 0 = all).

        `labels` int64 [B, L], -100 where nothing is supervised, adds the mean cross-entropy of the next token (the sum
        over `num_items_in_batch`, where a trainer that accumulates gradients passes it).
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def is_empty(cache: Any) -> bool:
    """Whether a cache of keys and values, or none, holds no token yet."""
    return cache is None or not cache.get_seq_length()
