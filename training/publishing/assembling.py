"""Assembles and verifies a Hub repository from a trained folder, and installs it in the local cache.

A repository is what `save_pretrained` of the model and of the processor write into one folder, plus the card
(`card.py`) and the records of the run. Filling the cache of huggingface_hub makes the name loadable on this machine,
offline:

    CACHE/models--gen-vla--mini-openvla-plus/refs/main              40 hexadecimal digits
    CACHE/models--gen-vla--mini-openvla-plus/snapshots/<digits>/    the files
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from gen_vla.training.checkpoints import WEIGHTS, WEIGHTS_INDEX, cast_weights, check_folder, used_dtype
from gen_vla.training.lora import check_checkpoint, load_checkpoint, saved_dtype
from gen_vla.training.provenance.private_paths import publishable
from gen_vla.training.publishing.card import write_card


RECORDS = ("dataset_statistics.json", "recipe.yaml", "training_log.json")
MAX_SHARD_SIZE = "5GB"  # one that is cut off on its way is sent again as a whole
EXPECTED_FILES = re.compile(
    r"README\.md|config\.json|generation_config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|processor_config\.json|preprocessor_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|chat_template\.jinja|" + "|".join(re.escape(name) for name in RECORDS)
)


class PublishingError(ValueError):
    """A repository that must not be published; says what was found."""


def publish_to_folder(
    checkpoint: str | Path,
    repo_id: str,
    folder: str | Path,
    results: dict[str, Any] | None = None,
    dtype: str | None = None,
) -> Path:
    """Assembles and verifies a repository.

    Args:
        checkpoint: folder of a trained model, or of a LoRA adapter, which is merged into its base model.
        folder: where the repository goes; an earlier repository there is replaced, after everything was verified.
        results: measured figures for the card; what is missing stays visibly missing there.
        dtype: of the weights; by default that of the checkpoint, or of a large one in float32 bfloat16.
    """
    check_repo_id(repo_id)
    checkpoint = check_checkpoint(checkpoint)
    folder = check_target(folder, checkpoint)
    model, processor = load_checkpoint(checkpoint)
    with tempfile.TemporaryDirectory(prefix="gen-vla-publish-") as temporary:
        draft = Path(temporary) / repo_id.rpartition("/")[2].replace(".", "-")
        draft.mkdir()
        for name in RECORDS:
            if (checkpoint / name).is_file():
                copy_record(checkpoint / name, draft / name)
        write_card(draft, repo_id, model, results, processor.cameras)  # first, since it may refuse the name
        saved = saved_dtype(checkpoint)
        cast_weights(model, saved if dtype is None and saved != torch.float32 else used_dtype(model, dtype))
        model.save_pretrained(draft, max_shard_size=MAX_SHARD_SIZE)
        processor.save_pretrained(draft)
        check_files(draft)
        cast_weights(model, torch.float32)
        verify(draft, model, processor)
        replace_folder(draft, folder)
    return folder


def copy_record(record: Path, target: Path) -> None:
    text = record.read_text(encoding="utf-8")
    content = yaml.safe_load(text) if record.suffix == ".yaml" else json.loads(text)
    public = publishable(content)
    if public == content:
        shutil.copyfile(record, target)
    elif record.suffix == ".yaml":
        target.write_text(yaml.safe_dump(public, sort_keys=False), encoding="utf-8")
    else:
        target.write_text(json.dumps(public, indent=2) + "\n", encoding="utf-8")


def check_target(folder: str | Path, checkpoint: Path) -> Path:
    """The folder to write, in full, if writing it destroys nothing but an earlier repository."""
    folder = Path(folder).resolve()
    if folder == checkpoint or folder in checkpoint.parents:
        raise FileExistsError(f"got {folder} as the target, which holds the checkpoint; choose another folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    known = all(EXPECTED_FILES.fullmatch(name) or name.endswith(".py") for name in names)
    if folder.is_file() or (names and not (known and {"config.json", "README.md"} <= names)):
        raise FileExistsError(
            f"got {folder} as the target, which is no earlier repository (config.json, README.md and repository files "
            "only); it would be replaced as a whole, so choose a new or an empty folder"
        )
    return folder


def replace_folder(source: Path, target: Path) -> None:
    """Puts a copy of `source` at `target`, where no reader ever finds half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (target.with_name(f".{target.name}.{os.getpid()}.{word}") for word in ("partial", "old"))
    shutil.copytree(source, partial)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def check_repo_id(repo_id: str) -> None:
    """Raises `ValueError` unless `repo_id` is `OWNER/NAME` and the Hub would take it."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id, re.ASCII):
        raise ValueError(f"got repository id {repo_id!r}, expected OWNER/NAME, for example gen-vla/mini-openvla-plus")
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"got repository id {repo_id!r}, which the Hub does not take: {error}") from error


def check_files(folder: Path) -> None:
    """Every file is one a repository should have, and every module the code imports from beside itself is there."""
    check_folder(folder)
    names = {path.name for path in folder.iterdir()}
    modules = {name for name in names if name.endswith(".py")}
    imported = {
        f"{module}.py"
        for name in modules
        for module in re.findall(r"^\s*from \.(\w+) import", (folder / name).read_text(encoding="utf-8"), re.MULTILINE)
    }
    index = folder / WEIGHTS_INDEX
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else [WEIGHTS]
    unexpected = {name for name in names - modules if not EXPECTED_FILES.fullmatch(name)}
    unexpected |= {name for name in names if name.endswith(".safetensors")} - set(shards)
    if unexpected or imported - modules:
        raise PublishingError(
            f"got unexpected files {sorted(unexpected)} and missing modules {sorted(imported - modules)} in the "
            "repository, expected neither; remove or add them in training/publishing/assembling.py"
        )


def verify(folder: Path, model: Any, processor: Any) -> None:
    """Runs `verify_repository.py` on the folder in a fresh interpreter without this package."""
    cameras = len(processor.cameras or [None])
    pictures = np.random.default_rng(0).integers(0, 256, (2, cameras, 48, 64, 3), dtype=np.uint8)
    instructions = ["close the drawer", "pick up the red block and put it down"]
    key = min(model.config.norm_stats or {}, default=None)  # the first in a saved file
    state = {"state": [processor.neutral_state(key)] * 2, "unnorm_key": key} if processor.takes_state else {}
    shown = [[Image.fromarray(image) for image in row] for row in pictures]
    inputs = processor.action_inputs(shown, instructions, **state)
    seen = {name: values for name, values in inputs.items() if name != "state"}  # which is for `predict_actions`
    torch.manual_seed(0)  # a flow begins with noise; the script draws the same
    with torch.no_grad():
        expected = {"logits": model(**seen).logits[:, -1].numpy()}
    if model.can_generate():
        question = processor.question_inputs(Image.fromarray(pictures[0, 0]), "what is this?")
        expected["answer"] = model.generate(**question, max_new_tokens=4, do_sample=False).numpy()
    if key is not None:
        torch.manual_seed(0)
        expected["actions"] = np.array(model.predict_actions(**inputs, unnorm_key=key).text)
    with tempfile.TemporaryDirectory(prefix="gen-vla-verify-") as temporary:
        expected_file = Path(temporary) / "expected.npz"
        np.savez(expected_file, images=pictures, instructions=np.array(instructions), **expected)
        script = Path(__file__).with_name("verify_repository.py")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(temporary) / "modules")}
        run = subprocess.run(
            [sys.executable, "-P", str(script), str(folder), str(expected_file)],
            env=environment,
            cwd=temporary,
            capture_output=True,
            text=True,
        )
    if run.returncode:
        raise PublishingError(f"the repository does not stand on its own: {run.stderr.strip()[-2000:]}")


def install_in_cache(folder: str | Path, repo_id: str, cache_dir: str | Path | None = None) -> Path:
    """Makes a repository's `repo_id` loadable by name on this machine, as if it had been downloaded.

    Returns the snapshot folder, whose revision is a hash of the files: the same files give the same revision.
    """
    check_repo_id(repo_id)
    folder = check_folder(folder)
    root = Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    revision = content_hash(folder)
    snapshot = root / "snapshots" / revision
    if not snapshot.exists():
        replace_folder(folder, snapshot)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(revision, encoding="ascii")
    return snapshot


def content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:40]
