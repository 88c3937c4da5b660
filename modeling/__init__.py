"""The model families; every file but this one ships to the Hub, the `convert_*` and `conversion_plan` files excepted.

`register_for_auto_class` is called here, so that what is saved can be loaded without this package.
"""

from typing import Any

from gen_vla.modeling.action_prediction import ActionPrediction
from gen_vla.modeling.configuration_openvla_plus import OpenVLAPlusConfig
from gen_vla.modeling.dual_vision_tower import DualVisionTower
from gen_vla.modeling.modeling_openvla_plus import OpenVLAPlusForVision2Seq
from gen_vla.modeling.openvla_plus_backbone import OpenVLAPlusModel
from gen_vla.modeling.transformers_version import check_transformers


too_old: dict[str, str] = {}  # names that need a newer transformers, which the other families do not
try:
    from gen_vla.modeling.configuration_pi0_flow import Pi0FlowConfig
    from gen_vla.modeling.modeling_pi0_flow import FlowPrediction, Pi0FlowForActionPrediction
except ImportError as error:
    too_old |= dict.fromkeys(("Pi0FlowConfig", "FlowPrediction", "Pi0FlowForActionPrediction"), str(error))
else:
    Pi0FlowConfig.register_for_auto_class()
    Pi0FlowForActionPrediction.register_for_auto_class("AutoModelForImageTextToText")
try:  # which a repository's own code reads with 4.57 as well
    check_transformers("a stock VLM")
    from gen_vla.modeling.configuration_vla_plus import VLAPlusConfig
    from gen_vla.modeling.modeling_vla_plus import VLAPlusForVision2Seq
except ImportError as error:
    too_old |= dict.fromkeys(("Pi0PlusForVision2Seq", "VLAPlusConfig", "VLAPlusForVision2Seq"), str(error))
else:
    VLAPlusConfig.register_for_auto_class()
    VLAPlusForVision2Seq.register_for_auto_class("AutoModelForImageTextToText")
    Pi0PlusForVision2Seq = VLAPlusForVision2Seq  # the paper's name where the VLM is PaliGemma


def __getattr__(name: str) -> Any:
    """Raises where a name needs a newer transformers."""
    if name in too_old:
        raise ImportError(too_old[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


OpenVLAPlusConfig.register_for_auto_class()
OpenVLAPlusForVision2Seq.register_for_auto_class("AutoModelForImageTextToText")

__all__ = [
    "ActionPrediction",
    "DualVisionTower",
    "FlowPrediction",
    "OpenVLAPlusConfig",
    "OpenVLAPlusForVision2Seq",
    "OpenVLAPlusModel",
    "Pi0FlowConfig",
    "Pi0FlowForActionPrediction",
    "Pi0PlusForVision2Seq",
    "VLAPlusConfig",
    "VLAPlusForVision2Seq",
]
