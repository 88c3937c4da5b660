"""Any vision-language model of transformers as a policy: the stock model inside, with or without the paper's D.

Questions and training go through the stock model's own forward pass and `generate`. Actions are decoded by tree passes
(`tree_decoding.py`) through its own image features, embeddings and language model.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForImageTextToText, GenerationMixin, PreTrainedModel

from .action_prediction import ActionPredictionMixin
from .configuration_vla_plus import VLAPlusConfig
from .openvla_contract import OpenVLAContractMixin, check_fills_caches
from .vision_twin import add_frozen_vision
from .vlm_families import family_of


# isort: split
# What those files import: some transformers copy from a local folder only what this file names itself.
from .action_bins import ActionBins  # noqa: F401
from .action_grammar import ActionGrammar  # noqa: F401
from .action_statistics import select_statistics  # noqa: F401
from .action_strings import ActionStringProcessor  # noqa: F401
from .base_configuration import as_config  # noqa: F401
from .cpu_threads import limit_cpu_threads  # noqa: F401
from .draft_trees import Drafts  # noqa: F401
from .fused_layers import run_layers  # noqa: F401
from .generation_options import checked_options  # noqa: F401
from .parallel_streams import in_parallel  # noqa: F401
from .prefix_actions import prefix_tokens  # noqa: F401
from .recorded_passes import recorded_forward  # noqa: F401
from .relative_actions import to_relative  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401
from .tree_decoding import TreeDecoder  # noqa: F401
from .verification_passes import additive_mask  # noqa: F401


if TYPE_CHECKING:  # imported where there is a GPU
    from .triton_operations import TritonOperations  # noqa: F401


# Of weights in files, those of each family's first version, and in transformers 4's memory; the first match counts.
SIGLIP_OR_CLIP = r"encoder\.layers|embeddings\.\w+_embedding\b|p(re|ost)_la"
NAMES_IN_TRANSFORMERS_4 = {
    rf"^vlm\.(model\.)?(\w+\.)?vision_tower\.(?={SIGLIP_OR_CLIP})": r"vlm.model.\2vision_tower.vision_model.",
    r"^vlm\.language_model\.lm_head": "vlm.lm_head",
    r"^vlm\.language_model\.(model\.)?": "vlm.model.language_model.",
    r"^vlm\.model\.(?=embed_tokens|layers|norm)": "vlm.model.language_model.",
    r"^vlm\.(?=vision_tower|multi_modal_projector|visual|image_newline)": "vlm.model.",
}


class VLAPlusForVision2Seq(ActionPredictionMixin, OpenVLAContractMixin, PreTrainedModel, GenerationMixin):
    """The model that answers questions (`generate`) and acts (`predict_action`, `predict_actions`)."""

    config_class = VLAPlusConfig
    base_model_prefix = "vlm"
    implied_inputs = frozenset(("token_type_ids", "mm_token_type_ids"))
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = False  # see openvla_contract.py
    _supports_attention_backend = True

    def __init__(self, config: VLAPlusConfig):
        super().__init__(config)
        self.family = family_of(config.vlm_config)
        self.vlm: Any = AutoModelForImageTextToText.from_config(config.vlm_config)
        if transformers.__version__ < "5" and config.text_config.tie_word_embeddings:
            self._tied_weights_keys: Any = ["vlm.lm_head.weight"]
        if config.frozen:
            add_frozen_vision(self.vlm.model, self.family)
        self.first_position = self.family.first_position
        self.windows_bound_blocks = self.family.bidirectional == "picture"
        taken = inspect.signature(self.vlm.model.get_image_features).parameters
        self.picture_inputs = frozenset(taken)
        # Qwen's has a default in the signature, and does not work without.
        needed = {name for name, each in taken.items() if each.default is each.empty} | {"image_grid_thw"}
        self.picture_sizes = needed & {"image_grid_thw", "image_sizes"} & set(taken)
        self.post_init()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`, also where TRL's trainers replace that by a function that does not pass `labels` on."""
        return super().__call__(*args, **self.with_token_types(kwargs))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As `OpenVLAContractMixin.from_pretrained`."""
        if transformers.__version__ < "5":
            kwargs.setdefault("key_mapping", NAMES_IN_TRANSFORMERS_4)
        return super().from_pretrained(*args, **kwargs)

    @property
    def base_model(self) -> Any:
        """What gives the last hidden states, as transformers and TRL look for it."""
        return self.vlm.model

    @classmethod
    def from_vlm(cls, vlm: Any, frozen: str | None = "vision", **settings: Any) -> "VLAPlusForVision2Seq":
        """A model around a stock one, whose weights it takes over, with fields of `VLAPlusConfig`."""
        with torch.device("meta"):
            model = cls(VLAPlusConfig(vlm.config, frozen=None, **settings))
        model.vlm, model.config.frozen, model.generation_config = vlm, frozen, vlm.generation_config
        if frozen:
            add_frozen_vision(vlm.model, model.family)
        return model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the stock model's; also checks pictures. Where a prompt attends in both directions, it ends before the
        first label.
        """
        self.check_pictures(input_ids, pixel_values, **kwargs)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
        return self.vlm(**self.with_token_types({**inputs, "labels": labels, **kwargs}))

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the stock model's; checks weights and pictures, and never writes the image token."""
        self.check_weights()
        if kwargs.get("pixel_values") is None:
            kwargs.pop("pixel_values", None)  # stock models take it for a picture
        if inputs is not None:
            kwargs["input_ids"] = inputs
        self.check_pictures(**{"input_ids": None, "pixel_values": None, **kwargs})
        kwargs = self.with_token_types(kwargs)
        self.vlm.generation_config = self.generation_config
        return self.vlm.generate(None, *args, **self.without_image_token(kwargs))

    def check_weights(self) -> None:
        """As `OpenVLAContractMixin.check_weights`; also that layers fill the cache, which checkpointed ones do not."""
        super().check_weights()
        check_fills_caches(self.get_decoder())

    def check_pictures(self, input_ids: torch.Tensor | None, pixel_values: Any, **others: Any) -> None:
        """Raises `ValueError` if pictures come without their sizes, where a family needs those, or tokens behind those
        of the cache stand for pictures that are not given.
        """
        if pixel_values is not None:
            for name in self.picture_sizes:
                if others.get(name) is None:
                    raise ValueError(f"got pixel_values without {name}, expected everything the processor returned")
            return
        given = others.get("image_hidden_states") is not None or others.get("mm_encoder_outputs") is not None
        if given or input_ids is None or torch.compiler.is_compiling():
            return
        fed = input_ids[:, cached_length(others.get("past_key_values")) :]
        if count := int((fed == self.config.image_token_id).sum()):
            raise ValueError(
                f"got {count} image tokens in input_ids and no pixel_values, expected the pictures they stand for; "
                "pass everything the processor returned"
            )

    def with_token_types(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs with the `token_types` that a caller left out: without them, some stock models count positions
        otherwise, or attend in one direction only, and do not say so. Those of PaliGemma follow from labels, too.
        """
        input_ids, labels = inputs.get("input_ids"), inputs.get("labels")
        if input_ids is not None and not cached_length(inputs.get("past_key_values")):
            types = self.token_types(input_ids)
            inputs = {**inputs, **{name: value for name, value in types.items() if inputs.get(name) is None}}
        if self.family.bidirectional == "prompt" and labels is not None:
            supervised, types = (labels != -100).long(), inputs.get("token_type_ids")
            if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
                check_prompts(supervised, inputs.get("attention_mask"))
            supervised = supervised if types is None else supervised | types
            inputs = {**inputs, "token_type_ids": (supervised.cumsum(dim=1) > 0).long()}
        return inputs

    def embed_prompt(self, input_ids: torch.Tensor, **pictures: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """See `ActionPredictionMixin`."""
        self.check_pictures(input_ids, **pictures)
        device, places = input_ids.device, input_ids == self.config.image_token_id
        embeds = self.get_input_embeddings()(input_ids.masked_fill(places, 0))  # some vocabularies lack that token
        found = self.vlm.model.get_image_features(
            **{name: value.to(device) if torch.is_tensor(value) else value for name, value in pictures.items()}
        )
        features, deepstack = found, ()
        if transformers.__version__ >= "5":
            features, deepstack = found.pooler_output, getattr(found, "deepstack_features", None) or ()
        elif isinstance(found[0], tuple):  # both of Qwen3-VL
            features, deepstack = found
        features = joined(features)
        recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()  # where nothing can be counted
        if not recording and (tokens := int(places.sum())) != len(features):
            raise ValueError(
                f"got {tokens} image tokens in input_ids and pictures of {len(features)} features, expected as many; "
                "pass everything the processor returned, and cut no row"
            )
        embeds = embeds.masked_scatter(places[..., None], features.to(embeds.dtype))
        if not deepstack:
            return embeds, {}
        return embeds, {"visual_pos_masks": places, "deepstack_visual_embeds": [joined(each) for each in deepstack]}

    def prompt_positions(
        self, input_ids: torch.Tensor, seen: torch.Tensor, **pictures: Any
    ) -> tuple[torch.Tensor, torch.Tensor | int]:
        """As `ActionPredictionMixin.prompt_positions`; three rows where pictures have two dimensions (M-RoPE)."""
        if not hasattr(self.vlm.model, "get_rope_index"):
            return super().prompt_positions(input_ids, seen)
        self.check_pictures(input_ids, **pictures)
        grid = pictures["image_grid_thw"].to(input_ids.device)
        positions, _ = self.vlm.model.get_rope_index(
            input_ids, image_grid_thw=grid, attention_mask=seen.long(), **self.token_types(input_ids)
        )
        last = positions.masked_fill(~seen, 0).amax(dim=(0, 2))
        return positions, (last + 1 - seen.sum(dim=1))[:, None]

    def prompt_blocks(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """As `ActionPredictionMixin.prompt_blocks`."""
        if self.family.bidirectional is None:
            return None
        blocks = torch.zeros_like(input_ids)
        if self.family.bidirectional == "picture":
            picture = input_ids == self.config.image_token_id
            begins = picture & ~nn.functional.pad(picture, (1, 0))[:, :-1]
            blocks = torch.where(picture, begins.cumsum(dim=1), -1)
        return (blocks[:, :, None] == blocks[:, None]) & (blocks >= 0)[:, None]

    def token_types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `ActionPredictionMixin.token_types`: which tokens are those of pictures."""
        pictures = input_ids == self.config.image_token_id
        if self.family.bidirectional is not None:
            return {"token_type_ids": pictures.long() * (self.family.bidirectional == "picture")}
        rope_index = getattr(self.vlm.model, "get_rope_index", None)
        if rope_index is not None and "mm_token_type_ids" in inspect.signature(rope_index).parameters:
            return {"mm_token_type_ids": pictures.int()}
        return {}

    @property
    def generating_model(self) -> Any:
        """The stock model."""
        return self.vlm

    def get_output_embeddings(self) -> nn.Module:
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.vlm.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> Any:
        found = self.vlm.get_decoder()
        return getattr(found, "text_model", found)  # transformers 4 finds Idefics3's base model


def check_prompts(supervised: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
    """Raises `ValueError` for a row that begins with a label: its prompt would be trained in one direction, in which
    `generate` never reads it.
    """
    first = torch.zeros(len(supervised), dtype=torch.long) if attention_mask is None else attention_mask.argmax(dim=1)
    begun = supervised.gather(1, first.to(supervised.device)[:, None])[:, 0].nonzero()[:, 0].tolist()
    if begun:
        raise ValueError(
            f"got labels on all of row {begun[0]} of {len(supervised)}, expected -100 on the prompt: it is read in "
            "both directions, and only answers are learned. TRL's SFTTrainer masks the prompt of rows with 'prompt' "
            "and 'completion', not of 'messages' or 'text'"
        )


def cached_length(cache: Any) -> int:
    """Tokens in a cache of keys and values, or in none."""
    return 0 if cache is None else cache.get_seq_length()


def joined(features: Any) -> torch.Tensor:
    """Image features as one tensor [image tokens, width]."""
    features = features if torch.is_tensor(features) else torch.cat([*features], dim=0)
    return features.flatten(0, -2)
