"""Shortens paths of this machine to what may be published, in files of results and on model cards.

    /home/ada/robots/outputs/mine    outputs/mine       where the working folder is /home/ada/robots
    /home/ada/robots-data/bridge     ../robots-data/... beside it
    /home/ada/data/bridge            ~/data/bridge
    /scratch/ada/bridge              /scratch/USER/bridge
    /data/bridge                     as it is: it says where the data lay, and about nobody

Two paths never become the same one, so that models and data are still told apart by their names.
"""

import functools
import getpass
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


BEGINS = r"(?<![\w./~-])"  # no part of a longer path, of a relative one, or of an address like hf://owner/name
ABSOLUTE = re.compile(BEGINS + r"/(?!/)[^\s\"',;:\[\]{}]*")
SHARED = ("", "root", "user", "ubuntu")  # accounts that name nobody


def publishable(value: Any) -> Any:
    """A text, or all texts of lists and dictionaries, without what is private in the absolute paths in them."""
    if isinstance(value, dict):
        return {key: publishable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [publishable(entry) for entry in value]
    if isinstance(value, Path):
        return publishable(str(value))
    if not isinstance(value, str) or "/" not in value:
        return value
    for pattern, replace in _replacements(os.getcwd(), str(Path.home()), os.environ.get("PWD", ""), _account()):
        value = pattern.sub(replace, value)
    return value


@functools.lru_cache(maxsize=8)
def _replacements(folder: str, home: str, typed_folder: str, account: str) -> list[Any]:
    """The replacements to make in a text, in this order: the working folder, what is beside it, home, the account."""
    folders = [folder]
    if typed_folder and typed_folder != folder and os.path.realpath(typed_folder) == folder:
        folders.append(typed_folder)  # with symbolic links, as it was typed
    homes = list(dict.fromkeys((home, os.path.realpath(home))))
    beside = [os.path.dirname(place) for place in folders]
    beside = [place for place in beside if not any(Path(own).is_relative_to(place) for own in homes)]
    places = [*((place, ".", "") for place in folders), *((place, "..", "../") for place in beside)]
    places += [(place, "~", "~/") for place in homes]
    found: list[tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = []
    for place, alone, before in places:  # `before` for a folder and the slash behind it
        if place != "/":
            pattern = re.compile(rf"{BEGINS}{re.escape(place)}(?:(/)(?=[\w.~@%+-])|/?(?![\w./~@%+-]))")
            found.append((pattern, lambda match, texts=(alone, before): texts[bool(match[1])]))
    if account not in SHARED:
        component = re.compile(rf"(?<=/){re.escape(account)}(?=/|$)")
        found.append((ABSOLUTE, lambda path: component.sub("USER", path[0])))
    return found


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        return Path.home().name
