"""vla-eval's own harness and client drive a published model."""

import anyio
import numpy as np
import pytest
from policy_servers import frame
from space_models import bridge_statistics
from tiny_models import tiny_model, tiny_processor, tiny_statistics

from gen_vla.processors import ActionStringProcessor


pytest.importorskip("vla_eval", reason="vla-eval is not installed: pip install 'gen-vla[vla-eval]'")
from counting_benchmark import STEPS, TASKS, CountingBenchmark, picture_at
from vla_eval.api import evaluate, serve_background
from vla_eval.connection import Connection

from gen_vla.serving.vla_eval_server import GenVLAModelServer


HORIZON = 3


def save(folder, tokenizer, cameras=None, statistics=None):
    """A model of chunks of 3 steps as a repository, and the pair."""
    strings = ActionStringProcessor(7, HORIZON, binary_dims=[6])
    statistics = statistics or {"bridge_orig": bridge_statistics()}
    model = tiny_model(tokenizer, strings, norm_stats=statistics)
    processor = tiny_processor(tokenizer, strings, cameras=cameras)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def expected(pair, pictures, words):
    model, processor = pair
    return model.predict_actions(**processor.action_inputs(pictures, words)).actions[0]


def run_harness(server):
    config = {"benchmarks": [{"benchmark": "counting_benchmark:CountingBenchmark", "episodes_per_task": 1}]}
    [result] = evaluate(server, config, docker=False, no_save=True)
    return result


@pytest.mark.parametrize(
    ("names", "cameras"),
    [(None, None), (["image"], None), (["top", "hand"], {"top": "agentview", "hand": "wrist"})],
)
def test_the_harness_carries_out_whole_chunks(llama_like, tmp_path, names, cameras, caplog):
    """Its orchestrator's episodes get what the model says of the picture at the beginning of each chunk."""
    pair = save(tmp_path, llama_like, names)
    result = run_harness(GenVLAModelServer(str(tmp_path), cameras=cameras))
    assert result["mean_success"] == 1.0
    assert "Spec mismatch" not in caplog.text
    for task in TASKS:
        sent = CountingBenchmark.sent[task]
        assert len(sent) == STEPS
        for step in range(0, STEPS, HORIZON):
            shown = [picture_at(task, step, camera) for camera in ("agentview", "wrist")[: len(cameras or [0])]]
            chunk = expected(pair, [shown] if cameras else shown, [task])
            np.testing.assert_array_equal(sent[step : step + HORIZON], chunk[: STEPS - step])


def test_sessions_are_a_batch_with_the_gripper_of_robosuite(llama_like, tmp_path):
    """Clients that ask at once are answered as alone; 1 for open becomes -1."""
    model, processor = save(tmp_path, llama_like)
    server = GenVLAModelServer(str(tmp_path), gripper="robosuite", chunk_size=1, max_wait_time=0.5)
    sizes, run, found = [], server.policy.run, {}
    server.policy.run = lambda requests: (sizes.append(len(requests)), run(requests))[1]

    async def act(url, seed):
        """Asks once in the right way, and once without a picture."""
        async with Connection(url) as client:
            await client.start_episode({"task": {"name": "stack"}})
            found[seed] = await client.act({"images": {"front": frame(seed)}, "task_description": "stack"})
            with pytest.raises(RuntimeError, match="expected pictures by name in images"):
                await client.act({"task_description": "stack"})

    async def act_together(url):
        async with anyio.create_task_group() as tasks:
            for seed in range(3):
                tasks.start_soon(act, url, seed)

    with serve_background(server) as handle:
        anyio.run(act_together, handle.url)
    assert max(sizes) > 1
    for seed in range(3):
        wanted = expected((model, processor), [frame(seed)], ["stack"])[0]
        np.testing.assert_allclose(found[seed]["actions"][:6], wanted[:6], atol=1e-6)
        assert found[seed]["actions"][6] == (-1.0 if wanted[6] > 0.5 else 1.0)


@pytest.mark.parametrize(
    ("settings", "saved", "words"),
    [
        ({"cameras": {"top": "agentview"}}, {"cameras": ["top", "hand"]}, "expected the benchmark's picture for each"),
        ({}, {"cameras": ["wrist"]}, "expected the benchmark's picture for each of wrist"),
        ({"unnorm_key": "fractal"}, {}, "got unnorm_key='fractal', expected one of bridge_orig"),
        ({"chunk_size": 4}, {}, "got chunk_size 4, expected 1 to 3"),
        ({"gripper": "robosuite"}, {"statistics": {"tiny": tiny_statistics(7)}}, r"ranges over \[-7, 7\]"),
    ],
)
def test_mistakes_are_named_before_anything_is_served(llama_like, tmp_path, settings, saved, words):
    save(tmp_path, llama_like, **saved)
    with pytest.raises(ValueError, match=words):
        GenVLAModelServer(str(tmp_path), **settings)
