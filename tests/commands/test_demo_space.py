"""`gen-vla demo --space`: which model it opens with, and what it says when there is none."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from space_browser import RunningSpace, wait_until_it_answers
from space_models import save_arm_model
from tiny_models import tiny_tokenizer

from gen_vla.commands.demo import absolute, demo_model
from gen_vla.commands.main import main


def test_the_whole_demo_comes_before_the_quick_one(tmp_path, monkeypatch):
    outputs = (tmp_path / "demo_output", tmp_path / "demo_output_quick")
    for output in reversed(outputs):
        (output / "repository").mkdir(parents=True)
        (output / "repository" / "config.json").write_text("{}")
        assert demo_model(outputs) == str(output / "repository")
    monkeypatch.chdir(tmp_path)
    assert absolute("demo_output") == str(tmp_path / "demo_output"), "the Space runs in a folder of its own"
    assert absolute("gen-vla/openvla-plus") == "gen-vla/openvla-plus"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space"], "run `gen-vla demo` or `gen-vla demo --quick --space`"),
        (["--space", "--output", "elsewhere"], "got no model in elsewhere/repository"),
        (["--model", "somewhere"], "expected them with it"),
    ],
)
def test_mistakes_say_what_to_do(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("gradio", reason="no gradio; pip install 'gen-vla[demo]'")
    assert main(["demo", *arguments]) == 2
    assert message in capsys.readouterr().err


def heed_ctrl_c() -> None:
    """A process of tests that run in the background would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_one_command_opens_the_page_and_ctrl_c_ends_it(tmp_path):
    pytest.importorskip("gradio", reason="no gradio; pip install 'gen-vla[demo]'")
    save_arm_model(tiny_tokenizer("llama_like"), tmp_path / "demo_output" / "repository")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path / "uploads"),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    command = [sys.executable, "-m", "gen_vla.commands.main", "demo", "--space"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=heed_ctrl_c,
        )
    try:
        space = RunningSpace(f"http://127.0.0.1:{port}", tmp_path / "log")
        wait_until_it_answers(process, space)
        assert "What should be done" in urllib.request.urlopen(space.url).read().decode()
    finally:
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl+C sends: to the command and to the Space
        code = process.wait(timeout=60)
    assert code == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
