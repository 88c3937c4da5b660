"""What only a GPU can show: recorded passes, half precision there, a training run. Skipped without one, and says so.

make test PYTEST_OPTIONS="tests/modeling/decoding/test_on_a_gpu.py tests/modeling/test_half_precision.py"
"""

import json

import numpy as np
import pytest
import torch
from tiny_models import layer_operations, picture, tiny_pair, tiny_pi0_flow_model, tiny_pi0_flow_processor
from tiny_runs import tiny_recipe
from tiny_runs import tiny_vlm_model as vlm_settings

from gen_vla.evaluation.benchmarks import random_models
from gen_vla.evaluation.benchmarks.decoding_benchmark import limits_of
from gen_vla.modeling import recorded_passes
from gen_vla.modeling.tree_decoding import TreeDecoder
from gen_vla.modeling.verification_passes import Forward, Passes, PassInputs, Prompt, TreeCache
from gen_vla.processors import ActionBins, ActionStringProcessor
from gen_vla.training.run import run_recipe


DEVICE = "cuda"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: CUDA graphs, and training on one, cannot run here"
)
INSTRUCTIONS = ["in", "Out two", "in two out two in two", "two"]


@pytest.fixture(params=["openvla_plus", "pi0_plus"])
def family(request, llama_like):
    """Builds a model on the GPU for an action format, and its processor."""

    def build(codec, dtype=torch.float32):
        model, processor = tiny_pair(request.param, llama_like, codec)
        return model.to(DEVICE, dtype), processor

    return build


def inputs_of(processor, rows, seed=0):
    pictures = [picture(seed + row) for row in range(rows)]
    return processor.action_inputs(pictures, INSTRUCTIONS[:rows]).to(DEVICE)


@pytest.mark.parametrize("codec", [ActionStringProcessor(3, 2, 3), ActionStringProcessor(2, 1, 2, "legacy"), "bins"])
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_recorded_passes_write_what_generate_writes(family, codec, lean):
    """Other pictures, words and batches, over recordings made for the first ones."""
    model, processor = family(ActionBins(3, 1, 16) if codec == "bins" else codec)
    model.lean_layers = lean
    for seed, rows in enumerate((1, 3, 1, 4, 3)):
        inputs = inputs_of(processor, rows, 10 * seed)
        slow = model.predict_actions(**inputs, tree_nodes=0)
        for nodes in (2, 30):
            fast = model.predict_actions(**inputs, tree_nodes=nodes, cache_implementation="static")
            growing = model.predict_actions(**inputs, tree_nodes=nodes, cache_implementation="dynamic")
            assert fast.text == slow.text == growing.text
            np.testing.assert_allclose(fast.digit_probabilities, slow.digit_probabilities, atol=1e-4)
    plans = recorded_passes._RECORDINGS[model].plans.values()
    assert all(plan.graphs for plan in plans)
    assert all(len(plan.recorded) >= 4 and all(plan.recorded.values()) for plan in plans)
    assert layer_operations(plans) == {"TritonOperations" if lean else "NoneType"}


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_recordings_follow_the_weights(family):
    model, processor = family(ActionStringProcessor(3, 1, 3))
    inputs = inputs_of(processor, 2)
    before = model.predict_actions(**inputs, cache_implementation="static")
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)  # in place
        model.model.projector = torch.nn.Sequential(model.model.projector)  # the same weights in another module
    slow = model.predict_actions(**inputs, tree_nodes=0)
    assert model.predict_actions(**inputs, cache_implementation="static").text == slow.text != before.text
    model.to("cpu").to(DEVICE)
    assert model.predict_actions(**inputs, cache_implementation="static").text == slow.text


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_recordings_in_other_modes_streams_and_devices(family):
    """Made in inference mode on a stream of the caller's, replayed without; on a GPU that is not the current one."""
    model, processor = family(ActionStringProcessor(3, 1, 3))
    for device in range(torch.cuda.device_count()):
        model.to(f"cuda:{device}")
        inputs = inputs_of(processor, 2).to(f"cuda:{device}")
        slow = model.predict_actions(**inputs, tree_nodes=0)
        torch.cuda.synchronize(device)
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream(device)):
            assert model.predict_actions(**inputs).text == slow.text
        torch.cuda.synchronize(device)
        for seed in (0, 10):
            inputs = inputs_of(processor, 2, seed).to(f"cuda:{device}")
            expected = model.predict_actions(**inputs, cache_implementation="dynamic")
            assert model.predict_actions(**inputs).text == expected.text
        (plan,) = recorded_passes._RECORDINGS[model].plans.values()
        assert len(plan.recorded) == 4


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_call_that_fails_leaves_nothing_under_way(family, monkeypatch):
    """The next one may use the same recordings on another stream."""
    model, processor = family(ActionStringProcessor(3, 1, 3))
    inputs = processor.action_inputs([picture(0)], ["in"])  # on the CPU, so that no call waits to read them
    model.predict_actions(**inputs)
    torch.cuda._sleep(200_000_000)  # cycles; the pictures wait behind it

    def fail(*args):
        raise RuntimeError("while passes are under way")

    monkeypatch.setattr(TreeDecoder, "verify", fail)
    with pytest.raises(RuntimeError, match="under way"):
        model.predict_actions(**inputs)
    assert torch.cuda.current_stream().query()


def test_recorded_logits_in_half_precision(family):
    """The same pass, recorded and plain, over a prompt padded further: close, as bf16 goes."""
    model, processor = family(ActionStringProcessor(3, 1, 3), dtype=torch.bfloat16)
    inputs = inputs_of(processor, 4)
    tokens = tuple(range(20))
    prompt = Prompt(inputs["input_ids"], inputs["attention_mask"], {"pixel_values": inputs["pixel_values"]})
    ids, positions = np.tile(np.arange(16), (4, 1)), np.tile(np.arange(40, 56), (4, 1))
    tree_mask = np.repeat(np.tri(16, dtype=bool)[None], 4, axis=0)
    fed = PassInputs(ids, positions, columns=ids, parents=ids, allowed=tree_mask, tree_mask=tree_mask)
    with torch.no_grad():
        forward = Forward(model, tokens, TreeCache(16, 16 + ids.shape[1] + 200))
        plain = Passes(model, prompt, forward).run(fed)
        plan = recorded_passes.recorded_forward(model, tokens, (4, prompt.ids.shape[1], 16, 40))
        assert plan is not None
        recorded = Passes(model, prompt, plan).run(fed)
    assert plan.graphs
    assert all(plan.recorded.values())
    assert float((plain - recorded).square().mean().sqrt() / plain.std()) < 0.05


@pytest.mark.parametrize("kind", ["openvla", "pi0"])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_trains(kind, bf16, tmp_path):
    settings = {"model": vlm_settings()} if kind == "pi0" else {}
    recipe = tiny_recipe(tmp_path, training__logging_steps=1, training__bf16=bf16, **settings)
    folder = run_recipe(recipe, tmp_path, progress=False)
    steps = [e for e in json.loads((folder / "training_log.json").read_text())["history"] if "loss" in e]
    assert all(np.isfinite(entry["loss"]) for entry in steps)
    assert steps[-1]["robot/loss"] < steps[0]["robot/loss"]


def test_a_flow_begins_with_the_same_noise_as_on_the_cpu(gemma_like):
    model, processor = tiny_pi0_flow_model(gemma_like), tiny_pi0_flow_processor(gemma_like)
    inputs = processor.action_inputs([picture(), picture(1)], ["in", "out two"])
    expected = model.predict_actions(**inputs, generator=torch.Generator().manual_seed(0), num_steps=3)
    inputs = inputs.to(DEVICE)
    model.to(DEVICE)
    found = model.predict_actions(**inputs, generator=torch.Generator().manual_seed(0), num_steps=3)
    np.testing.assert_allclose(found.normalized, expected.normalized, atol=1e-3)
    padding = torch.tensor([[False] * 4, [False, True, True, True]])
    loss = model.train()(**inputs, actions=torch.zeros(2, 4, 3), action_is_pad=padding).loss
    loss.backward()
    assert bool(loss.isfinite())


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_benchmark_says_what_a_recorded_pass_spends_its_time_on(monkeypatch):
    shape = {"vision": (64, 2, 2), "image": (32, 16), "text": (256, 512, 4, 4)}
    monkeypatch.setitem(random_models.SIZES, "tiny", shape)
    model = random_models.build_random("tiny", DEVICE, torch.bfloat16)
    assert [model.default_tree_nodes(rows) for rows in (1, 4, 16)] == [57, 25, 9]
    found = limits_of(model, copy_bandwidth=1e12)
    assert found["width"] == 64
    assert 0 < found["products_ms"] < found["pass_on_the_gpu_ms"] < 5


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_larger_models_recordings_write_what_plain_passes_write(monkeypatch):
    """Heads as wide as the kernels for attention take, in both families, in half precision."""
    shape = {"vision": (64, 2, 2), "image": (32, 16), "text": (512, 512, 2, 4)}
    for size in ("small", "pi0-small"):
        monkeypatch.setitem(random_models.SIZES, size, shape)
        model = random_models.build_random(size, DEVICE, torch.bfloat16)
        model.lean_layers = True
        for rows in (1, 5):
            inputs = random_models.random_inputs(model, rows)
            both = [
                model.predict_actions(**inputs, unnorm_key="random", cache_implementation=kind)
                for kind in ("static", "dynamic")
            ]
            same = [one == other for one, other in zip(both[0].text, both[1].text, strict=True)]
            first = np.abs(both[0].digit_probabilities[:, :4] - both[1].digit_probabilities[:, :4]).max()
            assert first < 0.05
            assert sum(same) >= rows - 1  # a near-tie may fall either way
        plans = recorded_passes._RECORDINGS[model].plans.values()
        assert layer_operations(plans) == {"TritonOperations"}
