"""Weights larger than memory: read tensor by tensor, write shards as tensors come.

Decides: how a folder of safetensors shards and a PyTorch checkpoint are read alike, and the layout of the shards
written. Refuses to know: what any tensor is for.

A safetensors file is 8 bytes (length of the header, little-endian), the header (JSON: per tensor its dtype, shape and
place) and the tensors' bytes. Shapes and dtypes are known before any tensor is read, so the header comes first and the
bytes follow one tensor at a time; a shard never lies in memory.

Reading maps files into memory, and what was read stays there until the file is closed; so files are closed and opened
again after every `REOPEN_AFTER` bytes.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


REOPEN_AFTER = 256 * 2**20
SAFETENSORS_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
INDEX = "model.safetensors.index.json"


class TensorFileError(ValueError):
    """A file of weights that cannot be read as one."""


class SafetensorsFolder:
    """The tensors of all `*.safetensors` of a folder.

    Attributes:
        shapes, dtypes: by tensor name.
    """

    def __init__(self, folder: Path):
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._open: tuple[Path, Any] | None = None
        self._read = 0
        for path in self._shards(folder):
            for name, entry in read_header(path).items():
                if name in self.files:
                    raise TensorFileError(
                        f"got {name} in {self.files[name].name} and in {path.name}, expected it once"
                    )
                if entry["dtype"] not in DTYPES:
                    raise TensorFileError(
                        f"got {name} of dtype {entry['dtype']} in {path}, expected one of {', '.join(DTYPES)}; "
                        "quantised weights cannot be converted"
                    )
                self.files[name] = path
                self.shapes[name] = tuple(entry["shape"])
                self.dtypes[name] = DTYPES[entry["dtype"]]

    @staticmethod
    def _shards(folder: Path) -> list[Path]:
        """The shards the index names, or all there are."""
        if not (folder / INDEX).is_file():
            return sorted(folder.glob("*.safetensors"))
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"got {folder} without {', '.join(missing)}, which {INDEX} names; copy them, too")
        return [folder / name for name in names]

    def read(self, name: str, part: int = 0, parts: int = 1) -> torch.Tensor:
        """A tensor, or one of `parts` equal shares of its rows."""
        path = self.files[name]
        if self._open is None or self._open[0] != path or self._read > REOPEN_AFTER:
            self.close()
            self._open = (path, safe_open(path, framework="pt"))
        reader = self._open[1]
        if parts == 1:
            tensor = reader.get_tensor(name)
        else:
            rows = self.shapes[name][0] // parts
            tensor = reader.get_slice(name)[part * rows : (part + 1) * rows]
        self._read += tensor.nbytes
        return tensor

    def close(self) -> None:
        """Gives the mapped memory back."""
        self._open, self._read = None, 0


class TorchCheckpoint:
    """The tensors of a `.pt` file: nested dictionaries of tensors, whose keys are joined by points.

    Args:
        path: the file; only tensors and plain containers are read from it, never code.
        root: the key under which the tensors lie.
        rename: from the joined name to the one to use.

    Attributes:
        shapes, dtypes: by tensor name.
    """

    def __init__(self, path: Path, root: str, rename: Callable[[str], str]):
        self.path = path
        self.root = root
        self.rename = rename
        self._tensors: dict[str, torch.Tensor] = {}
        self._read = 0
        self._load()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def _load(self) -> None:
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
        """A tensor, or one of `parts` equal shares of its rows."""
        if self._read > REOPEN_AFTER:
            self.close()
        if not self._tensors:
            self._load()
        tensor = self._tensors[name].chunk(parts)[part] if parts > 1 else self._tensors[name]
        self._read += tensor.nbytes
        return tensor

    def close(self) -> None:
        """Gives the mapped memory back."""
        self._tensors, self._read = {}, 0


def flatten(tensors: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    """Tensors of nested dictionaries with their joined names."""
    for key, value in tensors.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, metadata left out."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise TensorFileError(
                f"got {path} of {size} bytes, expected a safetensors file; copy or download it again"
            )
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != size:
        raise TensorFileError(f"got {path} of {size} bytes, expected {end}; copy or download it again")
    return header


@dataclass(frozen=True)
class Output:
    """A tensor to be written: its name, its shape and dtype, and how to get it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_shards(
    folder: Path, outputs: list[Output], max_shard_bytes: int, progress: Callable[[int], Any] = lambda _: None
) -> list[str]:
    """Writes `model.safetensors`, or numbered shards and their index; returns the names of the weight files.

    Args:
        max_shard_bytes: a shard is closed before it would grow larger; a single tensor may be.
        progress: called with the bytes just written.
    """
    shards: list[list[Output]] = [[]]
    for output in outputs:
        if shards[-1] and sum(entry.nbytes for entry in shards[-1]) + output.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(output)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{place:05d}-of-{len(shards):05d}.safetensors" for place in range(1, len(shards) + 1)]
        weight_map = {output.name: name for name, shard in zip(names, shards, strict=True) for output in shard}
        index = {"metadata": {"total_size": sum(o.nbytes for o in outputs)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, shard in zip(names, shards, strict=True):
        write_shard(folder / name, shard, progress)
    return names


def write_shard(path: Path, outputs: list[Output], progress: Callable[[int], Any]) -> None:
    """One safetensors file, tensor by tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for output in outputs:
        offsets = [place, place + output.nbytes]
        dtype = SAFETENSORS_DTYPES[output.dtype]
        header[output.name] = {"dtype": dtype, "shape": list(output.shape), "data_offsets": offsets}
        place += output.nbytes
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
