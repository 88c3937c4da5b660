"""What is particular to each family of vision-language models in transformers. A new family is one entry here."""

import inspect
from dataclasses import dataclass
from typing import Any

import transformers
from transformers.utils import logging

from .transformers_version import CAPS_LOGITS, check_vlm, is_older


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Family:
    """Where a family keeps what sees, and how its prompts are laid out.

    Attributes:
        vision: attributes of the base model that encode and project pictures; D needs a second copy of them.
        projectors: those of them, or modules inside them, that are trained in the frozen copy, too.
        first_position: of the first token of a row.
        bidirectional: which tokens of a prompt attend to one another in both directions: `"prompt"`, those of each
            `"picture"`, or none.
        differs: the first transformers that computes the family as newer ones do, and what older ones do.
    """

    vision: tuple[str, ...]
    projectors: tuple[str, ...]
    first_position: int = 0
    bidirectional: str | None = None
    differs: tuple[tuple[int, int], str] | None = None


PATCHES = ((5, 5), "gives the patches of pictures other positions")
CAP = (CAPS_LOGITS, "leaves out the cap on logits")
TOWER = ("vision_tower", "multi_modal_projector")
PROJECTOR = ("multi_modal_projector",)
FAMILIES = {
    "gemma3": Family(TOWER, PROJECTOR, bidirectional="picture"),
    "idefics3": Family(("vision_model", "connector"), ("connector",), differs=PATCHES),
    "internvl": Family(TOWER, PROJECTOR),
    "llava": Family(TOWER, PROJECTOR),
    "llava_next": Family((*TOWER, "image_newline"), (*PROJECTOR, "image_newline")),
    "llava_onevision": Family((*TOWER, "image_newline"), (*PROJECTOR, "image_newline")),
    "paligemma": Family(TOWER, PROJECTOR, first_position=1, bidirectional="prompt"),
    "qwen2_5_vl": Family(("visual",), ("visual.merger",)),
    "qwen3_vl": Family(("visual",), ("visual.merger", "visual.deepstack_merger_list")),
    "smolvlm": Family(("vision_model", "connector"), ("connector",), differs=PATCHES),
}


def family_of(vlm_config: Any) -> Family:
    """The entry of a configuration; `ValueError` for a family without one and for layers that keep a state, and
    `ImportError` for a transformers that is too old.
    """
    check_vlm()
    text = vlm_config.get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if others:
        raise ValueError(
            f"got a language model with layers of type {', '.join(others)}, expected full or sliding attention: "
            "recurrent and linear layers cannot check a tree of continuations in one pass"
        )
    if getattr(text, "kv_lora_rank", None):
        raise ValueError(
            f"got a {text.model_type} language model, whose latent attention (kv_lora_rank) caches keys and values of "
            "different widths, expected one that caches both in one shape, such as Llama's or Qwen's"
        )
    window, context = getattr(text, "sliding_window", None), getattr(text, "max_position_embeddings", None)
    if window and window < (context or 0) and "sliding_window" not in inspect.signature(type(text)).parameters:
        raise ValueError(
            f"got a {text.model_type} language model with sliding_window={window}, expected none: its layers do not "
            "slide, but the cache of generate would; remove it from the text_config in config.json"
        )
    if vlm_config.model_type not in FAMILIES:
        raise ValueError(
            f"got a vision-language model of type {vlm_config.model_type!r}, expected one of {', '.join(FAMILIES)}; "
            "another one needs an entry in modeling/vlm_families.py"
        )
    if vlm_config.vision_config.model_type == "pixtral":
        raise ValueError(
            "got a llava whose pictures a Pixtral encodes, expected a CLIP or a SigLIP: Pixtral's processor, which "
            "writes a token behind each line of patches, has not been tried"
        )
    family = FAMILIES[vlm_config.model_type]
    differs = family.differs
    if getattr(text, "final_logit_softcapping", None):
        if vlm_config.model_type != "paligemma":
            raise ValueError(
                f"got a {vlm_config.model_type} over a language model that caps its logits (final_logit_softcapping), "
                "expected paligemma: transformers applies the cap in that alone"
            )
        differs = CAP
    if differs and is_older(differs[0]):
        logger.warning_once(
            f"got transformers {transformers.__version__}, which {differs[1]} in {vlm_config.model_type}, expected "
            f"{'.'.join(map(str, differs[0]))} or newer: answers and actions may differ from those of newer ones"
        )
    return family
