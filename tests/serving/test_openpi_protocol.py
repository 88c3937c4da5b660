"""openpi's own client drives the server: metadata, actions, sessions, questions, errors."""

import numpy as np
import pytest
from PIL import Image
from policy_servers import frame
from tiny_models import tiny_model, tiny_pair, tiny_processor, tiny_statistics


pytest.importorskip("openpi_client", reason="no openpi-client; pip install --no-deps openpi-client")
# isort: split
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def libero(seed=0, **more):
    state = np.zeros(8)
    pictures = {"observation/image": frame(seed), "observation/wrist_image": frame(seed + 1)}
    return {**pictures, "observation/state": state, "prompt": "open the drawer", **more}


def directly(pair, seed=0, instruction="open the drawer", **options):
    model, processor = pair
    inputs = processor.action_inputs(Image.fromarray(frame(seed)), instruction)
    return model.predict_actions(**inputs, **options).actions[0]


def test_actions_and_metadata(chunking, serve):
    _, port = serve(chunking)
    client = WebsocketClientPolicy("127.0.0.1", port)
    metadata = client.get_server_metadata()
    assert metadata["available_unnorm_keys"] == ["tiny"]
    assert (metadata["action_chunk_size"], metadata["action_dim"]) == (6, 3)
    assert metadata["data_sets"]["tiny"]["q99"] == [1, 2, 3]
    assert (metadata["needs_state"], metadata["answers_questions"], metadata["continues_chunks"]) == (
        False,
        True,
        True,
    )
    for seed in range(3):
        reply = client.infer(libero(seed))
        np.testing.assert_array_equal(reply["actions"], directly(chunking, seed))
        assert reply["actions"].dtype == np.float32
        assert reply["server_timing"]["infer_ms"] > 0
        assert reply["step"] == seed
    broker = ActionChunkBroker(client, 6)  # which takes every array of a reply for a chunk
    steps = np.stack([broker.infer(libero())["actions"] for _ in range(6)])
    np.testing.assert_array_equal(steps, directly(chunking))


def test_each_session_has_its_own_instruction_and_episode(chunking, serve):
    _, port = serve(chunking)
    one, other = (WebsocketClientPolicy("127.0.0.1", port) for _ in range(2))
    wordless = {key: value for key, value in libero().items() if key != "prompt"}
    with pytest.raises(RuntimeError, match="expected an instruction under prompt"):
        one.infer(wordless)
    assert one.infer({"reset": True, "prompt": "two"}) == {"reset": True, "episode": 1}
    assert other.infer({"endpoint": "reset", "prompt": "out"}) == {"reset": True, "episode": 1}
    for client, words in ((one, "two"), (other, "out"), (one, "two")):
        np.testing.assert_array_equal(client.infer(wordless)["actions"], directly(chunking, 0, words))
    assert one.infer({"reset": True})["episode"] == 2
    with pytest.raises(RuntimeError, match="or one in a reset before it"):
        one.infer(wordless)
    assert (one.infer(libero())["step"], other.infer(libero())["step"]) == (0, 1)


def test_questions_go_to_the_same_model(tiny_openvla, serve):
    _, port = serve(tiny_openvla)
    client = WebsocketClientPolicy("127.0.0.1", port)
    assert isinstance(client.infer({"image": frame(), "query": "how many?"})["answer"], str)
    with pytest.raises(RuntimeError, match="got query of 1 characters, expected words"):
        client.infer({"image": frame(), "query": " "})


def test_a_chunk_continues_given_steps(chunking, serve):
    _, port = serve(chunking)
    client = WebsocketClientPolicy("127.0.0.1", port)
    prefix = directly(chunking, 5, "two")[:2]
    expected = directly(chunking, prefix_actions=prefix[None])
    np.testing.assert_array_equal(client.infer(libero(prefix_actions=prefix))["actions"], expected)
    with pytest.raises(RuntimeError, match=r"expected floats \[k, 3\]"):
        client.infer(libero(prefix_actions=prefix[:, :2]))
    with pytest.raises(RuntimeError, match="expected fewer than the 6 steps"):
        client.infer(libero(prefix_actions=np.zeros((6, 3))))
    with pytest.raises(RuntimeError, match=r"got -2.1 in step 1, dimension 1 of prefix_actions, expected .* -2 to 2"):
        client.infer(libero(prefix_actions=np.array([[0.5, 2.01, 1], [0.5, -2.1, 1]])))


DROID = {
    "observation/exterior_image_1_left": frame(0),
    "observation/wrist_image_left": frame(1),
    "observation/joint_position": np.zeros(7),
    "observation/gripper_position": np.zeros(1),
    "prompt": "two",
}
ALOHA = {
    "images": {f"cam_{name}": frame(number).transpose(2, 0, 1) for number, name in enumerate(("high", "low"))},
    "state": np.ones(14),
    "prompt": "two",
}
BRIDGE = {"full_image": frame(0), "state": np.zeros(7), "instruction": "two"}
LAYOUTS = {"libero": libero(prompt="two"), "droid": DROID, "aloha": ALOHA, "bridge": BRIDGE}


@pytest.mark.parametrize("observation", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_robots(observation, chunking, serve):
    _, port = serve(chunking)
    client = WebsocketClientPolicy("127.0.0.1", port)
    np.testing.assert_array_equal(client.infer(observation)["actions"], directly(chunking, 0, "two"))
    main = next(key for key in observation if "image" in key)
    floats = {**observation, main: np.float32(frame(0)) / 255}
    if main != "images":  # as openpi takes pictures of LeRobot's readers
        np.testing.assert_array_equal(client.infer(floats)["actions"], directly(chunking, 0, "two"))


@pytest.mark.parametrize("name", ["image", "image_0", "primary"])
def test_the_only_camera_that_looks_at_the_scene_is_the_first_of_any_robot(name, llama_like, tiny_strings, serve):
    """A model of `gen-vla train` has a name for it; one of another camera is not shown what it does not know."""
    _, port = serve(tiny_pair_of([name], llama_like, tiny_strings))
    client = WebsocketClientPolicy("127.0.0.1", port)
    expected = client.infer({name: frame(), "prompt": "two"})["actions"]
    for key in (
        "image",
        "full_image",
        "observation/image",
        "observation/exterior_image_1_left",
        "observation/image_0",
    ):
        np.testing.assert_array_equal(client.infer({key: frame(), "prompt": "two"})["actions"], expected)
    _, port = serve(tiny_pair_of(["wrist"], llama_like, tiny_strings))
    with pytest.raises(RuntimeError, match="a key for camera wrist is missing"):
        WebsocketClientPolicy("127.0.0.1", port).infer({"observation/image": frame(), "prompt": "two"})


def tiny_pair_of(cameras, tokenizer, strings):
    return tiny_model(tokenizer, strings), tiny_processor(tokenizer, strings, cameras=cameras)


@pytest.mark.parametrize("cameras", [["cam_low", "cam_high"], ["image", "wrist_image"], ["top", "side"]])
def test_pictures_of_several_cameras_are_found_by_name(cameras, llama_like, tiny_strings, serve, tmp_path):
    from gen_vla.serving.layouts import read_keys_file

    pair = tiny_pair_of(cameras, llama_like, tiny_strings)
    observation = {"cam_low": ALOHA, "image": libero(prompt="two"), "top": DROID}[cameras[0]]
    layouts = None
    if cameras == ["top", "side"]:
        keys = tmp_path / "keys.yaml"
        keys.write_text(
            "cameras: {side: observation/exterior_image_1_left, top: observation/wrist_image_left}\n"
            "state: [observation/joint_position]\n"
        )
        layouts = read_keys_file(keys, cameras)
    pictures = {"cam_low": [1, 0], "image": [0, 1], "top": [1, 0]}[cameras[0]]
    _, port = serve(pair, layouts=layouts)
    client = WebsocketClientPolicy("127.0.0.1", port)
    inputs = pair[1].action_inputs([Image.fromarray(frame(number)) for number in pictures], "two")
    expected = pair[0].predict_actions(**inputs).actions[0]
    np.testing.assert_array_equal(client.infer(observation)["actions"], expected)
    own = {name: frame(number) for name, number in zip(cameras, pictures, strict=True)}
    if layouts is None:
        np.testing.assert_array_equal(client.infer({**own, "prompt": "two"})["actions"], expected)
    with pytest.raises(RuntimeError, match=r"got an observation with the keys .* expected pictures"):
        client.infer({"observation/image_2": frame(), "prompt": "two"})


def test_units_of_the_data_set_that_is_asked_for(chunking, serve):
    model, _ = chunking
    model.config.norm_stats = {**model.config.norm_stats, "large": tiny_statistics(3, scale=10)}
    _, port = serve(chunking)
    client = WebsocketClientPolicy("127.0.0.1", port)
    assert client.get_server_metadata()["unnorm_key"] is None
    with pytest.raises(RuntimeError, match="got no unnorm_key, expected one of tiny, large"):
        client.infer(libero())
    small, large = (client.infer(libero(unnorm_key=key))["actions"] for key in ("tiny", "large"))
    np.testing.assert_allclose(10 * small[:, :2], large[:, :2], rtol=1e-6)
    client.infer({"reset": True, "unnorm_key": "large"})
    np.testing.assert_array_equal(client.infer(libero())["actions"], large)
    with pytest.raises(RuntimeError, match="got unnorm_key='huge', expected one of"):
        client.infer({"reset": True, "unnorm_key": "huge"})


def test_flow_starts_from_the_noise_of_the_episodes_seed(gemma_like, serve):
    """The flow-matching π0 draws the same actions for the same seed and step, whoever else is served."""
    _, port = serve(tiny_pair("pi0_flow", gemma_like))
    one, other = (WebsocketClientPolicy("127.0.0.1", port) for _ in range(2))
    assert one.get_server_metadata()["continues_chunks"] is False
    found = []
    for client, seed in ((one, 1), (other, 1), (other, 2)):
        client.infer({"reset": True, "seed": seed})
        found.append([client.infer(libero())["actions"] for _ in range(2)])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0][0], found[0][1])
    with pytest.raises(RuntimeError, match="expected a model that answers questions"):
        one.infer({"image": frame(), "query": "how many?"})
    with pytest.raises(RuntimeError, match="this model's code cannot continue a chunk"):
        one.infer(libero(prefix_actions=found[0][0][:1]))
