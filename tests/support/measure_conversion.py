"""How much memory `gen-vla convert` needs for a checkpoint of OpenVLA 7B's size, random weights, bfloat16.

    python tests/support/measure_conversion.py FOLDER              # needs 31 GB of disk there, removed afterwards
    python tests/support/measure_conversion.py FOLDER --layers 4   # a shallower language model, 8 GB

The conversion runs in a process of its own, whose peak resident memory, mapped files included, is printed.
"""

import argparse
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

from gen_vla.training.storage.tensor_files import Output, write_shards


NOISE = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).bfloat16()


def repeated(shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    """Reads as random numbers, which repeat in a large tensor."""
    size = math.prod(shape)
    return lambda: NOISE.repeat(size // NOISE.numel() + 1)[:size].view(shape)


def write_checkpoint(folder: Path, layers: int) -> int:
    """OpenVLA's Hub layout; returns the bytes of its weights."""
    folder.mkdir(parents=True)
    shapes = full_size_shapes(layers)
    outputs = [Output(name, shape, torch.bfloat16, repeated(shape)) for name, shape in shapes.items()]
    write_shards(folder, outputs, max_shard_bytes=7 * 10**9)  # as openvla/openvla-7b is cut
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(PARITY / name, folder / name)
    wide_tokenizer().save(str(folder / "tokenizer.json"))
    return sum(output.nbytes for output in outputs)


def main() -> int:
    """See the docstring of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    source, target = options.folder / "measured_source", options.folder / "measured_target"
    try:
        size = write_checkpoint(source, options.layers)
        largest = max(path.stat().st_size for path in source.glob("*.safetensors"))
        start = time.perf_counter()
        command = [sys.executable, "-m", "gen_vla.commands.main", "convert", str(source), str(target)]
        code = subprocess.call(command)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(f"{size / 1e9:.1f} GB, largest shard {largest / 1e9:.1f} GB: peak {peak / 1e9:.2f} GB, {seconds:.0f} s")
        return code
    finally:
        for folder in (source, target):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
