"""The robot's state through the server's protocols, for a model that takes it, with relative actions."""

import httpx
import json_numpy
import numpy as np
import pytest
from PIL import Image
from policy_servers import frame
from tiny_models import take_state

from gen_vla.serving.client import PolicyClient, PolicyError
from gen_vla.serving.layouts import Layouts


STATE = np.array([0.25, -0.5])
RELATIVE = [{"dims": [0, 1], "state": [0, 1]}]


@pytest.fixture
def taking(chunking):
    return take_state(chunking, relative=RELATIVE)


def directly(pair, state, seed=0, **options):
    model, processor = pair
    inputs = processor.action_inputs(Image.fromarray(frame(seed)), "go", state=state)
    return model.predict_actions(**inputs, **options).actions[0]


def test_openpis_keys(taking, serve):
    """One part or several, whatever the pictures are called; a decided prefix is relative to the new state, too."""
    _, port = serve(taking)
    with PolicyClient(f"ws://127.0.0.1:{port}") as client:
        assert client.metadata["needs_state"]
        assert client.metadata["data_sets"]["tiny"]["state"] == {"q01": [-1, -1], "q99": [1, 1]}
        libero = {"observation/image": frame(), "observation/state": STATE.astype(np.float32), "prompt": "go"}
        droid = {"observation/exterior_image_1_left": frame(), "prompt": "go"}
        droid |= {"observation/joint_position": STATE[:1], "observation/gripper_position": float(STATE[1])}
        wanted = directly(taking, STATE)
        for sent in (libero, droid, {"image": frame(), "state": STATE.tolist(), "prompt": "go"}):
            np.testing.assert_array_equal(client.act(sent), wanted)
        assert np.abs(wanted - directly(taking, -STATE)).max() > 0.1
        prefix = wanted[1:3]
        found = client.act({**libero, "observation/state": STATE + 0.1}, prefix)
        np.testing.assert_array_equal(found, directly(taking, STATE + 0.1, prefix_actions=prefix[None]))
        np.testing.assert_allclose(found[:2], prefix, atol=0.03)
        with pytest.raises(PolicyError, match="dimension 0 of prefix_actions, relative to the state, expected"):
            client.act({**libero, "observation/state": STATE - 2}, prefix)
        wrong = (({}, "got 0 values of the robot's state under no key, expected 2 under observation/state"),)
        wrong += (({"observation/state": np.zeros(3)}, "got 3 values of the robot's state under observation/state"),)
        wrong += (({"observation/state": np.array([0, np.nan])}, "with NaN or infinity"),)
        for state, message in wrong:
            with pytest.raises(PolicyError, match=message):
                client.act({"observation/image": frame(), "prompt": "go", **state})


def test_openvlas_act(taking, serve):
    _, port = serve(taking)
    states = np.stack([STATE, -STATE, STATE])
    asked = {"image": [frame(0), frame(1), frame(2)], "instruction": ["go"] * 3, "state": states}
    found = json_numpy.loads(httpx.post(f"http://127.0.0.1:{port}/act", content=json_numpy.dumps(asked)).text)
    np.testing.assert_array_equal(found, [directly(taking, state, seed) for seed, state in enumerate(states)])
    refused = httpx.post(
        f"http://127.0.0.1:{port}/act", content=json_numpy.dumps({"image": frame(), "instruction": "go"})
    )
    assert refused.status_code == 400
    assert "the model was trained with it" in refused.json()["error"]


def test_pictures_under_a_cameras_own_name_leave_the_states_keys():
    seen = {"observation/wrist": frame(), "observation/joint_position": [0.0], "observation/gripper_position": [1.0]}
    assert Layouts(("wrist",)).of(seen).state == ("observation/joint_position", "observation/gripper_position")
    assert Layouts(("wrist",)).of({"wrist": frame(), "observation": {"state": [0.0]}}).state == ("observation/state",)


def test_vla_evals_server(taking, tmp_path):
    pytest.importorskip("vla_eval", reason="vla-eval is not installed: pip install 'gen-vla[vla-eval]'")
    from vla_eval.model_servers.base import SessionContext

    from gen_vla.serving.vla_eval_server import GenVLAModelServer

    for part in taking:
        part.save_pretrained(tmp_path)
    server = GenVLAModelServer(str(tmp_path))
    assert server.get_observation_params() == {"send_state": True}
    context = SessionContext(session_id="one", episode_id="two")
    asked = {"images": {"agentview": frame()}, "task_description": "go"}
    for name in ("states", "state"):
        [answer] = server.predict_batch([{"request": server._request({**asked, name: STATE}, context)}], [context])
        np.testing.assert_allclose(answer["actions"], directly(taking, STATE), atol=1e-6)
    with pytest.raises(ValueError, match="got 0 values of the robot's state"):
        server._request(asked, context)
