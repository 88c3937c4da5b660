"""Processors of the model families; every file but this one ships to the Hub.

`register_for_auto_class` is called here, so that what is saved can be loaded without this package.
"""

from gen_vla.processors.action_bins import ActionBins, codec_from_action_config
from gen_vla.processors.action_grammar import (
    ActionGrammar,
    ActionLogitsProcessor,
    BinGrammar,
    grammar_from_action_config,
    make_action_config,
)
from gen_vla.processors.action_statistics import (
    compute_statistics,
    count_clipped,
    normalize_actions,
    select_statistics,
    unnormalize_actions,
)
from gen_vla.processors.action_strings import ActionStringError, ActionStringProcessor
from gen_vla.processors.image_processing_openvla_plus import OpenVLAPlusImageProcessor
from gen_vla.processors.processing_openvla_plus import OpenVLAPlusProcessor
from gen_vla.processors.processing_pi0_flow import PI0_FLOW_PROMPT_TEMPLATE, Pi0FlowProcessor, make_flow_action_config
from gen_vla.processors.processing_vla_plus import VLA_PROMPT_TEMPLATE, VLAPlusProcessor, read_stock, with_actions
from gen_vla.processors.prompt_texts import PROMPT_TEMPLATE


OpenVLAPlusImageProcessor.register_for_auto_class("AutoImageProcessor")
OpenVLAPlusProcessor.register_for_auto_class("AutoProcessor")
Pi0FlowProcessor.register_for_auto_class("AutoProcessor")
VLAPlusProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "PI0_FLOW_PROMPT_TEMPLATE",
    "PROMPT_TEMPLATE",
    "VLA_PROMPT_TEMPLATE",
    "ActionBins",
    "ActionGrammar",
    "ActionLogitsProcessor",
    "ActionStringError",
    "ActionStringProcessor",
    "BinGrammar",
    "OpenVLAPlusImageProcessor",
    "OpenVLAPlusProcessor",
    "Pi0FlowProcessor",
    "VLAPlusProcessor",
    "codec_from_action_config",
    "compute_statistics",
    "count_clipped",
    "grammar_from_action_config",
    "make_action_config",
    "make_flow_action_config",
    "normalize_actions",
    "read_stock",
    "select_statistics",
    "unnormalize_actions",
    "with_actions",
]
