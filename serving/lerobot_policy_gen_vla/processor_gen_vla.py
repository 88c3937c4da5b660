"""Pipelines around the policy: a batch dimension and the device before, the CPU after.

Nothing is normalised here: the model's own processor prepares pictures, and the model turns what it writes into the
units of its data set by the statistics it was trained with.
"""

from pathlib import Path
from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from .configuration_gen_vla import GenVLAConfig


def make_gen_vla_pre_post_processors(config: GenVLAConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=config.device),
    ]
    return (
        PolicyProcessorPipeline[dict[str, Any], dict[str, Any]](before, name=POLICY_PREPROCESSOR_DEFAULT_NAME),
        PolicyProcessorPipeline[PolicyAction, PolicyAction](
            [DeviceProcessorStep(device="cpu")],
            name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )


def save_settings(config: GenVLAConfig, folder: Path) -> None:
    """What `--policy.path=FOLDER` reads: the configuration and both pipelines."""
    folder.mkdir(parents=True, exist_ok=True)
    config._save_pretrained(folder)
    for pipeline in make_gen_vla_pre_post_processors(config):
        pipeline.save_pretrained(folder)
