"""OpenVLA+: pictures through two vision encoders and a projector into a Llama that writes words or actions.

A row with N image tokens, left-padded; image features replace the embeddings of the image tokens:

    <pad> <pad> <s> <image> x N  In : ▁What ▁action ...
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

from .action_prediction import ActionPredictionMixin
from .configuration_openvla_plus import OpenVLAPlusConfig
from .dual_vision_tower import DualVisionTower
from .image_language_model import ImageLanguageHeadMixin, ImageLanguageModelMixin, ImageLanguagePreTrainedModel
from .verification_passes import prompt_positions


# isort: split
# What those files import: transformers 4 copies from a local folder only what this file names itself.
from .action_bins import ActionBins  # noqa: F401
from .action_grammar import ActionGrammar  # noqa: F401
from .action_statistics import select_statistics  # noqa: F401
from .action_strings import ActionStringProcessor  # noqa: F401
from .base_configuration import as_config  # noqa: F401
from .cpu_threads import limit_cpu_threads  # noqa: F401
from .draft_trees import Drafts  # noqa: F401
from .fused_layers import run_layers  # noqa: F401
from .openvla_contract import OpenVLAContractMixin  # noqa: F401
from .parallel_streams import in_parallel  # noqa: F401
from .recorded_passes import recorded_forward  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401
from .tree_decoding import TreeDecoder  # noqa: F401


if TYPE_CHECKING:  # imported where there is a GPU
    from .triton_operations import TritonOperations  # noqa: F401


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


class OpenVLAPlusPreTrainedModel(ImageLanguagePreTrainedModel):
    """What transformers needs to know about the family."""

    config_class = OpenVLAPlusConfig
    _no_split_modules = ["Dinov2WithRegistersLayer", "SiglipEncoderLayer", "LlamaDecoderLayer"]  # noqa: RUF012


class OpenVLAPlusModel(ImageLanguageModelMixin, OpenVLAPlusPreTrainedModel):
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

        Raises:
            ValueError: if the numbers of image tokens and image features differ, or pictures are missing.
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


class OpenVLAPlusForVision2Seq(
    ActionPredictionMixin, ImageLanguageHeadMixin, OpenVLAPlusPreTrainedModel, GenerationMixin
):
    """The model that answers questions (`generate`) and acts (`predict_action`, `predict_actions`)."""

    backbone_class = OpenVLAPlusModel

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
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `OpenVLAPlusModel.forward`, with logits and, for `labels`, the loss: see `logits_and_loss`."""
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
        return self.logits_and_loss(outputs, labels, logits_to_keep, return_dict, **kwargs)
