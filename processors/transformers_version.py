"""Raises an understandable `ImportError` under a transformers that is too old.

OpenVLA's own requirements pin transformers 4.40.1, where a repository of this family would fail deep inside with
`KeyError: 'dinov2_with_registers'` or a missing file. Imported by the files that transformers opens first.
"""

import re

import transformers


OTHERS_RUN = "The other model families run with older ones"
OLDEST = {  # by what needs it, and how its error ends
    "this model": (
        (4, 57),
        "OpenVLA's own code needs an older one, and this model does not need it: use a new environment",
    ),
    "a stock VLM": ((5, 5), OTHERS_RUN),  # before it, features are returned, or positions counted, otherwise
    "the flow-matching π0": ((5, 17), OTHERS_RUN),  # the oldest it was tested with
}
CAPS_LOGITS = (5, 23)  # before it, PaliGemma leaves out the cap of Gemma 2


def check_transformers(what: str = "this model", version: str = transformers.__version__) -> None:
    """Raises `ImportError` for a version older than one of `OLDEST`."""
    oldest, advice = OLDEST[what]
    if is_older(oldest, version):
        wanted = ".".join(map(str, oldest))
        raise ImportError(
            f"got transformers {version}, expected {wanted} or newer for {what}: "
            f"pip install 'transformers>={wanted}'. {advice}"
        )


def is_older(wanted: tuple[int, int], version: str = transformers.__version__) -> bool:
    """Whether a version comes before `wanted`."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < wanted


def check_vlm() -> None:
    """Raises `ImportError` for a version that stock VLMs were not tested with."""
    if not transformers.__version__.startswith("4.57."):
        check_transformers("a stock VLM")


check_transformers()
