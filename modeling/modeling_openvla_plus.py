"""OpenVLA+: pictures through two vision encoders and a projector into a Llama that writes words or actions."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .action_prediction import ActionPredictionMixin
from .base_configuration import check_context
from .configuration_openvla_plus import OpenVLAPlusConfig
from .openvla_plus_backbone import OpenVLAPlusModel, OpenVLAPlusPreTrainedModel


# isort: split
# What those files import: transformers 4 copies from a local folder only what this file names itself.
from .action_bins import ActionBins  # noqa: F401
from .action_grammar import ActionGrammar  # noqa: F401
from .action_statistics import select_statistics  # noqa: F401
from .action_strings import ActionStringProcessor  # noqa: F401
from .cpu_threads import limit_cpu_threads  # noqa: F401
from .draft_trees import Drafts  # noqa: F401
from .dual_vision_tower import DualVisionTower  # noqa: F401
from .fused_layers import run_layers  # noqa: F401
from .generation_options import checked_options  # noqa: F401
from .openvla_contract import OpenVLAContractMixin  # noqa: F401
from .parallel_streams import in_parallel  # noqa: F401
from .prefix_actions import prefix_tokens  # noqa: F401
from .recorded_passes import recorded_forward  # noqa: F401
from .relative_actions import to_relative  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401
from .tree_decoding import TreeDecoder  # noqa: F401
from .verification_passes import additive_mask  # noqa: F401


if TYPE_CHECKING:  # imported where there is a GPU
    from .triton_operations import TritonOperations  # noqa: F401


class OpenVLAPlusForVision2Seq(ActionPredictionMixin, OpenVLAPlusPreTrainedModel, GenerationMixin):
    """The model that answers questions (`generate`) and acts (`predict_action`, `predict_actions`)."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: OpenVLAPlusConfig):
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # what transformers falls back on, with a warning, for names like our classes'
        self.model = OpenVLAPlusModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

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
        """As `OpenVLAPlusModel.forward`; `CausalLMOutputWithPast`, or a tuple of its entries without `return_dict`.

        Args:
            labels: int64 [B, L], -100 where nothing is supervised; adds the mean cross-entropy of the next token (the
                sum over `num_items_in_batch`, where a trainer that accumulates gradients passes it).
            logits_to_keep: logits [B, L, V] of so many last positions (0 = all), or of those it names.
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
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output.to_tuple() if return_dict is False else output

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers, with tensor names that versions 4 and 5 read.

        transformers 5 has other names for DINOv2's attention, reads both, and writes those that it has read; where it
        does not remember them, those of 4.
        """
        if getattr(self, "hf_quantizer", None) is None:
            self._weight_conversions = None
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)  # pyright: ignore

    def get_decoder(self) -> Any:
        return self.model.language_model

    def embed_prompt(self, input_ids: torch.Tensor, pixel_values: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """See `ActionPredictionMixin`."""
        return self.model.embed(input_ids, None, pixel_values, past_key_values=()), {}

    def generate(self, *args: Any, assistant_model: Any = None, **kwargs: Any) -> Any:
        """As in transformers; the image token is never written.

        Raises:
            ValueError: also if weights are missing, or `assistant_model` has another family or other image tokens.
        """
        self.check_weights()
        if assistant_model is not None:
            check_assistant(self.config, assistant_model.config)
            kwargs["assistant_model"] = assistant_model
        return super().generate(*args, **self.without_image_token(kwargs))  # pyright: ignore

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """As in transformers; but each beam gets the pictures of its row in order, instead of each one repeated."""
        pixels = kwargs.get("pixel_values")
        expanded = super()._expand_inputs_for_generation(  # pyright: ignore
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        if expand_size > 1 and pixels is not None and input_ids is not None:
            rows = self._pictures_by_row(input_ids, pixels)
            expanded[1]["pixel_values"] = torch.cat([row for row in rows for _ in range(expand_size)])
        return expanded

    def _prepare_generated_length(
        self, *args: Any, input_ids_length: int, inputs_tensor: torch.Tensor, **kwargs: Any
    ) -> Any:
        """As in transformers, and no token is written at a position that does not exist: the limit of new tokens is
        lowered, and a prompt that fills the context raises `ValueError`.
        """
        prepared = super()._prepare_generated_length(  # pyright: ignore
            *args, input_ids_length=input_ids_length, inputs_tensor=inputs_tensor, **kwargs
        )
        context, prompt = self.config.text_config.max_position_embeddings, inputs_tensor.shape[1]
        check_context(prompt, 1, context)
        # `input_ids` of a prompt of embeddings are empty.
        prepared.max_length = min(prepared.max_length, context - (prompt - input_ids_length))
        return prepared

    def _pictures_by_row(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The pictures of each row; raises `ValueError` if they are not those of the image tokens."""
        self.model.check_pictures(input_ids, pixel_values)
        counts = (input_ids == self.config.image_token_id).sum(dim=1) // self.config.num_image_tokens
        return pixel_values.split(counts.tolist())

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; of the pictures of `input_ids`, those that the cache does not hold are passed on."""
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        fed = inputs.get("input_ids")
        if pixel_values is not None and fed is not None and fed.shape[1] < input_ids.shape[1]:
            decodes = fed.shape[1] == 1 and not kwargs.get("is_first_iteration")
            pixel_values = None if decodes else self._last_pictures(input_ids, fed, pixel_values)
        if pixel_values is not None:
            inputs["pixel_values"] = pixel_values
        return inputs

    def _last_pictures(
        self, input_ids: torch.Tensor, fed: torch.Tensor, pixel_values: torch.Tensor
    ) -> torch.Tensor | None:
        """The pictures of the last tokens of each row, `fed`; `None` if there are none."""
        rows, each = self._pictures_by_row(input_ids, pixel_values), self.config.num_image_tokens
        counts = (fed == self.config.image_token_id).sum(dim=1).tolist()
        if any(count % each for count in counts):
            raise ValueError(
                f"got past_key_values that end inside a picture: {counts} image tokens in the rows are behind them; "
                f"expected a multiple of {each}, since all tokens of a picture are computed at once"
            )
        if not any(counts):
            return None
        return torch.cat([row[len(row) - count // each :] for row, count in zip(rows, counts, strict=True)])


def check_assistant(config: Any, assistant: Any) -> None:
    """Raises `ValueError` unless an assistant, given by its configuration, takes the inputs of the model."""
    if assistant.model_type != config.model_type:
        raise ValueError(
            f"got an assistant_model of type {assistant.model_type!r}, expected {config.model_type!r}: it is given "
            "the pictures and the image tokens of the model"
        )
    ours, theirs = ((each.image_token_id, each.num_image_tokens) for each in (config, assistant))
    if ours != theirs:
        raise ValueError(
            f"got an assistant_model with image_token_id and num_image_tokens {theirs}, expected {ours}, as the model"
        )
