"""The models. Everything here but this file ships to the Hub.

`register_for_auto_class` lives here and not in the modules, because this file never ships: what is saved can then be
loaded without this package.
"""

from gen_vla.modeling.action_prediction import ActionPrediction
from gen_vla.modeling.configuration_openvla_plus import OpenVLAPlusConfig
from gen_vla.modeling.configuration_pi0_plus import Pi0PlusConfig
from gen_vla.modeling.dual_vision_tower import DualVisionTower
from gen_vla.modeling.modeling_openvla_plus import OpenVLAPlusForVision2Seq, OpenVLAPlusModel
from gen_vla.modeling.modeling_pi0_plus import Pi0PlusForVision2Seq, Pi0PlusModel, widen_paligemma_state_dict


OpenVLAPlusConfig.register_for_auto_class()
OpenVLAPlusForVision2Seq.register_for_auto_class("AutoModelForImageTextToText")
Pi0PlusConfig.register_for_auto_class()
Pi0PlusForVision2Seq.register_for_auto_class("AutoModelForImageTextToText")

__all__ = [
    "ActionPrediction",
    "DualVisionTower",
    "OpenVLAPlusConfig",
    "OpenVLAPlusForVision2Seq",
    "OpenVLAPlusModel",
    "Pi0PlusConfig",
    "Pi0PlusForVision2Seq",
    "Pi0PlusModel",
    "widen_paligemma_state_dict",
]
