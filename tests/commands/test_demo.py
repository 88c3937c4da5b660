"""The demo's whole path at its quickest, in a process of its own, as `make demo` runs it."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from gen_vla.commands.ablation import Run
from gen_vla.commands.demo_run import QUICK, ROWS, record, use_own_cache


try:
    from gen_vla.evaluation.simulation.environment import TabletopEnv

    TabletopEnv(image_size=64).reset("open_drawer", 0)
except Exception as error:  # the extra is not installed, or EGL fails: no library, no device, no permission
    pytest.skip(f"no simulator here: {error}; pip install 'gen-vla[sim]'", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quick_demo_goes_from_recording_to_rollouts(tmp_path, capsys):
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "gen_vla.commands.main", "demo", "--quick", "--output", str(tmp_path / "demo")]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    output = tmp_path / "demo"
    plus, plain = output / "results" / "mini-openvla-plus", output / "results" / "mini-openvla"
    results = json.loads((plus / "matching" / "results.json").read_text())
    policies = results["policies"]
    assert list(policies) == ["policy", "expert", "zero"]
    assert policies["policy"]["scores"]["paraphrase"]["tasks"]["open_drawer"]["n"] == 1
    assert policies["expert"]["scores"]["matching"]["all"]["successes"] == 1
    seen = json.loads((plain / "seen_variants" / "results.json").read_text())["policies"]["policy"]["scores"]
    assert seen["seen_variants"]["all"]["n"] == 6  # a look of each family
    for name in ("mini-vlm", "mini-openvla", "mini-openvla-plus"):
        assert json.loads((output / "results" / name / "questions.json").read_text())["total"]["n"] == 90
        aimed = json.loads((output / "results" / name / "aim.json").read_text())["experts"]["model"]
        assert aimed["scores"]["seen_variants"]["all"]["n"] == 48
        assert aimed["scores"]["seen_variants"]["all"]["successes"] > 40 or name != "mini-vlm"
    assert 2 <= json.loads((plus / "latency.json").read_text())["forward_passes"] < 49
    assert "plain fine-tuning" in run.stdout
    assert "transformers_modules.gen" in run.stdout
    assert len(list((output / "videos").glob("*.gif"))) == 2
    with Image.open(output / "videos" / "open_drawer-seen_variants.gif") as frames:
        assert (frames.n_frames > 5, frames.width) == (True, 640)  # type: ignore[attr-defined]
    card = (output / "repository" / "README.md").read_text()
    assert "zero" in card
    assert "# mini-openvla-plus" in card
    typed = "gen-vla demo --quick --output demo"
    assert f"```\n{typed}  # " in card
    assert results["provenance"]["command"] == typed
    assert policies["policy"]["identity"]["model"] == "gen-vla/mini-openvla-plus"
    assert policies["policy"]["trained"]["recipe"] == "mini-openvla-plus"
    assert str(tmp_path) not in json.dumps(results) + card
    trained = json.loads((output / "mini-openvla-plus" / "training_log.json").read_text())
    assert trained["data"]["robot"] == [len_of(output / "demonstrations")]
    assert trained["provenance"]["model"]["name"] == "package://mini-vlm"
    assert str(tmp_path) not in (output / "repository" / "training_log.json").read_text()
    check_second_call_keeps_what_is_there(output, capsys)


def len_of(folder) -> int:
    from datasets import load_from_disk

    return len(load_from_disk(str(folder)))


def check_second_call_keeps_what_is_there(output, capsys) -> None:
    """Its first steps do neither data nor training again; the weights are the same bytes."""
    weights = (output / "mini-openvla-plus" / "model.safetensors").read_bytes()
    recorded = (output / "demonstrations" / "recording.json").read_text()
    record(output, QUICK, 90)
    for name, row in ROWS.items():
        Run(row, 0, output, name).train(1, QUICK)
    assert capsys.readouterr().out.count("is trained already") == 2
    assert (output / "mini-openvla-plus" / "model.safetensors").read_bytes() == weights
    assert (output / "demonstrations" / "recording.json").read_text() == recorded


def test_the_cache_cannot_be_moved_after_the_fact(tmp_path):
    import huggingface_hub  # noqa: F401

    with pytest.raises(RuntimeError, match="imported already"):
        use_own_cache(tmp_path)
