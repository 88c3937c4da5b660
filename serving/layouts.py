"""Under which keys robots send pictures, state and words: LIBERO, DROID, ALOHA, Bridge, OpenVLA, or one's own file.

A key is looked up whole (`"observation/image"` as openpi's clients write it), then part by part in dictionaries that
lie in each other (`{"images": {"cam_high": ...}}`). A model of named cameras finds a picture by the last part of its
key; where names differ, `--keys FILE` says what is what:

    cameras: {top: observation/exterior_image_1_left, wrist: observation/wrist_image_left}
    state: [observation/joint_position, observation/gripper_position]
    instruction: prompt
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


# Names of the one camera that looks at the scene: its picture is the first of any layout.
MAIN_CAMERAS = ("image", "full_image", "image_0", "image_primary", "primary")


@dataclass(frozen=True)
class Layout:
    cameras: dict[str, str]  # the key of each picture by name; the first is of the camera that looks at the scene
    state: tuple[str, ...] = ()  # of its parts, in order; those that are there are joined for a model that takes it
    instruction: tuple[str, ...] = ("prompt", "instruction")  # of which one is there

    def pictures(self, observation: Mapping[str, Any], wanted: Sequence[str] | None) -> list[Any]:
        """The pictures for a model's cameras, in their order; `wanted` is `None` for one of any name. A model whose
        only camera is one of `MAIN_CAMERAS` is shown the first where its own name is not there. Raises `ValueError`
        if a picture is missing; names what was sent and what to do."""
        names = list(wanted or ())
        if not names or (is_main(names) and names[0] not in self.cameras):
            names = [next(iter(self.cameras))]
        found = [find(observation, self.cameras[name]) if name in self.cameras else None for name in names]
        if any(picture is None for picture in found):
            missing = [name for name, picture in zip(names, found, strict=True) if picture is None]
            keys = ", ".join(self.cameras.get(name, f"a key for camera {name}") for name in missing)
            raise ValueError(
                f"got an observation with {shown_keys(observation)}, expected pictures of the cameras "
                f"{', '.join(names)}: {keys} is missing; write which key is which camera into a file and pass it as "
                "--keys"
            )
        return found


def is_main(cameras: Sequence[str] | None) -> bool:
    """Whether a model has one camera, and that looks at the scene or may be any."""
    return not cameras or (len(cameras) == 1 and cameras[0] in MAIN_CAMERAS)


def _named(*keys: str) -> dict[str, str]:
    return {re.split(r"[/.]", key)[-1]: key for key in keys}


_ALOHA = ("images/cam_high", "images/cam_low", "images/cam_left_wrist", "images/cam_right_wrist")
_DROID = (
    "observation/exterior_image_1_left",
    "observation/wrist_image_left",
    "observation/exterior_image_2_left",
)
LAYOUTS = {
    "libero": Layout(_named("observation/image", "observation/wrist_image"), ("observation/state",)),
    "droid": Layout(_named(*_DROID), ("observation/joint_position", "observation/gripper_position")),
    "aloha": Layout(_named(*_ALOHA), ("state",)),
    "bridge": Layout(_named("full_image", "wrist_image"), ("state",), ("instruction", "prompt")),
    "bridge_rlds": Layout(_named(*(f"observation/image_{number}" for number in range(4))), ("observation/state",)),
    "openvla": Layout(_named("image"), ("state",), ("instruction", "prompt")),
}


# Where a camera's picture may lie under the camera's own name.
PLACES = ("{}", "observation/{}", "images/{}", "observation/images/{}", "observation.images.{}")


@dataclass(frozen=True)
class Layouts:
    """The layouts that a server understands; the first one that has a picture in an observation is taken."""

    cameras: tuple[str, ...] | None = None  # of the model, in order; None for one of any name
    known: Mapping[str, Layout] = field(default_factory=lambda: LAYOUTS)  # by name
    places: tuple[str, ...] = PLACES  # where pictures under the cameras' own names are looked for, before any layout

    def of(self, observation: Mapping[str, Any]) -> Layout:
        """The layout of an observation; raises `ValueError` if it has none of the known pictures."""
        for place in self.places if self.cameras else ():
            keys = {name: place.format(name) for name in self.cameras or ()}
            if all(find(observation, key) is not None for key in keys.values()):
                return Layout(keys, self.state_keys(observation))
        for layout in self.known.values():
            if any(find(observation, key) is not None for key in layout.cameras.values()):
                return layout
        keys = "; ".join(f"{name}: {', '.join(layout.cameras.values())}" for name, layout in self.known.items())
        raise ValueError(
            f"got an observation with {shown_keys(observation)}, expected pictures under the keys of one of these "
            f"layouts ({keys}), or a file of your own keys, which the server reads with --keys"
        )

    def state_keys(self, observation: Mapping[str, Any]) -> tuple[str, ...]:
        """Those of the first layout that are all there."""
        named = [("state",), ("observation/state",), ("observation.state",)]
        named += [layout.state for layout in self.known.values() if layout.state]
        return next((keys for keys in named if all(find(observation, key) is not None for key in keys)), named[0])


def find(observation: Mapping[str, Any], key: str) -> Any:
    """What an observation has under a key, whole or part by part; `None` if nothing."""
    if key in observation:
        return observation[key]
    here: Any = observation
    for part in key.split("/"):
        if not isinstance(here, Mapping) or part not in here:
            return None
        here = here[part]
    return here


def shown_keys(observation: Mapping[str, Any]) -> str:
    keys = [str(key)[:40] for key in list(observation)[:12]]
    return f"the keys {', '.join(keys)}" if keys else "no keys"


def read_keys_file(path: Path, cameras: Sequence[str] | None) -> Layouts:
    """The layout in a YAML file as above, for a model's cameras; raises `ValueError` unless it has `cameras`, all that
    the model has, and texts throughout."""
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    shown = "expected cameras: {NAME: KEY, ...} and maybe state: [KEY, ...] and instruction: KEY"
    if not isinstance(given, dict) or not isinstance(given.get("cameras"), dict) or not given["cameras"]:
        raise ValueError(f"got {path} without cameras, {shown}")
    if unknown := sorted(set(map(str, given)) - {"cameras", "state", "instruction"}):
        raise ValueError(f"got {unknown[0]!r} in {path}, {shown}")
    state, words = given.get("state") or [], given.get("instruction") or "prompt"
    texts = [*given["cameras"], *given["cameras"].values(), words, *(state if isinstance(state, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"got values in {path} that are no texts, {shown}")
    if missing := [name for name in cameras or () if name not in given["cameras"]]:
        raise ValueError(
            f"got {path} with the cameras {', '.join(given['cameras'])}, expected those of the model: "
            f"{', '.join(cameras or ())}; {missing[0]} is missing"
        )
    own = Layout(given["cameras"], tuple(state), (words,))
    return Layouts(tuple(cameras) if cameras else None, {"own": own}, places=())
