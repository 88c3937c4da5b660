"""The launch configurations, and sharded training by real processes: the same losses and weights as plain training."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sharded_run
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from two_processes import run_in_two_processes

from gen_vla.modeling import OpenVLAPlusForVision2Seq, Pi0FlowForActionPrediction


CONFIGS = Path(__file__).resolve().parents[3] / "training" / "accelerate_configs"
SLURM = CONFIGS.parent / "slurm" / "train.sbatch"


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [("one_gpu", "NO", 1), ("ddp", "MULTI_GPU", 8), ("fsdp2", "FSDP", 8), ("zero3", "DEEPSPEED", 8)],
)
def test_accelerate_reads_each_configuration(name, kind, processes):
    config: Any = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == kind
    assert config.num_processes == processes
    assert config.mixed_precision == "bf16"


def test_fsdp_takes_its_units_from_the_models():
    config: Any = load_config_from_file(str(CONFIGS / "fsdp2.yaml"))
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert "fsdp_transformer_layer_cls_to_wrap" not in config.fsdp_config
    assert set(OpenVLAPlusForVision2Seq._no_split_modules or ()) == {
        "Dinov2WithRegistersLayer",
        "SiglipEncoderLayer",
        "LlamaDecoderLayer",
    }
    assert set(Pi0FlowForActionPrediction._no_split_modules or ()) == {"SiglipEncoderLayer", "GemmaDecoderLayer"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_slurm_script_is_bash_and_names_a_configuration_there_is():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    text = SLURM.read_text(encoding="utf-8")
    (named,) = {word.rstrip("}") for word in text.replace(":-", " ").split() if word.rstrip("}").endswith(".yaml")}
    assert (CONFIGS.parents[1] / named).is_file()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The folder two processes wrote their weights and losses to."""
    folder = tmp_path_factory.mktemp("sharded")
    run_in_two_processes("sharded_run", folder)
    return folder


@pytest.mark.parametrize("family", sharded_run.FAMILIES)
def test_sharded_over_two_processes_is_the_same_as_plain_training(family, sharded):
    facts = json.loads((sharded / f"{family}.json").read_text(encoding="utf-8"))
    weights = load_file(sharded / f"{family}.safetensors")
    assert facts["processes"] == 2
    assert facts["units"] >= 4
    model, inputs = sharded_run.build(family)
    start = {name: value.clone() for name, value in model.named_parameters()}
    losses = [loss.item() for loss in sharded_run.train(model, inputs)]
    assert facts["losses"] == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0] - 0.01
    for name, value in model.named_parameters():
        torch.testing.assert_close(weights[name], value.detach(), atol=1e-5, rtol=0)
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert len(frozen) > 5
    assert all(torch.equal(weights[name], start[name]) for name in frozen)
