"""The cameras of a recipe's robot data, as a model keeps them.

Decides: what a camera is called once its data set is gone, and that all data sets give an action as many pictures.
Refuses to know: files, pictures, prompts.
"""

import re
from collections.abc import Mapping, Sequence


def model_cameras(data_sets: Mapping[str, Sequence[str]]) -> list[str] | None:
    """The names that are saved with the processor, in the order of a prompt's pictures.

    A name is the last part of what a data set stores ("wrist" of "observation.images.wrist"), the whole where that is
    not enough to tell two apart. Data sets whose cameras have other names share a model place by place, under the
    names of the first.

    Args:
        data_sets: by key, the stored names of the cameras that rows show.

    Returns:
        `None` without data sets, and for one picture that they call differently.

    Raises:
        ValueError: if one data set shows more cameras than another, or one camera twice.
    """
    if not data_sets:
        return None
    for key, cameras in data_sets.items():
        if len(set(cameras)) < len(cameras):
            raise ValueError(f"got the cameras {', '.join(cameras)} of {key}, expected each once; correct `cameras`")
    if len({len(cameras) for cameras in data_sets.values()}) > 1:
        found = "; ".join(f"{key}: {', '.join(cameras)}" for key, cameras in data_sets.items())
        raise ValueError(
            f"got robot data sets with different numbers of cameras ({found}), expected as many of each: an action is "
            "asked for with one number of pictures; name as many `cameras` of each data set, corresponding ones in "
            "the same place"
        )
    named = [short_names(cameras) for cameras in data_sets.values()]
    if len(named[0]) == 1 and any(names != named[0] for names in named):
        return None
    return named[0]


def short_names(cameras: Sequence[str]) -> list[str]:
    """The last part of each name, unless two have the same."""
    names = [re.split(r"[/.]", camera)[-1] for camera in cameras]
    return names if len(set(names)) == len(names) else list(cameras)
