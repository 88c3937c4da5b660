"""The page on serving: its code drives a server, its command starts one, and Ctrl-C ends that."""

import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from policy_servers import free_port, running
from test_docs import ROOT, blocks, commands
from tiny_models import tiny_model, tiny_pair, tiny_processor

from gen_vla.processors import ActionStringProcessor
from gen_vla.serving.application import Limits
from gen_vla.serving.layouts import read_keys_file
from gen_vla.serving.load_test import answers
from gen_vla.serving.policy import ServedPolicy


PAGE = ROOT / "docs" / "how_to" / "serve.md"


def test_the_clients_of_the_page_get_actions(llama_like, capsys):
    pytest.importorskip("openpi_client", reason="no openpi-client; pip install --no-deps openpi-client")
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 8, 2))
    code = "\n".join(blocks(PAGE, "python"))
    names: dict[str, Any] = {}
    with running(ServedPolicy(model, processor, "tiny"), Limits()) as (_, port):
        exec(compile(code.replace("8000", str(port)).replace("hertz=5.0", "hertz=20.0"), PAGE.name, "exec"), names)
    assert names["report"].sent == 20
    assert names["actions"].shape == (8, 3)
    np.testing.assert_array_equal(names["action"], names["actions"])  # the same picture and words


def test_the_keys_of_the_page_are_read(tmp_path):
    [keys] = blocks(PAGE, "yaml")
    (tmp_path / "keys.yaml").write_text(keys)
    layouts = read_keys_file(tmp_path / "keys.yaml", ["top", "wrist"])
    assert layouts.known["own"].cameras["wrist"] == "observation/wrist_image_left"
    for wrong, message in [
        ("state: [a]", "without cameras"),
        ("cameras: {top: a}", "wrist is missing"),
        ("cameras: {top: a, wrist: 5}", "no texts"),
        ("cameras: {top: a, wrist: b}\nwords: c", "got 'words'"),
        ("[1]", "without cameras"),
    ]:
        (tmp_path / "keys.yaml").write_text(wrong)
        with pytest.raises(ValueError, match=message):
            read_keys_file(tmp_path / "keys.yaml", ["top", "wrist"])


def test_the_command_of_the_page_serves_until_ctrl_c(llama_like, tiny_strings, tmp_path):
    tiny_model(llama_like, tiny_strings).save_pretrained(tmp_path / "model")
    tiny_processor(llama_like, tiny_strings).save_pretrained(tmp_path / "model")
    shown = next(command for command in commands(PAGE) if command.startswith("gen-vla serve"))
    assert shown == "gen-vla serve gen-vla/mini-openvla-plus"
    port = free_port()
    command = [sys.executable, "-m", "gen_vla.commands.main", "serve", str(tmp_path / "model"), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        end = time.monotonic() + 120
        while not answers(f"127.0.0.1:{port}") and time.monotonic() < end and process.poll() is None:
            time.sleep(0.2)
        assert answers(f"127.0.0.1:{port}")
        taken = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert taken.returncode == 2
        assert f"got port {port} of 127.0.0.1, which cannot be listened at" in taken.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stdout is not None
        assert f"Serving {tmp_path / 'model'} at ws://127.0.0.1:{port}" in process.stdout.read()
    finally:
        process.kill()
