"""One or two vision encoders side by side, of which at most one is frozen (the paper's D): no gradient, no autograd
graph, evaluation mode whatever `train()` says.

OpenVLA+: DINOv2 with 4 registers and SigLIP on 224 pixels (256 patches), features before the last block:

    pixel_values [B, 6, 224, 224] = DINOv2's normalisation of the picture on channels 0-2, SigLIP's on 3-5
    dino   [B, 1 + 4 + 256, 1024] -> drop CLS and registers -> [B, 256, 1024]
    siglip [B, 256, 1152]                                    -> [B, 256, 1152]
    features = concatenation on the last axis                 [B, 256, 2176]
"""

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from .parallel_streams import in_parallel


# DINOv2's attention: names in files and in transformers 4, and in transformers 5.
ATTENTION_IN_TRANSFORMERS_5 = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}


class DualVisionTower(nn.Module):
    """Vision encoders whose patch features are concatenated on channels.

    Args:
        encoders: configuration by name, in the order of their channels.
        frozen: the name of the encoder that never moves, `"all"`, or `None`.
    """

    def __init__(self, encoders: dict[str, Any], frozen: str | None):
        super().__init__()
        if frozen not in (*encoders, "all", None):
            raise ValueError(f"got frozen={frozen!r}, expected one of {', '.join(encoders)}, 'all' or None")
        self.names = tuple(encoders)
        self.frozen = frozen
        self.prefix_tokens = {name: prefix_tokens(config) for name, config in encoders.items()}
        self.widths = [config.hidden_size for config in encoders.values()]
        self.width = sum(self.widths)
        for name, config in encoders.items():
            self.add_module(name, second_to_last_block_encoder(config))
        self.freeze()

    def freeze(self) -> None:
        """Freezes the frozen encoder; `train()` does it again, since trainers switch modes wholesale.

        The token that masks patches in DINOv2's pretraining is frozen as well: nothing here uses it, and a parameter
        without a gradient stops distributed training. `from_pretrained` would undo that if done only once.
        """
        for name in self.names:
            mask_token = getattr(self.get_submodule(name).embeddings, "mask_token", None)
            if mask_token is not None:
                mask_token.requires_grad_(False)
        for name in filter(self.is_frozen, self.names):
            self.get_submodule(name).requires_grad_(False).eval()

    def is_frozen(self, name: str) -> bool:
        """Whether an encoder never moves."""
        return self.frozen in (name, "all")

    def train(self, mode: bool = True) -> "DualVisionTower":
        super().train(mode)
        self.freeze()
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """As in torch, also with the tensor names of files: Trainer reads its checkpoints with `load_state_dict`."""
        own = {prefix + name for name in self.state_dict()}
        for name in [name for name in state_dict if name.startswith(prefix) and name not in own]:
            if (renamed := name_in_transformers_5(name)) in own:
                state_dict[renamed] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values float [B, channels, H, W] to features [B, N, sum of widths]; see the layouts above."""
        expected = 3 * len(self.names)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != expected:
            raise ValueError(
                f"got pixel_values of shape {list(pixel_values.shape)}, expected [B, {expected}, H, W]: three "
                f"channels for each of {', '.join(self.names)}; use the processor that belongs to the model"
            )
        pixels = pixel_values.split(3, dim=1)
        calls = [partial(self.encode, name, part) for name, part in zip(self.names, pixels)]
        return torch.cat(in_parallel(pixel_values.device, *calls), dim=-1)

    def encode(self, name: str, pixels: torch.Tensor) -> torch.Tensor:
        """One encoder's patch features [B, N, width] of its pixel values [B, 3, H, W]."""
        encoder = self.get_submodule(name)
        pixels = pixels.to(next(encoder.parameters()).dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen(name)):
            hidden = encoder(pixel_values=pixels).last_hidden_state
        return hidden[:, self.prefix_tokens[name] :]


def name_in_transformers_5(name: str) -> str:
    """The name of DINOv2's tensor in transformers 5's memory; in files it has the name of transformers 4."""
    for old, new in ATTENTION_IN_TRANSFORMERS_5.items():
        name = name.replace(old, new)
    return name


def prefix_tokens(config: Any) -> int:
    """Tokens before the patches: CLS and registers in DINOv2, none in SigLIP."""
    if config.model_type == "siglip_vision_model":
        return 0
    return 1 + getattr(config, "num_register_tokens", 0)


def second_to_last_block_encoder(config: Any) -> nn.Module:
    """An encoder whose `last_hidden_state` is the output of the second-to-last block.

    The last block and SigLIP's pooling head are not built and the final norm is the identity, so that no parameter is
    without a gradient.
    """
    config = deepcopy(config)
    config.num_hidden_layers -= 1
    config.vision_use_head = False
    encoder = AutoModel.from_config(config)
    encoder = getattr(encoder, "vision_model", encoder)  # transformers 4 nests SigLIP one level deeper
    final_norm = "post_layernorm" if config.model_type == "siglip_vision_model" else "layernorm"
    setattr(encoder, final_norm, nn.Identity())
    return encoder
