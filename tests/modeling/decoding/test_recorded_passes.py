"""Recorded passes without a GPU: stand-ins record and replay; the meta device stands for one that has no values."""

import copy
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_tree_decoding import inputs_of
from tiny_models import layer_operations, tiny_pair
from tiny_vlms import FAMILIES, tiny_inputs, tiny_vla_plus
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gen_vla.modeling import openvla_plus_backbone, recorded_passes
from gen_vla.modeling.fused_layers import TorchOperations
from gen_vla.modeling.recorded_passes import ModelFingerprint, StaticForward
from gen_vla.modeling.tree_decoding import TreeDecoder
from gen_vla.processors import ActionBins, ActionStringProcessor


FUNCTIONS = {"embed", "feed_prompt", "feed_tree", "verify"}
RECORDED = len(FUNCTIONS)


class RepeatedPass:
    """What `CapturedPass` does, without a GPU: arguments in fixed places, results in one that is overwritten."""

    def __init__(self, function, examples, plan):
        self.function, self.inputs = function, [tensor.clone() for tensor in examples]
        self.plan, self.operations = plan, plan.operations
        self.output = None  # recording runs nothing

    def __call__(self, *inputs):
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        before, self.plan.operations = self.plan.operations, self.operations
        result = self.function(*self.inputs)
        self.plan.operations = before
        self.output = result if self.output is None else tree_map(torch.Tensor.copy_, self.output, result)
        return self.output


class DifferentPass(RepeatedPass):
    """A recording that gives something else."""

    def __call__(self, *inputs):
        return tree_map(torch.neg, super().__call__(*inputs))


class RefusedPass:
    """A device that cannot record."""

    def __init__(self, *_):
        raise RuntimeError("operation not permitted when stream is capturing")


def errors_of(function, arguments):
    """What goes wrong where each argument has a thread of its own, all of them at once."""
    errors = []

    def call(argument):
        try:
            function(argument)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.fixture
def recording_device(record_with):
    """A device on which passes seem to be recorded."""
    record_with(RepeatedPass)


def plans_of(model):
    known = recorded_passes._RECORDINGS.get(model)
    return list(known.plans.values()) if known else []


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("kind", ["openvla_plus", "pi0_plus"])
def test_recorded_passes_give_the_same(kind, lean, llama_like, recording_device):
    """Recording a pass runs it before its time, replaying it reads its arguments from fixed places."""
    strings = ActionStringProcessor(3, 2, 3, "plain")
    model, processor = tiny_pair(kind, llama_like, strings)
    model.lean_layers = lean
    recorded = []
    for rows in (4, 1, 4, 1):
        inputs = inputs_of(processor, rows)
        slow = model.predict_actions(**inputs, tree_nodes=0)
        for nodes in (3, 30, 3):
            fast = model.predict_actions(**inputs, tree_nodes=nodes, cache_implementation="static")
            assert fast.text == slow.text
        plans = plans_of(model)
        recorded.append(sum(len(plan.recorded) for plan in plans))
    assert recorded[1] == recorded[3] == RECORDED * len(plans)  # each recorded once
    assert layer_operations(plans) == {"TorchOperations" if lean else "NoneType"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_recorded(family, gemma_like, recording_device):
    """Windows, positions in three dimensions, blocks that attend both ways: with the family's own layers."""
    model = tiny_vla_plus(family, gemma_like, ActionStringProcessor(3, 2, 3))
    for lengths in ((3, 20, 1), (7, 2, 9)):
        inputs = tiny_inputs(model, lengths)
        slow = model.predict_actions(**inputs, tree_nodes=0)
        for nodes in (3, 12):
            fast = model.predict_actions(**inputs, tree_nodes=nodes)
            assert fast.text == slow.text
            np.testing.assert_allclose(fast.digit_probabilities, slow.digit_probabilities, atol=5e-5)
    assert {name for plan in plans_of(model) for name, *_ in plan.recorded} == FUNCTIONS
    assert all(all(plan.recorded.values()) for plan in plans_of(model))


def test_samples_of_recorded_walks(gemma_like, recording_device):
    """2000 draws over one recording, against the probabilities under the grammar."""
    model = tiny_vla_plus("llava", gemma_like, ActionBins(1, 1, bins=4))
    inputs = tiny_inputs(model, (5,))
    rows = {name: value.repeat(400, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    torch.manual_seed(0)
    drawn = [model.predict_actions(**rows, do_sample=True, temperature=3.0).token_ids[:, 0] for _ in range(5)]
    assert [len(plan.recorded) for plan in plans_of(model)] == [RECORDED - 1]  # one pass is enough
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    allowed = sorted(model.action_grammar.transitions[0])
    expected = (logits[allowed] / 3.0).softmax(dim=0).numpy() * 2000
    found = (np.concatenate(drawn)[:, None] == allowed).sum(axis=0)
    assert ((found - expected) ** 2 / np.maximum(expected, 1e-9))[expected > 5].sum() < 20  # chi-square, 3 d.f.


@pytest.mark.parametrize(
    ("recording", "reason"), [(DifferentPass, "differs from the plain one"), (RefusedPass, "not")]
)
def test_recordings_that_fail_are_not_used(recording, reason, llama_like, record_with):
    record_with(recording)
    model, processor = tiny_pair("openvla_plus", llama_like, strings := ActionStringProcessor(3, 2, 3))
    inputs = inputs_of(processor, 3)
    slow = model.predict_actions(**inputs, tree_nodes=0)
    with pytest.warns(RuntimeWarning, match=f"not used for decoding .*{reason}"):
        fast = model.predict_actions(**inputs, tree_nodes=9, cache_implementation="static")
    assert fast.text == slow.text
    assert model.predict_actions(**inputs, tree_nodes=9, cache_implementation="static").text == slow.text
    assert strings.decode(fast.text[0]).shape == (2, 3)


def test_other_weights_are_recorded_again(llama_like, recording_device):
    """An adapter or a move puts other weights in a recording's place; a change in place does not."""
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 1, 3))
    inputs = inputs_of(processor, 2)
    model.predict_actions(**inputs, tree_nodes=5, cache_implementation="static")
    (plan,) = plans_of(model)
    with torch.no_grad():
        model.model.projector.fc3.weight.mul_(-1)
    model.predict_actions(**inputs, tree_nodes=5, cache_implementation="static")
    assert plans_of(model) == [plan]
    model.model.projector.fc3 = copy.deepcopy(model.model.projector.fc3)
    model.predict_actions(**inputs, tree_nodes=5, cache_implementation="static")
    (other,) = plans_of(model)
    assert other is not plan


class OnTheDevice(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold. The meta device stands in for the GPU: it has no values to look at, so
    reading one (`item`, `nonzero`) fails by itself; this sees copies from and to the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.ndim}
        assert devices <= {"meta"}, f"{func} has tensors on {devices}"
        return result


def empty(*shape, dtype=torch.long):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("operations", [None, TorchOperations()])
@pytest.mark.parametrize("kind", ["openvla_plus", "paligemma", "paligemma2", "gemma3", "qwen2_5_vl", "llava"])
def test_passes_stay_on_the_device(kind, operations, llama_like, monkeypatch):
    """Nothing in a pass waits for the CPU or takes a tensor from it: a graph could not be recorded, or be stale."""
    strings, own = ActionStringProcessor(3, 1, 3), kind == "openvla_plus"
    model: Any = tiny_pair(kind, llama_like, strings)[0] if own else tiny_vla_plus(kind, strings=strings)
    monkeypatch.setattr(openvla_plus_backbone, "is_recording", lambda device: True)
    if operations and not own:
        pytest.skip("layers that are not fused")
    plan = StaticForward(model.to("meta"), tuple(range(14)), (2, 16, 128), graphs=False)
    length, width, wide = 32, 16, model.config.text_config.hidden_size
    lead = (3,) if kind.startswith("qwen") else ()
    kinds = 2 if kind in ("paligemma2", "gemma3") else 1  # of attention
    plan.operations = operations
    tree_mask, numbers = empty(2, width, width, dtype=torch.bool), empty(2, width)
    with torch.no_grad(), OnTheDevice():
        embeds, options = empty(2, width + length, wide, dtype=torch.float32), {}
        if own:
            pictures = empty(2, 6, 8, 8, dtype=torch.float32)
            embeds, options = plan.embed(empty(2, width + length), {"pixel_values": pictures})
        allowed = [empty(2, width + length, width + length, dtype=torch.bool)] * kinds
        first = plan.feed_prompt(embeds, options, empty(*lead, 2, width + length), allowed)
        allowed = [empty(2, width, 128, dtype=torch.bool)] * kinds
        then = plan.feed_tree(numbers, empty(*lead, 2, width), allowed, numbers, numbers)
        noise, temperature = torch.empty_like(then), empty(1, dtype=torch.float32)
        checked = [
            TreeDecoder.verify(then, numbers, numbers, empty(2, width, 14, dtype=torch.bool), tree_mask, *sampling)
            for sampling in ((), (temperature, noise))
        ]
    assert first.shape == then.shape == (2, width, 14)
    assert [found.shape for found in checked] == [(2, width, 3)] * 2
    with pytest.raises(AssertionError, match="cpu"), OnTheDevice():
        empty(3).copy_(torch.zeros(3, dtype=torch.long))


def test_static_plans_are_shared_and_follow_the_weights(llama_like):
    strings = ActionStringProcessor(3, 1, 3)
    model, processor = tiny_pair("openvla_plus", llama_like, strings)
    call = {"tree_nodes": 5, "cache_implementation": "static"}
    before = model.predict_actions(**inputs_of(processor, 2), **call)
    model.predict_actions(**inputs_of(processor, 2), **call)
    assert len(plans_of(model)) == 1
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)  # in place: the same buffers, other logits
    after = model.predict_actions(**inputs_of(processor, 2), **call)
    assert after.text == model.predict_actions(**inputs_of(processor, 2), tree_nodes=0).text != before.text
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    model.predict_actions(**inputs_of(processor, 2), **call)
    assert len(plans_of(model)) == 1
    copy.deepcopy(model)


def test_where_passes_are_recorded_without_being_asked(recording_device, llama_like):
    """Not with hooks, which a graph does not call, not in training, not for quantised layers or several devices."""
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 1, 3))
    inputs, called = inputs_of(processor, 2), []
    expected = model.predict_actions(**inputs, cache_implementation="dynamic").text
    assert not plans_of(model)
    handle = model.model.language_model.register_forward_hook(lambda *_: called.append(1))
    assert model.predict_actions(**inputs).text == expected
    assert called
    assert not plans_of(model)
    handle.remove()
    for name, value in (("hf_quantizer", object()), ("hf_device_map", {"model": 0, "lm_head": 1})):
        setattr(model, name, value)
        assert model.predict_actions(**inputs).text == expected
        assert not plans_of(model)
        delattr(model, name)
    model.train()
    model.predict_actions(**inputs)
    assert not plans_of(model)
    model.eval()
    assert model.predict_actions(**inputs).text == expected
    assert [len(plan.recorded) for plan in plans_of(model)] == [RECORDED]


class WithoutMemory(TorchDispatchMode):
    """A device that has no room for a second cache: what keeps slots as they were while a pass is recorded."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clone.default and args[0].numel() == self.size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return func(*args, **(kwargs or {}))


def test_without_memory_to_record_passes_are_plain(recording_device, llama_like):
    model, processor = tiny_pair("pi0_plus", llama_like, ActionStringProcessor(3, 1, 3))
    inputs = inputs_of(processor, 2)
    expected = model.predict_actions(**inputs, cache_implementation="dynamic").text
    model.predict_actions(**inputs)
    (plan,) = plans_of(model)
    size = plan.cache.buffer.numel()
    plan.recorded.clear()
    with WithoutMemory(size), pytest.warns(RuntimeWarning, match=r"not used for decoding \(embed\): OutOfMemory"):
        assert model.predict_actions(**inputs).text == expected
    assert plan.failed
    assert not any(plan.recorded.values())


def test_what_cannot_be_recorded_stays_plain(record_with, llama_like):
    """Alone: the others are recorded."""

    class Picky(RepeatedPass):
        def __init__(self, function, examples, plan):
            if examples[-1].ndim == 4:  # pictures
                raise RuntimeError("operation not permitted when stream is capturing")
            super().__init__(function, examples, plan)

    record_with(Picky)
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 1, 3))
    inputs = inputs_of(processor, 1)
    expected = model.predict_actions(**inputs, cache_implementation="dynamic").text
    with pytest.warns(RuntimeWarning, match=r"A CUDA graph is not used for decoding \(embed\): RuntimeError"):
        assert model.predict_actions(**inputs).text == expected
    assert model.predict_actions(**inputs).text == expected
    (plan,) = plans_of(model)
    assert {name for (name, *_), entry in plan.recorded.items() if entry} == FUNCTIONS - {"embed"}


def test_other_numbers_of_image_tokens_are_not_replayed(recording_device, llama_like):
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 1, 3))
    inputs = inputs_of(processor, 2)
    model.predict_actions(**inputs)
    inputs["input_ids"][0, (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0]] = 40
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        model.predict_actions(**inputs)


def test_calls_of_several_threads_do_not_share_a_plan(recording_device, llama_like):
    model, processor = tiny_pair("pi0_plus", llama_like, ActionStringProcessor(3, 2, 3))
    calls = [inputs_of(processor, 1) for _ in range(6)]
    for number, inputs in enumerate(calls):
        inputs["pixel_values"] = inputs["pixel_values"] * (1 - number / 3)
    expected = [model.predict_actions(**inputs, cache_implementation="dynamic").text for inputs in calls]
    assert len({*map(tuple, expected)}) > 1
    model.predict_actions(**calls[0])
    found = [None] * len(calls)

    def act(number):
        for _ in range(3):
            found[number] = model.predict_actions(**calls[number]).text

    assert errors_of(act, range(len(calls))) == []
    assert found == expected
    (plan,) = plans_of(model)
    assert plan.lock.acquire(blocking=False)


def test_few_plans_are_kept(recording_device, llama_like, monkeypatch):
    """And none that is large, but for whoever asks."""
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 1, 3))
    monkeypatch.setattr(recorded_passes, "MAX_PLANS", 2)

    def rows_of_plans():
        return [plan.cache.buffer.shape[2] for plan in plans_of(model)]

    for rows in (1, 2, 3, 1):
        model.predict_actions(**inputs_of(processor, rows))
    assert rows_of_plans() == [3, 1]
    cache = plans_of(model)[0].cache
    size = cache.buffer.nbytes
    assert recorded_passes.cache_bytes(model, (3, cache.scratch, cache.slots)) == size
    monkeypatch.setattr(recorded_passes, "memory_of", lambda device: size / recorded_passes.MEMORY_SHARE)
    expected = model.predict_actions(**inputs_of(processor, 4), cache_implementation="dynamic")
    assert model.predict_actions(**inputs_of(processor, 4)).text == expected.text
    assert rows_of_plans() == [3, 1]
    model.predict_actions(**inputs_of(processor, 4), cache_implementation="static")
    assert rows_of_plans() == [1, 4]


def test_switching_an_adapter_is_seen(llama_like):
    """It changes what layers compute, and neither a module nor a weight."""
    model, _ = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 1, 3))
    before = ModelFingerprint(model)
    assert before.holds()
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    assert not before.holds()
    seen = ModelFingerprint(model)
    assert seen.holds()
    with adapted.disable_adapter():
        assert not seen.holds()
    assert seen.holds()
    adapted.merge_adapter()
    assert not seen.holds()
    adapted.unmerge_adapter()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert seen.holds()
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    assert not seen.holds()


def test_what_else_makes_a_recording_stale(llama_like):
    """Buffers, types where addresses are the same by coincidence, and a module's own `forward`."""
    model, _ = tiny_pair("pi0_plus", llama_like, ActionStringProcessor(3, 1, 3))
    rotation, mlp = model.get_decoder().rotary_emb, model.get_decoder().layers[0].mlp
    seen = ModelFingerprint(model)
    rotation.inv_freq = rotation.inv_freq / 2
    assert not seen.holds()
    weight = mlp.bfloat16().up_proj.weight
    seen = ModelFingerprint(model)
    before, weight.data = weight.data, weight.data.view(torch.float16)
    assert weight.data_ptr() == before.data_ptr()
    assert not seen.holds()
    weight.data = before
    assert seen.holds()
    mlp.forward = lambda hidden: hidden
    assert not seen.holds()
    del mlp.forward
    assert seen.holds()
    assert not seen.has_hooks()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert seen.has_hooks()
    handle.remove()


def test_recordings_go_with_their_model(recording_device, llama_like):
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 1, 3))
    model.predict_actions(**inputs_of(processor, 1))
    assert plans_of(model)
    gone, plan = weakref.ref(model), weakref.ref(plans_of(model)[0])
    del model
    gc.collect()
    assert gone() is None
    assert plan() is None


def test_hooks_are_called_where_recorded_passes_are_asked_for(recording_device, llama_like):
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 1, 3))
    inputs, called = inputs_of(processor, 2), []
    expected = model.predict_actions(**inputs)
    assert len(plans_of(model)) == 1
    with torch.no_grad():
        handle = model.model.language_model.register_forward_hook(lambda *_: called.append(1))
    prediction = model.predict_actions(**inputs, cache_implementation="static")
    assert prediction.text == expected.text
    assert len(called) == prediction.forward_passes
    handle.remove()
    assert model.predict_actions(**inputs).text == expected.text
    assert len(called) == prediction.forward_passes
    assert [bool(plan.recorded) for plan in plans_of(model)] == [False, True]
