"""Recognises a full disk in the errors of torch, safetensors and the operating system, and says so in one sentence."""

import errno
from pathlib import Path


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_WORDS = ("No space left", "Disk quota exceeded", "File too large")
UNFINISHED = ("inline_container", "PytorchStreamWriter", "iostream error")  # torch.save, which gives no reason
REMEDY = (
    "make room or name another folder; a training run goes on with --resume from its newest whole checkpoint, if it "
    "has one"
)


def storage_problem(error: BaseException) -> str | None:
    """What to tell where an error means that a file could not be written whole; `None` for any other error."""
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" for {error.filename}" if error.filename else ""
        return f"the disk is full{where} ({error.strerror}); {REMEDY}"
    text = str(error)
    if type(error).__name__ == "SafetensorError" and any(words in text for words in FULL_WORDS):
        return f"the disk is full ({text}); {REMEDY}"
    if isinstance(error, RuntimeError) and any(words in text for words in UNFINISHED):
        return f"a file could not be written whole, most likely because the disk is full ({text}); {REMEDY}"
    return None


def make_work_dir(folder: str | Path) -> Path:
    """The folder, created if it is missing; raises an `OSError` that says what to do if it cannot be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"got the work folder {folder}, which cannot be made ({error.strerror}), expected a folder that can be "
            "written; name one with --work-dir"
        ) from error
    return Path(folder)
