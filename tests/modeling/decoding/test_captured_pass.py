"""What a recording must not be made or replayed in, with stand-ins for CUDA graphs (`test_recorded_passes.py`)."""

import time

import numpy as np
import pytest
import torch
from test_recorded_passes import RECORDED, RepeatedPass, errors_of, plans_of
from test_tree_decoding import inputs_of
from tiny_models import tiny_pair

from gen_vla.modeling import recorded_passes
from gen_vla.modeling.verification_passes import Prompt
from gen_vla.processors import ActionStringProcessor


STRINGS = ActionStringProcessor(3, 1, 3)


class EmptyPass(RepeatedPass):
    """Computes while it is recorded and never again, as kernels of a device that is not the one that records."""

    def __init__(self, function, examples, plan):
        super().__init__(function, examples, plan)
        self.output = function(*self.inputs)

    def __call__(self, *_):
        return self.output


class LonelyPass(RepeatedPass):
    """Cannot be recorded while another one is."""

    underway = 0

    def __init__(self, function, examples, plan):
        super().__init__(function, examples, plan)
        LonelyPass.underway += 1
        time.sleep(0.02)
        alone = LonelyPass.underway == 1
        LonelyPass.underway -= 1
        if not alone:
            raise RuntimeError("operation not permitted when stream is capturing")


class InterruptedPass(RepeatedPass):
    """Interrupted by the keyboard at first."""

    interruptions = 0

    def __init__(self, function, examples, plan):
        super().__init__(function, examples, plan)
        InterruptedPass.interruptions += 1
        if InterruptedPass.interruptions == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("inference", [(True, False), (False, True, False)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_calls_in_and_out_of_inference_mode(inference, record_with, llama_like):
    """Buffers made in inference mode could not be written to outside of it."""
    record_with(RepeatedPass)
    model, processor = tiny_pair("openvla_plus", llama_like, STRINGS)
    inputs = inputs_of(processor, 2)
    expected = model.predict_actions(**inputs, cache_implementation="dynamic")
    for mode in inference:
        with torch.inference_mode(mode):
            assert model.predict_actions(**inputs).text == expected.text
    assert [len(plan.recorded) for plan in plans_of(model)] == [RECORDED]


def test_autocast_takes_plain_passes(record_with, llama_like):
    """A graph would hold what autocast made of the weights, which goes with it, and know nothing of the next one."""
    record_with(RepeatedPass)
    model, processor = tiny_pair("openvla_plus", llama_like, STRINGS)
    inputs = inputs_of(processor, 2)
    plain = model.predict_actions(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = [
            model.predict_actions(**inputs, cache_implementation=kind).digit_probabilities
            for kind in ("dynamic", "static", None)
        ]
    np.testing.assert_array_equal(cast[0], cast[1])
    np.testing.assert_array_equal(cast[0], cast[2])
    assert np.abs(cast[0] - plain.digit_probabilities).max() > 1e-4
    np.testing.assert_array_equal(model.predict_actions(**inputs).digit_probabilities, plain.digit_probabilities)


def test_pictures_of_another_type_are_not_rounded(record_with, llama_like):
    record_with(RepeatedPass)
    model, processor = tiny_pair("openvla_plus", llama_like, STRINGS)
    inputs = inputs_of(processor, 2)
    exact = model.predict_actions(**inputs, cache_implementation="dynamic")
    model.predict_actions(**{**inputs, "pixel_values": inputs["pixel_values"].bfloat16()})
    found = model.predict_actions(**inputs)
    np.testing.assert_allclose(found.digit_probabilities, exact.digit_probabilities, atol=1e-6)


def test_a_recording_that_holds_no_work_is_found_out(record_with, llama_like):
    """It would give the first observation's action for every later one."""
    record_with(EmptyPass)
    model, processor = tiny_pair("openvla_plus", llama_like, STRINGS)
    inputs = inputs_of(processor, 4)
    expected = model.predict_actions(**inputs, cache_implementation="dynamic")
    with pytest.warns(RuntimeWarning, match="differs from the plain one"):
        assert model.predict_actions(**inputs, cache_implementation="static").text == expected.text


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_first_call_without_numbers_is_no_reason_not_to_record(record_with, llama_like):
    record_with(RepeatedPass)
    model, processor = tiny_pair("openvla_plus", llama_like, STRINGS)
    inputs = inputs_of(processor, 2)
    expected = model.predict_actions(**inputs, cache_implementation="dynamic")
    with pytest.raises(ValueError, match="got NaN as probabilities"):
        model.predict_actions(**{**inputs, "pixel_values": inputs["pixel_values"] * float("nan")})
    assert model.predict_actions(**inputs).text == expected.text
    assert [len(plan.recorded) for plan in plans_of(model)] == [RECORDED]


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_one_thread_records_at_a_time(record_with, llama_like):
    record_with(LonelyPass)
    model, processor = tiny_pair("openvla_plus", llama_like, STRINGS)

    def act(rows):
        model.predict_actions(**inputs_of(processor, rows))

    assert errors_of(act, [1, 2, 3, 4]) == []
    assert [len(plan.recorded) for plan in plans_of(model)] == [RECORDED] * 4


def test_one_thread_drops_plans_at_a_time(record_with, llama_like, monkeypatch):
    """Several that find the same plans too many would drop more than there are."""
    record_with(RepeatedPass)
    monkeypatch.setattr(recorded_passes, "MAX_PLANS", 0)
    monkeypatch.setattr(recorded_passes, "memory_of", lambda _: time.sleep(0.01) or 1e9)
    model, _ = tiny_pair("openvla_plus", llama_like, STRINGS)

    def ask(rows):
        recorded_passes.recorded_forward(model, (1, 2), (rows, 5, 5, 5), requested=False)

    assert errors_of(ask, [1, 2] * 4) == []
    assert plans_of(model) == []


@pytest.mark.parametrize("broken", ["recording", "arguments"])
def test_a_plan_is_as_before_after_an_interruption(broken, record_with, llama_like, monkeypatch):
    InterruptedPass.interruptions = 0
    record_with(InterruptedPass if broken == "recording" else RepeatedPass)
    model, processor = tiny_pair("openvla_plus", llama_like, STRINGS)
    inputs = inputs_of(processor, 2)
    expected = model.predict_actions(**inputs, cache_implementation="dynamic")
    with monkeypatch.context() as patched:
        if broken == "arguments":
            patched.setattr(Prompt, "padded", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.predict_actions(**inputs)
    (plan,) = plans_of(model)
    assert plan.operations is None
    assert not plan.lock.locked()
    assert model.predict_actions(**inputs).text == expected.text
    assert all(plan.recorded.values())


def interrupted(*_):
    raise KeyboardInterrupt
