"""The robot's state in prompts: bins, templates, errors, every family's inputs."""

import numpy as np
import pytest
import torch
from tiny_models import picture, tiny_pi0_flow_processor, tiny_pi0_processor, tiny_processor

from gen_vla.processors import PI0_FLOW_PROMPT_TEMPLATE, PROMPT_TEMPLATE, VLA_PROMPT_TEMPLATE, ActionStringProcessor
from gen_vla.processors.robot_state import RobotStateError, state_text, template_with_state


STATE = {"q01": [-1.0, 0.0, 5.0], "q99": [1.0, 4.0, 5.0], "min": [-2, 0, 5], "max": [2, 4, 5]}
OTHER = {"q01": [0.0], "q99": [1.0]}
FAMILIES = {"openvla_plus": tiny_processor, "pi0_plus": tiny_pi0_processor, "pi0_flow": tiny_pi0_flow_processor}


@pytest.fixture(params=FAMILIES)
def taking(request, llama_like):
    """A processor that takes the state, of each family."""
    format_of = {} if request.param == "pi0_flow" else {"strings": ActionStringProcessor(3, decimals=2)}
    made = FAMILIES[request.param](llama_like, **format_of)
    made.action_config = {**made.action_config, "state": "input"}
    made.prompt_template = template_with_state(made.prompt_template, request.param != "pi0_flow")
    made.state_statistics = {"arm": {"proprio": STATE}, "other": {"proprio": OTHER}}
    return made


def test_bins_are_openpis():
    values = np.concatenate([np.linspace(-1, 1, 1001), np.arange(256) / 128 - 1])
    openpi = np.digitize(values, bins=np.linspace(-1, 1, 256 + 1)[:-1]) - 1
    assert state_text(values) == " ".join(map(str, openpi))
    assert state_text(np.array([-1.0, 0.0, 1.0])) == "0 128 255"


@pytest.mark.parametrize(
    ("template", "asks"),
    [
        (PROMPT_TEMPLATE, "In: What action should the robot take to {instruction}? State: {state}\nOut:"),
        (VLA_PROMPT_TEMPLATE, "What action should the robot take to {instruction}? State: {state}"),
        (PI0_FLOW_PROMPT_TEMPLATE, "{instruction} State: {state}\n"),
        ({"action": "user\n{instruction}?<|im_end|>\n"}, "user\n{instruction}? State: {state}<|im_end|>\n"),
    ],
)
def test_a_template_takes_a_state_and_gives_it_back(template, asks):
    with_state = template_with_state(template, True)
    assert with_state["action"] == asks
    assert template_with_state(with_state, True) == with_state
    assert template_with_state(with_state, False) == template


def test_the_state_is_scaled_clipped_and_beside_the_inputs(taking):
    """By q01 and q99; what never changes is 0."""
    inputs = taking.action_inputs(
        [picture(), picture(1)], ["go", "go"], state=[[0, 9, 5], [0.5]], unnorm_key=["arm", "other"]
    )
    assert inputs["state"].tolist() == [[0, 9, 5], [0.5, 0, 0]]
    assert inputs.to("cpu", torch.bfloat16)["state"].dtype == np.float64  # what actions are relative to stays exact
    assert taking.normalized_state([0.5, 9, 5], "arm").tolist() == pytest.approx([0.5, 1, 0])
    shown = "{state}" in taking.prompt_template["action"]
    assert ("State: 191 255 128" in taking.action_prompt("go", [0.499, 9, 5], "arm")) == shown
    alone = taking.action_inputs(picture(), "go", state=np.array([0, 9, 5]), unnorm_key="arm")
    length = alone["input_ids"].shape[1]
    assert alone["input_ids"].tolist() == inputs["input_ids"][:1, -length:].tolist()


@pytest.mark.parametrize(
    ("state", "key", "message"),
    [
        (None, "arm", "got no state, expected the robot's, 3 numbers"),
        ([0.0, 1.0], "arm", r"got a state with shape \[2\], expected 3 finite numbers"),
        ([0.0, float("nan"), 5.0], "arm", "got a state with NaN or infinity in it, expected 3"),
        ([[0.0] * 3, [0.0] * 3], "arm", "got 2 states and 1 unnorm_keys for 1 observations"),
        ([0.0], None, "got no unnorm_key, but this model was trained on 2 data sets"),
        ([0.0], "elsewhere", "got unnorm_key='elsewhere'"),
    ],
)
def test_a_state_that_is_missing_or_wrong_is_refused(taking, state, key, message):
    with pytest.raises(ValueError, match=message):
        taking.action_inputs(picture(), "go", state=state, unnorm_key=key)


def test_a_model_without_it_refuses_a_state(processor):
    assert not processor.takes_state
    assert processor.neutral_state("arm") is None
    with pytest.raises(RobotStateError, match="got a state, expected none: this model was trained without it"):
        processor.action_inputs(picture(), "go", state=[0.0])


def test_a_typed_prompt_keeps_the_state_and_its_lead_in(llama_like):
    """As OpenVLA's scripts ask: whitespace around the words goes, the lead-in is joined as ids."""
    template = template_with_state(PROMPT_TEMPLATE, True)
    processor = tiny_processor(llama_like, ActionStringProcessor(3, decimals=2), prompt_template=template)
    processor.action_config = {**processor.action_config, "state": "input"}
    processor.state_statistics = {"arm": {"proprio": STATE}}
    wanted = processor.action_inputs(picture(), "go", state=[0.499, 9, 5])["input_ids"].tolist()
    typed = "In: What action should the robot take to go? State: 191 255 128\nOut:"
    for text in (processor.action_prompt("go", [0.499, 9, 5]), f" {typed}\n "):
        assert processor(text, picture())["input_ids"].tolist() == wanted
