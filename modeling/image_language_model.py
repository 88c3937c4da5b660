"""What the families that write tokens share: image features among word embeddings, `generate`, logits and loss."""

from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .base_configuration import check_context
from .openvla_contract import OpenVLAContractMixin
from .parallel_streams import is_recording


class ImageLanguagePreTrainedModel(OpenVLAContractMixin, PreTrainedModel):
    """What transformers needs to know about the families."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  # transformers' own declaration
    _supports_sdpa = True
    _supports_flash_attn = False  # see openvla_contract.py
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class ImageLanguageModelMixin:
    """For a backbone with `vision_tower`, `projector` and `language_model`."""

    config: Any
    vision_tower: Any
    projector: Any
    language_model: Any
    training: bool

    def get_input_embeddings(self) -> nn.Module:
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

        A single token without pictures is a decoding step and is not checked.

        Raises:
            ValueError: if the numbers of image tokens and image features differ, pictures are missing, or layers would
                ignore the cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("got both or neither of input_ids and inputs_embeds, expected exactly one")
        if past_key_values is not None and self.training and drops_caches(self.language_model):
            raise ValueError(
                "got a model in training mode with gradient checkpointing, expected evaluation mode to answer or act: "
                "checkpointed layers fill no cache, so that all but the first token would be wrong; call model.eval()"
            )
        embeds = inputs_embeds if inputs_embeds is not None else self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            embeds = self._insert_image_features(input_ids, embeds, pixel_values)
        elif input_ids is not None and input_ids.shape[1] > 1:
            self.check_pictures(input_ids, None)
        return embeds

    def _insert_image_features(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        if input_ids is None:
            raise ValueError("got pixel_values with inputs_embeds, expected input_ids: they say where pictures go")
        self.check_pictures(input_ids, pixel_values)
        features = self.get_image_features(pixel_values).to(inputs_embeds.device, inputs_embeds.dtype)
        places = input_ids == self.config.image_token_id
        return inputs_embeds.masked_scatter(places.unsqueeze(-1).to(inputs_embeds.device), features)

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


class ImageLanguageHeadMixin:
    """For a model that is `backbone_class`, a backbone as above, and an output layer."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    backbone_class: Any
    config: Any
    loss_function: Any
    post_init: Any
    check_weights: Any

    def __init__(self, config: Any):
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        self.loss_type = "ForCausalLM"  # what transformers falls back on, with a warning, for names like our classes'
        self.model = self.backbone_class(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in transformers, with tensor names that versions 4 and 5 read.

        transformers 5 has other names for DINOv2's attention, reads both, and writes those that it has read; where it
        does not remember them, those of 4.
        """
        if getattr(self, "hf_quantizer", None) is None:
            self._weight_conversions = None
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)  # pyright: ignore

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

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
        no_image_token = NoImageToken(self.config.image_token_id)
        kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or ()), no_image_token])
        return super().generate(*args, **kwargs)  # pyright: ignore

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
        """As in transformers, and no token is written at a position that does not exist.

        Raises:
            ValueError: if the prompt fills the context. A larger limit of new tokens is lowered.
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
        """As in transformers; of the pictures of `input_ids`, those that the cache does not hold are passed on.

        Raises:
            ValueError: if image tokens and pictures do not match, or the cache ends inside a picture.
        """
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

    def logits_and_loss(
        self,
        outputs: Any,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """`CausalLMOutputWithPast`, or a tuple of its entries where `return_dict` is false.

        Args:
            labels: int64 [B, L], -100 where nothing is supervised; adds the mean cross-entropy of the next token (the
                sum over `num_items_in_batch`, where a trainer that accumulates gradients passes it).
            logits_to_keep: logits [B, L, V] of so many last positions (0 = all), or of those it names.
        """
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


class NoImageToken(LogitsProcessor):
    """Keeps `generate` from writing the image token."""

    def __init__(self, image_token_id: int):
        self.image_token_id = image_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores float [B, V] with minus infinity for that token."""
        scores = scores.clone()
        scores[:, self.image_token_id] = -torch.inf
        return scores


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


def is_empty(cache: Any) -> bool:
    """Whether a cache of keys and values, or none, holds no token yet."""
    return cache is None or not cache.get_seq_length()


def drops_caches(language_model: Any) -> bool:
    """Whether layers are checkpointed, which then ignore a cache."""
    return any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in language_model.layers)
