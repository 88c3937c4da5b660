"""How much memory `gen-vla convert` needs for a full-size checkpoint, random weights, bfloat16.

    python tests/support/measure_conversion.py FOLDER              # OpenVLA 7B: takes 31 GB of disk, then removes them
    python tests/support/measure_conversion.py FOLDER --layers 4   # a shallower language model, 8 GB
    python tests/support/measure_conversion.py FOLDER --vlm Qwen2.5-VL-7B   # one of tests/fixtures/vlm_sizes.json

The conversion, without its check, runs in a process of its own, whose peak resident memory, mapped files included, is
printed.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from foreign_checkpoints import PARITY, full_size_shapes, wide_tokenizer
from tiny_vlms import write_base_processor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from gen_vla.training.storage.tensor_files import Output, write_shards


NOISE = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).bfloat16()
VLM_SIZES = PARITY.with_name("vlm_sizes.json")


def repeated(shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    """Reads as random numbers, which repeat in a large tensor."""
    size = math.prod(shape)
    return lambda: NOISE.repeat(size // NOISE.numel() + 1)[:size].view(shape)


def openvla_shapes(folder: Path, layers: int | None) -> dict[str, tuple[int, ...]]:
    """Writes OpenVLA's Hub layout but its weights, and returns their shapes."""
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(PARITY / name, folder / name)
    wide_tokenizer().save(str(folder / "tokenizer.json"))
    return full_size_shapes(layers or 32)


def vlm_shapes(folder: Path, layers: int | None, name: str) -> dict[str, tuple[int, ...]]:
    """As `openvla_shapes`, for a vision-language model of transformers."""
    settings = json.loads(VLM_SIZES.read_text(encoding="utf-8"))[name]["config"]
    settings["text_config"] |= {} if layers is None else {"num_hidden_layers": layers}
    config = CONFIG_MAPPING[settings.pop("model_type")](**settings)
    write_base_processor(config.model_type, folder)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    once = {id(weight) for weight in model.parameters()}
    weights = model.state_dict(keep_vars=True)
    return {name: tuple(weight.shape) for name, weight in weights.items() if id(weight) in once}


def main() -> int:
    """See the docstring of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vlm")
    options = parser.parse_args()
    source, target = options.folder / "measured_source", options.folder / "measured_target"
    try:
        source.mkdir(parents=True)
        given = (source, options.layers)
        shapes = vlm_shapes(*given, options.vlm) if options.vlm else openvla_shapes(*given)
        outputs = [Output(name, shape, torch.bfloat16, repeated(shape)) for name, shape in shapes.items()]
        write_shards(source, outputs, max_shard_bytes=7 * 10**9)  # as openvla/openvla-7b is cut
        largest = max(path.stat().st_size for path in source.glob("*.safetensors"))
        start = time.perf_counter()
        command = [sys.executable, "-m", "gen_vla.commands.main", "convert", str(source), str(target), "--no-check"]
        code = subprocess.call(command)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        size, written = (sum(path.stat().st_size for path in each.glob("*.safetensors")) for each in (source, target))
        print(
            f"{size / 1e9:.1f} GB, largest shard {largest / 1e9:.1f} GB, became {written / 1e9:.1f} GB: "
            f"peak {peak / 1e9:.2f} GB, {seconds:.0f} s"
        )
        return code
    finally:
        for folder in (source, target):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
