"""π0+: pictures through SigLIP, frozen and trained side by side, and a linear projector into a Gemma.

Attention within one row of two image tokens, a prompt of two and an answer of two; x = attends to:

    token_type_ids       0  0  0  0  1  1
                         i  i  p  p  a  a
    i  image             x  x  x  x  .  .     image and prompt attend to each other: the prefix
    i  image             x  x  x  x  .  .
    p  prompt            x  x  x  x  .  .
    p  prompt            x  x  x  x  .  .
    a  answer            x  x  x  x  x  .     the answer attends to what stands before it
    a  answer            x  x  x  x  x  x

`token_type_ids` says what is prefix (0) and what is answer (1). The prefix ends at the first 1 of a row, or at its
first supervised token; everything after it is causal, later turns of a conversation and everything behind a cache
included, so that no token takes part in the logits that predict it. The processor and the training collator write
`token_type_ids`. Without them `generate` takes the whole prompt for a prefix, a plain forward pass is causal
throughout, and training raises an error.

Weights are PaliGemma's: `widen_paligemma_state_dict` doubles the encoder and makes the projector [W, W] / 2, after
which every number the model computes is PaliGemma's, bit for bit.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

from .action_prediction import ActionPrediction, ActionPredictionMixin
from .configuration_pi0_plus import Pi0PlusConfig
from .dual_vision_tower import DualVisionTower
from .image_language_model import (
    ImageLanguageHeadMixin,
    ImageLanguageModelMixin,
    ImageLanguagePreTrainedModel,
    is_empty,
)
from .verification_passes import additive_mask, prompt_positions


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

FIRST_POSITION = 1  # PaliGemma counts from 1


class ChannelProjector(nn.Linear):
    """A linear layer over the concatenated features of several encoders, computed encoder by encoder.

    x1 W1ᵀ + x2 W2ᵀ is [x1, x2] [W1, W2]ᵀ, but rounds differently: where x1 = x2 and W1 = W2 = W / 2, as in a widened
    PaliGemma, each part is exactly half of x Wᵀ, and the sum is PaliGemma's output to the last bit, in any data type.
    """

    def __init__(self, vision_widths: list[int], text_width: int):
        super().__init__(sum(vision_widths), text_width)
        self.vision_widths = vision_widths

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Features [B, N, sum of widths] to embeddings [B, N, text width]."""
        parts = zip(input.split(self.vision_widths, dim=-1), self.weight.split(self.vision_widths, dim=1))
        bias = self.bias / len(self.vision_widths)
        return torch.stack([nn.functional.linear(x.contiguous(), w.contiguous(), bias) for x, w in parts]).sum(dim=0)


class Pi0PlusPreTrainedModel(ImageLanguagePreTrainedModel):
    """What transformers needs to know about the family."""

    config_class = Pi0PlusConfig
    _no_split_modules = ["SiglipEncoderLayer", "GemmaDecoderLayer"]  # noqa: RUF012  # transformers' own declaration


class Pi0PlusModel(ImageLanguageModelMixin, Pi0PlusPreTrainedModel):
    """Everything up to the last hidden state."""

    def __init__(self, config: Pi0PlusConfig):
        super().__init__(config)
        self.vision_tower = DualVisionTower(
            config.encoder_configs, config.frozen, features="last_block", shared_pixels=True
        )
        self.projector = ChannelProjector(self.vision_tower.widths, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values float [B, 3, H, W] to embeddings [B, N, text width], scaled as the language model expects.

        Gemma multiplies word embeddings by the square root of its width, which PaliGemma does not do to pictures.
        transformers 5 scales in the embedding layer, transformers 4 scales words and pictures alike after it.
        """
        features = super().get_image_features(pixel_values)
        if hasattr(self.get_input_embeddings(), "embed_scale"):
            return features
        return features / self.config.text_config.hidden_size**0.5

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the language model over text and image features.

        Args:
            input_ids: int64 [B, L]; each picture takes N consecutive image tokens.
            pixel_values: float [pictures, 3, H, W], those of the image tokens in `input_ids`, in order.
            attention_mask: int64 [B, L + cached], 0 on padding; or a finished mask [B, 1, L, keys], used as it is.
            position_ids: int64 [B, L], counted from 0 as everywhere in transformers; by default without padding.
            token_type_ids: int64 [B, L], 0 on image and prompt, 1 on the answer; what follows a 1 counts as 1. Without
                effect where a cache holds tokens.
            inputs_embeds: float [B, L, text width], instead of `input_ids`.

        Raises:
            ValueError: if the numbers of image tokens and image features differ, pictures are missing, or
                `token_type_ids` is missing in training, or a row of training is not a prompt with an answer.
        """
        embeds = self.embed(input_ids, inputs_embeds, pixel_values, past_key_values)
        length = embeds.shape[1]
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is not None:
            positions = position_ids
        elif attention_mask is not None and attention_mask.ndim == 2:
            positions = prompt_positions(attention_mask)[:, -length:]
        else:
            positions = torch.arange(length, device=embeds.device)[None] + past
        if attention_mask is None or attention_mask.ndim == 2:
            if self.training and token_type_ids is None and is_empty(past_key_values):
                raise ValueError(
                    "got no token_type_ids in training, expected 0 on image and prompt and 1 on the answer, [B, L]: "
                    "without them the model cannot tell which tokens attend to each other; CoTrainingCollator and "
                    "Pi0PlusProcessor write them"
                )
            first = length > 1 and is_empty(past_key_values)
            learns = self.training and torch.is_grad_enabled() and past_key_values is None
            if learns and token_type_ids is not None and not torch.compiler.is_compiling():
                check_training_rows(token_type_ids, attention_mask)
            allowed = prefix_attention(
                token_type_ids if first else None, attention_mask, past, length, key_length(past_key_values, length)
            )
            attention_mask = additive_mask(allowed.to(embeds.device), embeds.dtype)
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=positions + FIRST_POSITION,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class Pi0PlusForVision2Seq(ActionPredictionMixin, ImageLanguageHeadMixin, Pi0PlusPreTrainedModel, GenerationMixin):
    """The model that answers questions (`generate`) and acts (`predict_action`, `predict_actions`)."""

    backbone_class = Pi0PlusModel
    first_position = FIRST_POSITION

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`, also where TRL's trainers replace that by a function that does not pass `labels` on."""
        if kwargs.get("labels") is not None:
            kwargs["token_type_ids"] = end_prefix_at_labels(kwargs.get("token_type_ids"), kwargs["labels"])
        return super().__call__(*args, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `Pi0PlusModel.forward`, with logits and, for `labels`, the loss: see `logits_and_loss`.

        The prefix ends before the first supervised token of a row, whatever `token_type_ids` say.
        """
        if labels is not None:
            token_type_ids = end_prefix_at_labels(token_type_ids, labels)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return self.logits_and_loss(outputs, labels, logits_to_keep, return_dict, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a prompt without `token_type_ids` is all prefix.

        Raises:
            ValueError: if `past_key_values` hold a part of the prefix alone.
        """
        given = [*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))]
        prompt = next((value for value in given if value is not None), None)
        if prompt is not None and "prompt_length" not in kwargs:  # which an assistant gets from the model it assists
            kwargs["prompt_length"] = prompt.shape[1]
            types = kwargs.get("token_type_ids")
            if types is None:
                types = torch.zeros(prompt.shape[:2], dtype=torch.long, device=prompt.device)
            check_prefix_uncut(types, kwargs.get("attention_mask"), kwargs.get("past_key_values"))
            kwargs["token_type_ids"] = types
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, inputs_embeds: Any = None, prompt_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in `ImageLanguageHeadMixin`; tokens after the prompt, also candidates of an assistant, are answer."""
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        types = inputs.get("token_type_ids")
        if types is not None and prompt_length is not None:  # transformers repeats the prompt's last type
            cached = input_ids.shape[1] - types.shape[1]
            inputs["token_type_ids"] = types.clone()
            inputs["token_type_ids"][:, max(prompt_length - cached, 0) :] = 1
        return inputs

    def prompt_blocks(self, input_ids: torch.Tensor) -> torch.Tensor:
        """All of a prompt: it is prefix."""
        return torch.ones(len(input_ids), *2 * input_ids.shape[1:], dtype=torch.bool, device=input_ids.device)

    def predict_actions(self, *args: Any, token_type_ids: Any = None, **kwargs: Any) -> ActionPrediction:
        """As `ActionPredictionMixin.predict_actions`; `token_type_ids` has no effect: all is prefix."""
        return super().predict_actions(*args, **kwargs)

    @staticmethod
    def create_masks_for_generate(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        """The padding mask unchanged, also for caches of fixed length: the forward pass builds the full mask."""
        return attention_mask


def prefix_attention(
    token_type_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past: Any,
    queries: int,
    keys: int,
) -> torch.Tensor:
    """Which keys a query attends to, bool [B or 1, queries, keys]; see the picture in this file's docstring.

    Args:
        token_type_ids: int64 [B, queries], 0 on the prefix, which ends at the first 1; `None` where there is none.
        attention_mask: int64 [B, past + queries], 0 on padding; `None` without padding.
        past: tokens in the cache.
        keys: the sum of `past` and `queries`, or the length of a cache of fixed length.
    """
    given = token_type_ids if token_type_ids is not None else attention_mask
    device = given.device if given is not None else None
    key_places = torch.arange(keys, device=device)
    query_places = torch.arange(queries, device=device) + (past.to(device) if torch.is_tensor(past) else past)
    allowed = (key_places <= query_places[:, None])[None]
    if token_type_ids is not None:
        prefix = is_prefix(token_type_ids)
        seen = nn.functional.pad(prefix, (0, keys - queries))
        allowed = allowed | (prefix[:, :, None] & seen[:, None, :])
    if attention_mask is not None:
        real = nn.functional.pad(attention_mask.bool(), (0, keys - attention_mask.shape[1]))
        allowed = allowed & real[:, None, :]
    return allowed


def end_prefix_at_labels(token_type_ids: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
    """`token_type_ids` int64 [B, L] that are 1 on supervised tokens, too."""
    supervised = (labels != -100).long()
    return supervised if token_type_ids is None else token_type_ids | supervised


def is_prefix(token_type_ids: torch.Tensor) -> torch.Tensor:
    """Bool [B, L], true before the first 1 of a row."""
    return (token_type_ids != 0).cumsum(dim=1) == 0


def check_prefix_uncut(token_type_ids: torch.Tensor, attention_mask: torch.Tensor | None, cache: Any) -> None:
    """Raises `ValueError` for a cache that ends inside the prefix of a row, if types of all tokens are given."""
    if is_empty(cache) or (attention_mask is not None and attention_mask.shape[1] != token_type_ids.shape[1]):
        return
    prefix = is_prefix(token_type_ids)
    if attention_mask is not None:
        prefix = prefix & attention_mask.to(prefix.device).bool()
    if bool(prefix[:, int(cache.get_seq_length()) :].any()):
        raise ValueError(
            "got past_key_values that end inside the prefix (token_type_ids 0 from the first token on, which is the "
            "default), expected a 1 in the cached part of each row: the tokens of a prefix attend to each other and "
            "have to be computed at once; give token_type_ids that are 1 from the first answer on, or leave "
            "past_key_values out"
        )


def check_training_rows(token_type_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
    """Raises `ValueError` for a row that is not a prompt with an answer.

    Without an answer every token would attend to the token it is to predict; without a prompt the model would learn to
    continue a causal prompt, which `generate` never gives it.
    """
    real = torch.ones_like(token_type_ids) if attention_mask is None else attention_mask.to(token_type_ids.device)
    answer = ~is_prefix(token_type_ids)
    for name, tokens in (("an answer (1)", answer), ("a prompt (0)", ~answer)):
        missing = (real.bool().any(dim=1) & ~(tokens & real.bool()).any(dim=1)).nonzero()[:, 0].tolist()
        if missing:
            raise ValueError(
                f"got no token_type_ids of {name} in row {missing[0]} of {len(real)} in training, expected 0 on image "
                "and prompt, then 1 on the answer, and labels on the answer alone: a prompt is read in both "
                "directions. TRL's SFTTrainer has this from rows with 'prompt' and 'completion', not from 'messages' "
                "or 'text'"
            )


def key_length(cache: Any, queries: int) -> int:
    """Keys in the next step: the length of a cache of fixed length, or its tokens and the queries."""
    if cache is None:
        return queries
    return cache.layers[0].max_cache_len if cache.is_compileable else cache.get_seq_length() + queries


def widen_paligemma_state_dict(
    state_dict: dict[str, torch.Tensor], frozen: str | None = "siglip"
) -> dict[str, torch.Tensor]:
    """PaliGemma's weights under this model's names, the encoder doubled and the projector made [W, W] / 2.

    Args:
        state_dict: of `PaliGemmaForConditionalGeneration`, or of its files; both generations' names are known.
        frozen: as in `Pi0PlusConfig`; with `None` nothing is doubled.

    Raises:
        ValueError: for a tensor that is none of PaliGemma's, with its name.
    """
    widened: dict[str, torch.Tensor] = {}
    for name, tensor in state_dict.items():
        widened |= widen_paligemma_tensor(name, tensor, frozen)
    return widened


def widen_paligemma_tensor(name: str, tensor: torch.Tensor, frozen: str | None = "siglip") -> dict[str, torch.Tensor]:
    """The tensors that one tensor of PaliGemma becomes, by name.

    The names of transformers 5 (`model.vision_tower.encoder`), of transformers 4 (`model.vision_tower.vision_model`)
    and of the published files (`vision_tower.vision_model`, `language_model.model`) are known.
    """
    short = name.removeprefix("model.")
    if short in ("lm_head.weight", "language_model.lm_head.weight"):
        return {"lm_head.weight": tensor}
    part, _, rest = short.partition(".")
    if part == "language_model":
        return {f"model.language_model.{rest.removeprefix('model.')}": tensor}
    if part == "vision_tower":
        rest = rest.removeprefix("vision_model.")
        copies = ("siglip", "siglip_copy") if frozen else ("siglip",)
        return {f"model.vision_tower.{copy}.{rest}": tensor.clone() if copy != "siglip" else tensor for copy in copies}
    if short == "multi_modal_projector.linear.weight":
        return {"model.projector.weight": torch.cat([tensor, tensor], dim=1) / 2 if frozen else tensor}
    if short == "multi_modal_projector.linear.bias":
        return {"model.projector.bias": tensor}
    raise ValueError(
        f"got the tensor {name!r}, expected PaliGemma's: language_model, vision_tower or multi_modal_projector"
    )
