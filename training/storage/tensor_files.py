"""Reads weights tensor by tensor and writes them shard by shard, so that a model may be larger than memory.

A safetensors file is 8 bytes (length of the header, little-endian), the header (JSON: per tensor its dtype, shape and
offsets) and the tensors' bytes. `safetensors.torch.save_file` needs all tensors of a shard at once; here the header is
written first, from the known shapes and dtypes, and the bytes follow one tensor at a time.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from gen_vla.training.storage.json_files import read_json, write_json


RELOAD_AFTER = 256 * 2**20  # bytes; pages of a mapped file stay in memory until it is closed
SAFETENSORS_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
SAFETENSORS_DTYPES |= {torch.int64: "I64"}  # of positions in old files
DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
INDEX = "model.safetensors.index.json"


class TensorFileError(ValueError):
    """A file of weights that cannot be read as one."""


class SafetensorsFolder:
    """The tensors of all `*.safetensors` of a folder, or of those that its index names; `shapes`, `dtypes` by name."""

    def __init__(self, folder: Path):
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        shards = sorted(folder.glob("*.safetensors"))
        if (folder / INDEX).is_file():
            index = read_json(folder / INDEX)
            shards = [folder / name for name in sorted(set(index["weight_map"].values()))]
        if missing := [path.name for path in shards if not path.is_file()]:
            raise FileNotFoundError(f"got {folder} without {', '.join(missing)}, which {INDEX} names; copy them, too")
        for path in shards:
            self._add(path)

    def _add(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                found = [(name, tensor.get_dtype(), tensor.get_shape()) for name, tensor in slices.items()]
        except SafetensorError as error:
            raise TensorFileError(
                f"got {path}, expected a whole safetensors file ({error}); copy or download it again"
            ) from error
        for name, dtype, shape in found:
            if name in self.files:
                raise TensorFileError(f"got {name} in {self.files[name].name} and in {path.name}, expected it once")
            if dtype not in DTYPES:
                raise TensorFileError(
                    f"got {name} of dtype {dtype} in {path}, expected one of {', '.join(DTYPES)}; "
                    "quantised weights cannot be converted"
                )
            self.files[name], self.shapes[name], self.dtypes[name] = path, tuple(shape), DTYPES[dtype]

    def read(self, name: str, part: int = 0, parts: int = 1) -> torch.Tensor:
        """A tensor, or one of `parts` equal shares of its rows."""
        with safe_open(self.files[name], framework="pt") as file:
            if parts == 1:
                return file.get_tensor(name)
            rows = self.shapes[name][0] // parts
            return file.get_slice(name)[part * rows : (part + 1) * rows]


class TorchCheckpoint:
    """The tensors of a `.pt` file: nested dictionaries of tensors, whose keys are joined by points.

    Args:
        path: the file; only tensors and plain containers are read from it, never code.
        root: the key under which the tensors lie.
        rename: from the joined name to the one to use.
    """

    def __init__(self, path: Path, root: str, rename: Callable[[str], str]):
        self.path, self.root, self.rename = path, root, rename
        self._load()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def _load(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}  # before the file is mapped once more
        self._bytes_read = 0
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise TensorFileError(
                f"got {self.path}, which is no PyTorch checkpoint of tensors alone: {str(error).splitlines()[0]}; "
                "what would need code to load is never loaded"
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get(self.root), dict):
            found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
            raise TensorFileError(f"got {self.path} holding {found}, expected tensors under {self.root!r}")
        self._tensors = {self.rename(name): tensor for name, tensor in flatten(content[self.root])}

    def read(self, name: str, part: int = 0, parts: int = 1) -> torch.Tensor:
        if self._bytes_read > RELOAD_AFTER:
            self._load()
        tensor = self._tensors[name].chunk(parts)[part] if parts > 1 else self._tensors[name]
        self._bytes_read += tensor.nbytes
        return tensor


def flatten(tensors: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    for key, value in tensors.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value


@dataclass(frozen=True)
class Output:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_shards(folder: Path, outputs: list[Output], max_shard_bytes: int) -> None:
    """Writes `model.safetensors`, or numbered shards and their index, as `save_pretrained` does.

    Args:
        max_shard_bytes: of one file; a single tensor may be larger.
    """
    named = {output.name: output for output in outputs}
    split = split_state_dict_into_shards_factory(
        named,
        get_storage_size=lambda output: output.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    total = sum(output.nbytes for output in outputs)
    with tqdm(total=total, unit="B", unit_scale=True, desc="converting") as bar:
        for filename, names in split.filename_to_tensors.items():
            write_shard(folder / filename, [named[name] for name in names], bar.update)


def write_shard(path: Path, outputs: list[Output], progress: Callable[[int], Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for output in outputs:
        offsets = [offset, offset + output.nbytes]
        dtype = SAFETENSORS_DTYPES[output.dtype]
        header[output.name] = {"dtype": dtype, "shape": list(output.shape), "data_offsets": offsets}
        offset += output.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for output in outputs:
            tensor = output.read().to(output.dtype)
            if tuple(tensor.shape) != output.shape:
                raise TensorFileError(
                    f"got {output.name} of shape {list(tensor.shape)}, expected {list(output.shape)}"
                )
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            progress(output.nbytes)
