"""What is particular to each family of vision-language models in transformers. A new family is one entry here."""

from dataclasses import dataclass
from typing import Any

from .transformers_version import check_transformers, check_vlm


@dataclass(frozen=True)
class Family:
    """Where a family keeps what sees, and how its prompts are laid out.

    Attributes:
        vision: attributes of the base model that encode and project pictures; D needs a second copy of them.
        projectors: those of them, or modules inside them, that are trained in the frozen copy, too.
        first_position: of the first token of a row.
        bidirectional: which tokens of a prompt attend to one another in both directions: `"prompt"`, those of each
            `"picture"`, or none.
        since_5: whether transformers 4.57 has other features: there Idefics3 counts patches otherwise, and
            `get_image_features` puts no tiles together.
    """

    vision: tuple[str, ...]
    projectors: tuple[str, ...]
    first_position: int = 0
    bidirectional: str | None = None
    since_5: bool = False


TOWER = ("vision_tower", "multi_modal_projector")
PROJECTOR = ("multi_modal_projector",)
FAMILIES = {
    "gemma3": Family(TOWER, PROJECTOR, bidirectional="picture"),
    "idefics3": Family(("vision_model", "connector"), ("connector",), since_5=True),
    "internvl": Family(TOWER, PROJECTOR),
    "llava": Family(TOWER, PROJECTOR),
    "llava_next": Family((*TOWER, "image_newline"), (*PROJECTOR, "image_newline"), since_5=True),
    "llava_onevision": Family((*TOWER, "image_newline"), (*PROJECTOR, "image_newline"), since_5=True),
    "paligemma": Family(TOWER, PROJECTOR, first_position=1, bidirectional="prompt"),
    "qwen2_5_vl": Family(("visual",), ("visual.merger",)),
    "qwen3_vl": Family(("visual",), ("visual.merger", "visual.deepstack_merger_list")),
    "smolvlm": Family(("vision_model", "connector"), ("connector",), since_5=True),
}


def family_of(vlm_config: Any) -> Family:
    """The entry of a configuration; `ValueError` for a family without one and for layers that keep a state, and
    `ImportError` for a transformers that is too old.
    """
    text = vlm_config.get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if others:
        raise ValueError(
            f"got a language model with layers of type {', '.join(others)}, expected full or sliding attention: "
            "recurrent and linear layers cannot check a tree of continuations in one pass"
        )
    if getattr(text, "final_logit_softcapping", None):
        if vlm_config.model_type != "paligemma":
            raise ValueError(
                f"got a {vlm_config.model_type} over a language model that caps its logits (final_logit_softcapping), "
                "expected paligemma: transformers applies the cap in that alone"
            )
        check_transformers("PaliGemma 2")
    if vlm_config.model_type not in FAMILIES:
        raise ValueError(
            f"got a vision-language model of type {vlm_config.model_type!r}, expected one of {', '.join(FAMILIES)}; "
            "another one needs an entry in modeling/vlm_families.py"
        )
    family = FAMILIES[vlm_config.model_type]
    check_vlm(in_four=not family.since_5)
    return family
