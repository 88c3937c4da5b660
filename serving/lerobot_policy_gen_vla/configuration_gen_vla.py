"""Settings of the policy, as `--policy.*` on LeRobot's command lines."""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from lerobot.configs.policies import PreTrainedConfig
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig


SAVED = "model"  # folder of the model in the folder of a policy


@PreTrainedConfig.register_subclass("gen_vla")
@dataclass
class GenVLAConfig(PreTrainedConfig):
    """Which model acts, and how."""

    checkpoint_path: str | None = None  # a repository of the family, by its name on the Hub or as a folder
    trust_remote_code: bool = False  # consent to run the code that comes with it; without it nothing is loaded
    # The address of a `gen-vla serve`, such as `ws://127.0.0.1:8000`, which is asked instead of loading the model
    # here. Its key is read from GEN_VLA_API_KEY.
    server: str | None = None
    unnorm_key: str | None = None  # the data set whose units actions have; needed where the model knows several
    # The observation's key for each of the model's cameras, such as `{top: observation.images.front}`. A model of one
    # camera needs it only where there are several pictures; others where names differ.
    cameras: dict[str, str] = field(default_factory=dict)
    instruction: str | None = None  # for environments that say nothing of what to do
    n_action_steps: int | None = None  # steps of a chunk that are carried out; by default all
    dtype: str = "auto"  # of the weights: as saved, float32 or bfloat16
    max_answer_tokens: int = 64
    optimizer_lr: float = 2e-5
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 100
    scheduler_decay_steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"got dtype {self.dtype!r}, expected auto, float32 or bfloat16")
        if self.n_action_steps is not None and self.n_action_steps < 1:
            raise ValueError(f"got n_action_steps {self.n_action_steps}, expected at least 1")

    def validate_features(self) -> None:
        if self.input_features and not self.image_features:
            raise ValueError(f"got the features {sorted(self.input_features)}, expected pictures among them")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(saved_settings(self.checked_checkpoint())["action_config"]["horizon"]))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=0.0, grad_clip_norm=self.optimizer_grad_clip_norm)

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
            peak_lr=self.optimizer_lr,
            decay_lr=0.0,
        )

    def checked_checkpoint(self) -> str:
        """Raises `ValueError` unless a model is named and its code is trusted."""
        if not self.checkpoint_path:
            raise ValueError(
                "got no model, expected --policy.checkpoint_path=OWNER/NAME or a folder, or --policy.server=ws://..."
            )
        if not self.trust_remote_code:
            raise ValueError(
                f"got {self.checkpoint_path} without --policy.trust_remote_code=true; a model of this family brings "
                "code of its own, which runs here: read it first, then consent"
            )
        return resolved(self.checkpoint_path, self.pretrained_path)


def resolved(checkpoint: str, policy: Any) -> str:
    """The folder or name of a model; one that was saved with a policy lies in the policy's folder or repository."""
    if checkpoint != SAVED or policy is None:
        return checkpoint
    folder = Path(policy) if Path(policy).is_dir() else Path(snapshot_download(str(policy)))
    return str(folder / SAVED)


@lru_cache
def saved_settings(checkpoint: str) -> dict[str, Any]:
    """The `config.json` of a repository; raises `ValueError` unless it is of this family."""
    folder = Path(checkpoint)
    path = folder / "config.json" if folder.is_dir() else Path(hf_hub_download(checkpoint, "config.json"))
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "horizon" not in (settings.get("action_config") or {}):
        raise ValueError(f"got {checkpoint}, which says nothing of actions, expected a trained model of the family")
    return settings
