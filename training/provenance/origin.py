"""The record of how a file of results came about, and how it is read back from older files.

    "provenance": {
      "command": "gen-vla evaluate latency outputs/my-robot --output results/latency.json",   as typed
      "date": "2026-11-23T10:39:52+00:00",
      "machine": {"device": ..., "cores": ..., "threads": ..., "memory_gb": ..., "system": ...},
      "versions": {"python": ..., "torch": ..., ...},
      "code": {"commit": ..., "modified": []}          of this package, where it runs from a clone or was installed
                                                       from a repository, and the files that differ from that commit
      "model": {"name": ..., "revision": ...}          of the Hub or the cache, or of a folder
               {"name": ..., "sha256": {"config.json": ..., "model.safetensors": ...}, "modules": ...}
      "compared_with": [...]                           further models, where a suite takes several
      "data": [{"name": ..., "revision": ...}]         or of a folder {"name", "files", "bytes", "listing"}
    }

`private_paths.py` takes what is private out of paths. Runs that continue earlier ones in a folder append to
`runs.jsonl` there, and the record has the others as `other_runs`: they may be of another machine or of other code.
"""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from gen_vla.training.provenance.private_paths import publishable


PACKAGES = (
    *("gen-vla", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "numpy", "scipy", "pillow"),
    *("trl", "accelerate", "peft", "datasets", "pyarrow", "av", "triton"),
    *("mujoco", "metaworld", "simpler-env", "mani-skill2-real2sim", "sapien", "lm-eval", "scikit-learn"),
)
PARTS = ("modeling", "processors", "training", "evaluation", "serving", "commands", "model_cards")
CODE = tuple(f":/{folder}/*{kind}" for folder in PARTS for kind in (".py", ".yaml", ".md"))  # as git names them
RUNS = "runs.jsonl"
MODEL_FILES = ("config.json", "processor_config.json", "tokenizer.json", "*.safetensors")
OWN_COMMANDS = {"gen_vla.commands.main": "gen-vla"}  # modules that are a command, too
_TYPED: ContextVar[tuple[str, ...] | None] = ContextVar("typed", default=None)


@contextmanager
def called_as(*typed: str) -> Iterator[None]:
    """Within the `with` block, this is the command that is recorded, and not how the interpreter was started."""
    token = _TYPED.set(typed)
    try:
        yield
    finally:
        _TYPED.reset(token)


def command_line() -> str:
    parts = []
    for part in map(publishable, _TYPED.get() or _started_as(sys.orig_argv)):
        in_home = part.startswith("~/") and len(part) > 2  # a shell expands `~` only outside quotes
        parts.append(f"~/{shlex.quote(part[2:])}" if in_home else shlex.quote(part))
    return " ".join(parts)


def _started_as(arguments: Sequence[str]) -> list[str]:
    """An interpreter's arguments as one would type them: `python` without its folder, commands by their names."""
    if len(arguments) < 2:
        return ["python"]
    _, first, *rest = arguments
    if first == "-m" and rest and rest[0] in OWN_COMMANDS:
        return [OWN_COMMANDS[rest[0]], *rest[1:]]
    if Path(first).parent == Path(sys.executable).parent:  # a console script
        return [Path(first).name, *rest]
    return ["python", first, *rest]


def provenance(
    model: str | Path | None = None, data: Iterable[str | Path | None] = (), compared: Iterable[str | Path | None] = ()
) -> dict[str, Any]:
    """The record of what runs now, with models and data sets by folder, or by name on the Hub or in the cache."""
    record: dict[str, Any] = {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_hardware(),
        "versions": installed_versions(),
        "code": code_version(),
    }
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        record["processes"] = processes
    if model is not None:
        record["model"] = model_identity(model)
    if others := [model_identity(entry) for entry in compared if entry is not None]:
        record["compared_with"] = others
    if named := [data_identity(entry) for entry in data if entry is not None]:
        record["data"] = named
    return record


def with_provenance(results: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Results with their record before them, and nothing private in their texts."""
    return {"provenance": record, **publishable(results)}


def note_run(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RUNS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def with_other_runs(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    path, others = folder / RUNS, []
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        with suppress(json.JSONDecodeError):  # a line cut short by a kill, or the empty one at the end
            others.append(json.loads(line))
    others = [run for run in others if run != record]
    return {**record, "other_runs": others} if others else record


def origin(results: Any) -> dict[str, Any]:
    """`command`, `date`, `commit` and the model's `revision` of a result file, empty where it does not say."""
    results = results if isinstance(results, dict) else {}
    record = results.get("provenance") or results  # older files have a command and a date at most
    code, model = record.get("code"), record.get("model")
    commit = f"{code['commit'][:7]}{', modified' * bool(code['modified'])}" if isinstance(code, dict) else ""
    revision = model.get("revision") if isinstance(model, dict) else None
    date = str(record.get("date") or "")[:10]
    return {"command": str(record.get("command") or ""), "date": date, "commit": commit, "revision": revision}


def describe_hardware() -> dict[str, Any]:
    """What figures of speed depend on, without the machine's name."""
    import torch

    device = {"device": _processor_name()}
    if torch.cuda.is_available():
        gpus = {"gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
        device = {"device": torch.cuda.get_device_name(), "processor": _processor_name(), **gpus}
    try:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # not on every system
        memory = None
    return {
        **device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": memory,
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_machine() -> dict[str, Any]:
    import torch
    import transformers

    hardware = describe_hardware()
    return {
        **{key: hardware[key] for key in ("device", "cores", "threads")},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def installed_versions() -> dict[str, str]:
    found = {name: number for name in PACKAGES if (number := _installed_version(name))}
    return {"python": platform.python_version(), **found}


@lru_cache(maxsize=len(PACKAGES))
def _installed_version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def code_version() -> dict[str, Any] | None:
    """The commit of this package and its files that differ from it; `None` where nothing says."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None:  # else a project around it has git
        commit = _git(here.parent, "rev-parse", "HEAD")
        changes = _git(here.parent, "status", "--porcelain", "--untracked-files=all", "--", *CODE) or ""
        return {"commit": commit, "modified": [line[3:] for line in changes.splitlines()]} if commit else None
    try:
        installed = json.loads(distribution("gen-vla").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None
    commit = installed.get("vcs_info", {}).get("commit_id")
    return {"commit": commit, "modified": []} if commit else None


def _git(folder: Path, *arguments: str) -> str | None:
    command, quiet = ["git", *arguments], {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        run = subprocess.run(command, cwd=folder, env=quiet, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return run.stdout.rstrip() if run.returncode == 0 else None


def model_identity(name: str | Path) -> dict[str, Any]:
    folder = Path(name)
    if not folder.is_dir():
        repository, _, revision = str(name).partition("@")
        return {"name": repository, "revision": revision or cached_revision(repository)}
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    found: dict[str, Any] = {"name": publishable(name), "sha256": {path.name: _sha256(path) for path in files}}
    modules = sorted(folder.glob("*.py"))
    if modules:  # the code that runs is that beside the weights
        found["modules"] = _digest(f"{path.name} {_sha256(path)}" for path in modules)
    return found


def data_identity(name: str | Path) -> dict[str, Any]:
    """Its name and, of a folder, a digest of the names and sizes in it: contents may be terabytes."""
    folder = Path(name)
    if not folder.is_dir():
        revision = cached_revision(str(name).removeprefix("hf://").removeprefix("datasets/"), "dataset")
        return {"name": publishable(name), **({"revision": revision} if revision else {})}
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("cache-")  # left there by reading
    }
    listing = _digest(f"{path} {size}" for path, size in sorted(sizes.items()))
    return {"name": publishable(name), "files": len(sizes), "bytes": sum(sizes.values()), "listing": listing}


def cached_revision(name: str, kind: str = "model") -> str | None:
    """The commit of a repository that is in the cache of huggingface_hub; asks no network."""
    from huggingface_hub import constants

    reference = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / "main"
    try:
        return reference.read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
