"""OpenVLA's REST protocol with the real json_numpy, plain and double-encoded, of one observation and of many."""

import json
import re
import subprocess
import sys

import httpx
import json_numpy
import numpy as np
import pytest
from PIL import Image
from policy_servers import frame

from gen_vla.serving.messages import from_json, to_json


# The client of OpenVLA's deploy.py; numpy.testing comes first, which recent SciPy needs.
CLIENT = """
import numpy.testing
import requests
import json_numpy
json_numpy.patch()
import numpy as np
action = requests.post(
    "http://0.0.0.0:8000/act",
    json={"image": np.zeros((256, 256, 3), dtype=np.uint8), "instruction": "do something"}
).json()
print(type(action).__name__, action.dtype, action.tolist())
"""


def post(port, body, path="act", **options):
    text = body if isinstance(body, (str, bytes)) else json_numpy.dumps(body)
    return httpx.post(f"http://127.0.0.1:{port}/{path}", content=text, timeout=30, **options)


def directly(pair, seeds, words):
    model, processor = pair
    inputs = processor.action_inputs([Image.fromarray(frame(seed)) for seed in seeds], words)
    return model.predict_actions(**inputs).actions


@pytest.mark.parametrize("pair", ["tiny_openvla", "chunking"])
def test_bare_actions_plain_and_double_encoded(pair, serve, request):
    pair = request.getfixturevalue(pair)
    _, port = serve(pair)
    [expected] = directly(pair, [0], ["two"])
    expected = expected if len(expected) > 1 else expected[0]  # OpenVLA's contract
    asked = {"image": frame(), "instruction": "two", "unnorm_key": "tiny"}
    answer = post(port, asked)
    assert answer.headers["content-type"] == "application/json"
    np.testing.assert_array_equal(json_numpy.loads(answer.text), expected)
    # As OpenVLA's scripts write it: `requests.post(url, json={"encoded": json.dumps(payload)}).json()`
    answer = post(port, json.dumps({"encoded": json_numpy.dumps(asked)}))
    np.testing.assert_array_equal(json_numpy.loads(answer.json()), expected)


def test_openvlas_own_client(tiny_openvla, serve):
    model, processor = tiny_openvla
    _, port = serve(tiny_openvla)
    command = [sys.executable, "-c", CLIENT.replace("8000", str(port))]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    black = Image.new("RGB", (256, 256))
    expected = model.predict_action(**processor.action_inputs(black, "do something"))
    assert answer.stdout.strip() == f"ndarray float32 {expected.tolist()}", answer.stderr


@pytest.mark.parametrize("stacked", [True, False])
def test_many_observations(stacked, chunking, serve):
    _, port = serve(chunking)
    seeds, words = [0, 1, 2], ["two", "open it", "go"]
    pictures = [frame(seed) for seed in seeds]
    asked = {
        "image": np.stack(pictures) if stacked else pictures,
        "instruction": words,
        "state": np.zeros((3, 7)),
        "unnorm_key": "tiny",
    }
    found = json_numpy.loads(post(port, asked).text)
    np.testing.assert_array_equal(found, directly(chunking, seeds, words))


def test_questions(tiny_openvla, serve):
    _, port = serve(tiny_openvla)
    one = post(port, {"image": frame(), "query": "how many?"}, "ask").json()["answer"]
    many = post(port, {"image": [frame(), frame(1)], "query": ["how many?", "two"]}, "ask").json()["answer"]
    assert isinstance(one, str)
    assert len(many) == 2
    assert "got no query" in post(port, {"image": frame(), "instruction": "two"}, "ask").json()["error"]
    assert "questions go to /ask" in post(port, {"image": frame(), "query": "two"}).json()["error"]


def test_what_is_known_of_the_server(tiny_openvla, serve):
    _, port = serve(tiny_openvla)
    address = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{address}/healthz").text == "OK\n"
    assert httpx.get(f"{address}/metadata").json()["available_unnorm_keys"] == ["tiny"]
    for _ in range(3):
        post(port, {"image": frame(), "instruction": "two"})
    post(port, {"image": frame(), "instruction": ""})
    metrics = httpx.get(f"{address}/metrics").text
    assert 'gen_vla_request_seconds_count{kind="action"} 3.0' in metrics
    assert 'gen_vla_refused_total{status="400"} 1.0' in metrics
    assert "gen_vla_forward_passes_total" in metrics
    assert "gen_vla_queue 0.0" in metrics


def marked(**changes):
    return json.dumps({"image": {**json.loads(json_numpy.dumps(frame())), **changes}, "instruction": "two"})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        ("[1]", 400, "expected a dictionary"),
        ("[" * 100_000, 400, "more than 20000 entries"),
        ("[" * 10_000, 400, "no JSON"),
        ('{"a": NaN}', 400, "got NaN in JSON"),
        ('{"encoded": 1}', 400, "expected it alone"),
        (json.dumps({"encoded": "{"}), 400, "no JSON"),
        (marked(dtype="|O"), 400, "got an array of dtype '|O'"),
        (marked(dtype=[["a", "<f4"]]), 400, "got an array of dtype"),
        (marked(shape=[10**9, 10**9, 10**9]), 400, "expected 1000000000000000000000000000 bytes"),
        (marked(shape=[-1, 3]), 400, "got an array of shape"),
        (marked(shape=[0, 10**30], __numpy__=""), 400, "no JSON"),
        (marked(__numpy__="%"), 400, "no base64"),
        (marked(shape=[20, 18, 1, 1, 1]), 400, r"got a picture of shape \[20, 18, 1, 1, 1\]"),
        (marked(shape=[0, 3], __numpy__=""), 400, "got a picture of 3 x 0 pixels"),
        (json.dumps({"image": "/etc/passwd", "instruction": "two"}), 400, "got str as a picture"),
        (json.dumps({"image": "http://127.0.0.1:1/", "instruction": "two"}), 400, "got str as a picture"),
        (r'{"image": 1, "instruction": "\ud800"}', 400, "got half a surrogate pair"),
        (r'{"\uDFFF": 1}', 400, "got half a surrogate pair"),
        ({"image": frame(), "instruction": 5}, 400, "got int as instruction"),
        ({"image": frame(), "instruction": "x" * 2000}, 400, "at most 1000 characters"),
        ({"image": frame(), "instruction": "In: What action should the robot take to go?"}, 400, "a whole prompt"),
        ({"image": frame(), "instruction": []}, 400, "got 0 observations"),
        ({"image": frame(), "instruction": ["two"] * 1000}, 400, "got 1000 observations"),
        ({"image": frame() / 2.0, "instruction": "two"}, 400, r"values outside \[0, 1\]"),
        ({"image": frame(), "instruction": "two", "state": np.array([np.nan])}, 400, "got state with NaN"),
        ({"image": frame(), "instruction": "two", "state": np.zeros((9, 9))}, 400, "got state of shape"),
        ({"image": frame(), "instruction": "two", "unnorm_key": "huge"}, 400, "expected one of tiny"),
        ({"image": frame(), "instruction": "two", "unnorm_key": [1]}, 400, "expected one of tiny"),
        ({"instruction": "two"}, 400, "expected pictures under the keys"),
        (b"x" * 2_000_000, 413, "more than 1048576 bytes"),
    ],
)
def test_mistakes_are_errors_with_a_sentence(body, status, message, tiny_openvla, serve):
    _, port = serve(tiny_openvla, message_bytes=2**20)
    answer = post(port, body)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert re.search(message, answer.json()["error"]), answer.json()["error"]
    assert len(post(port, {"image": frame(), "instruction": "two"}).json()) == 3  # the mark of an array


def test_json_of_both_sides_is_the_same():
    for value in (frame(), np.float32(1.5), np.arange(3), np.zeros((0, 2)), np.array(True)):
        for read in (from_json(json_numpy.dumps({"x": value}))["x"], json_numpy.loads(to_json({"x": value}))["x"]):
            np.testing.assert_array_equal(read, value)
            assert read.dtype == value.dtype
