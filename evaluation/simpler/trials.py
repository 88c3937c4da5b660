"""Which episodes SimplerEnv's benchmark consists of, and how their outcomes become a score.

Every trial of the published evaluation scripts, enumerated instead of drawn at random, and the averaging. Facts are
those of github.com/simpler-env/SimplerEnv, folder `scripts`, and of `tools/calc_metrics_evaluation_videos.py` there.

    robot         mode        task: parts x variants x episodes
    google_robot  matching    pick_coke_can 3 poses of the can x 4 robot colours x 25 positions, move_near 4 colours x
                              60, open_drawer and close_drawer 3 drawers x 4 colours x 9 places of the robot
                  variants    backgrounds, lights, distractors, table textures or cabinets, without a photograph behind
                              them; camera poses are run for pick_coke_can and move_near, but not counted
    widowx        matching    4 tasks x 24 episodes
    both          masked      the matching trials with everything but robot and objects black. No public code of the
                              paper's masking exists: the protocol is reconstructed
                  paraphrase  the matching trials, each with one of the held-out paraphrases in turn. The paper's own
                              paraphrases are not public either

A score is the mean over parts and variants of the mean within each. The same layouts come in every variant and robot
colour, so that its interval is that of fewer trials (`statistics/intervals.py`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gen_vla.evaluation.statistics.intervals import Scored, clustered_share


MODES = ("matching", "variants", "masked", "paraphrase")
COLOURS = (
    None,
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)
CAN_POSES = {"horizontal": "lr_switch", "standing": "upright", "vertical": "laid_vertically"}
DRAWERS = ("top", "middle", "bottom")
TABLE = "google_pick_coke_can_1_v4"
PICK_CAN = "GraspSingleOpenedCokeCanInScene-v0"
# Photograph, x and y of the robot (metres), its turn about z (radians).
DRAWER_PLACES = (
    ("a0", 0.644, -0.179, -0.03),
    ("a1", 0.765, -0.182, -0.02),
    ("a2", 0.889, -0.203, -0.06),
    ("b0", 0.652, 0.009, 0.0),
    ("b1", 0.752, 0.009, 0.0),
    ("b2", 0.851, 0.035, 0.0),
    ("c0", 0.665, 0.224, 0.0),
    ("c1", 0.765, 0.222, -0.025),
    ("c2", 0.865, 0.222, -0.025),
)
# Environment, steps.
WIDOWX_TASKS = {
    "put_spoon_on_towel": ("PutSpoonOnTableClothInScene-v0", 60),
    "put_carrot_on_plate": ("PutCarrotOnPlateInScene-v0", 60),
    "stack_cube": ("StackGreenCubeOnYellowCubeBakedTexInScene-v0", 60),
    "put_eggplant_in_basket": ("PutEggplantInBasketScene-v0", 120),
}
TASKS = {
    "google_robot": ("pick_coke_can", "move_near", "open_drawer", "close_drawer"),
    "widowx": tuple(WIDOWX_TASKS),
}


@dataclass(frozen=True)
class Trial:
    mode: str
    task: str
    part: str  # the can's pose or the drawer; one of the things a score averages over
    variant: str  # how the scene looks; the other
    environment: str  # its registered name
    scene: str
    robot: str  # the simulator's name
    place: tuple[float, float, float]  # the robot's x, y (metres) and turn about z (radians)
    start: dict[str, Any]  # `obj_init_options` of the reset
    steps: int
    build: dict[str, Any] = field(default_factory=dict)  # what it is made with beyond the arguments of its robot
    overlay: str | None = None  # the photograph behind the scene, by its file's name
    counted: bool = True  # whether it enters the score
    turn: int = 0  # among the trials of its task and part; modulo their number, the paraphrase it gets

    @property
    def name(self) -> str:
        where = ",".join(f"{key}={value}" for key, value in self.start.items())
        x, y, angle = self.place
        return f"{self.mode}/{self.task}/{self.part}/{self.variant}/robot={x:g},{y:g},{angle:g}/{where}"


def trials_of(robot: str, mode: str, tasks: Sequence[str] = ()) -> list[Trial]:
    """The trials of a robot in a mode, in the published order; `tasks` chooses among them. Raises `ValueError` if
    robot, mode or task does not exist, or the mode does not for this robot."""
    if robot not in TASKS:
        raise ValueError(f"got robot {robot!r}, expected one of {', '.join(TASKS)}")
    if mode not in MODES:
        raise ValueError(f"got mode {mode!r}, expected one of {', '.join(MODES)}")
    for task in tasks:
        if task not in TASKS[robot]:
            raise ValueError(f"got task {task!r}, expected one of {', '.join(TASKS[robot])} for {robot}")
    if robot == "widowx" and mode == "variants":
        raise ValueError("got mode 'variants' for widowx, expected another: the published scripts have none for it")
    matching = _google_matching if robot == "google_robot" else _widowx_matching
    turns: Counter[tuple[str, str]] = Counter()
    chosen = []
    for trial in _variant_trials() if mode == "variants" else matching():
        if not tasks or trial.task in tasks:
            chosen.append(replace(trial, mode=mode, turn=turns[trial.task, trial.part]))
            turns[trial.task, trial.part] += 1
    return chosen


def _google_matching() -> Iterator[Trial]:
    for colour in COLOURS:
        look = {"urdf_version": colour}
        name = f"robot {colour or 'as it is'}"
        yield from _pick(name, TABLE, look, overlay="google_coke_can_real_eval_1.png")
        yield from _move(
            "MoveNearGoogleBakedTexInScene-v0", name, TABLE, look, overlay="google_move_near_real_eval_1.png"
        )
        build = {"station_name": "mk_station_recolor", "light_mode": "simple", "disable_bad_material": True, **look}
        for photograph, *place in DRAWER_PLACES:
            yield from _drawers(name, "dummy_drawer", build, place, f"open_drawer_{photograph}.png")


def _widowx_matching() -> Iterator[Trial]:
    table = ("bridge_table_1_v1", "widowx", (0.147, 0.028, 0.0), "bridge_real_eval_1.png")
    sink = ("bridge_table_1_v2", "widowx_sink_camera_setup", (0.127, 0.06, 0.0), "bridge_sink.png")
    for task, (environment, steps) in WIDOWX_TASKS.items():
        scene, robot, place, overlay = sink if task == "put_eggplant_in_basket" else table
        for episode in range(24):
            named = ("matching", task, "", "robot as it is", environment, scene, robot, place)
            yield Trial(*named, {"episode_id": episode}, steps, overlay=overlay)


def _variant_trials() -> Iterator[Trial]:
    """Variant aggregation; camera poses last and not counted."""
    moved = "MoveNearGoogleInScene-v0"
    crowded = "GraspSingleOpenedCokeCanDistractorInScene-v0"
    scenes = {"base": TABLE}
    scenes |= {f"background {n}": f"{TABLE}_alt_background{s}" for n, s in ((1, ""), (2, "_2"))}
    scenes |= {f"table texture {n}": f"Baked_sc1_staging_objaverse_cabinet{n}_h870" for n in (1, 2)}
    for name, scene in scenes.items():
        yield from _pick(name, scene, {})
        yield from _move(moved, name, scene, {})
    for light in ("brighter", "darker"):
        yield from _pick(f"{light} light", TABLE, {f"slightly_{light}_lighting": True})
        yield from _move(moved, f"{light} light", TABLE, {f"slightly_{light}_lighting": True})
    yield from _pick("4 distractors", TABLE, {}, environment=crowded)
    yield from _pick("6 distractors", TABLE, {"distractor_config": "more"}, environment=crowded)
    yield from _move(moved, "no distractor", TABLE, {"no_distractor": True})
    yield from _drawer_variants()
    for number, suffix in ((1, ""), (2, "2")):
        name = f"camera {number}"
        alternative = PICK_CAN.replace("InScene", f"AltGoogleCamera{suffix}InScene")
        yield from _pick(name, TABLE, {}, environment=alternative, counted=False)
        alternative = moved.replace("GoogleInScene", f"AltGoogleCamera{suffix}InScene")
        yield from _move(alternative, name, TABLE, {}, counted=False)


def _drawer_variants() -> Iterator[Trial]:
    apartment = "frl_apartment_stage_simple"
    looks = {
        "base": (apartment, {}),
        "background 1": ("modern_bedroom_no_roof", {}),
        "background 2": ("modern_office_no_roof", {}),
        "brighter light": (apartment, {"light_mode": "brighter"}),
        "darker light": (apartment, {"light_mode": "darker"}),
        "cabinet 2": (apartment, {"station_name": "mk_station2"}),
        "cabinet 3": (apartment, {"station_name": "mk_station3"}),
    }
    for name, (scene, build) in looks.items():
        for x in (0.65, 0.75, 0.85):
            for y in (-0.2, 0.0, 0.2):
                yield from _drawers(name, scene, build, (x, y, 0.0), None)


def _google_trial(task: str, environment: str, steps: int, place: Sequence[float], **others: Any) -> Trial:
    x, y, angle = place
    robot = "google_robot_static"
    named = {"mode": "", "task": task, "environment": environment, "steps": steps, "robot": robot, **others}
    return Trial(place=(x, y, angle), **named)


def _pick(
    variant: str, scene: str, build: dict[str, Any], environment: str = PICK_CAN, **others: Any
) -> Iterator[Trial]:
    for pose, option in CAN_POSES.items():
        shown = {"part": pose, "variant": variant, "scene": scene, "build": {option: True, **build}, **others}
        for x in range(5):
            for y in range(5):
                start = {"init_xy": (round(-0.35 + x * 0.23 / 4, 6), round(-0.02 + y * 0.44 / 4, 6))}
                yield _google_trial("pick_coke_can", environment, 80, (0.35, 0.20, 0.0), start=start, **shown)


def _move(environment: str, variant: str, scene: str, build: dict[str, Any], **others: Any) -> Iterator[Trial]:
    shown = {"part": "", "variant": variant, "scene": scene, "build": build, **others}
    for episode in range(60):
        start = {"episode_id": episode}
        yield _google_trial("move_near", environment, 80, (0.35, 0.21, -0.09), start=start, **shown)


def _drawers(
    variant: str, scene: str, build: dict[str, Any], place: Sequence[float], overlay: str | None
) -> Iterator[Trial]:
    shown = {"variant": variant, "scene": scene, "build": {"shader_dir": "rt", **build}, "overlay": overlay}
    for verb in ("open", "close"):
        for drawer in DRAWERS:
            environment = f"{verb.title()}{drawer.title()}DrawerCustomInScene-v0"
            start = {"init_xy": (0.0, 0.0)}
            yield _google_trial(f"{verb}_drawer", environment, 113, place, part=drawer, start=start, **shown)


def first_trials(trials: Sequence[Trial], episodes: int | None) -> list[Trial]:
    if episodes is not None and episodes < 1:
        raise ValueError(f"got {episodes} episodes, expected at least 1")
    groups: dict[tuple[str, ...], list[str]] = {}
    for trial in trials:
        groups.setdefault((trial.mode, trial.task, trial.part, trial.variant), []).append(trial.name)
    chosen = {name for names in groups.values() for name in names[:episodes]}
    return [trial for trial in trials if trial.name in chosen]


def scored_trial(entry: dict[str, Any]) -> Scored:
    """What a share is made of, of a line of `trials.jsonl`."""
    _, task, part, variant, robot, start = entry["trial"].split("/")
    return Scored(f"{task}/{part}/{robot}/{start}", f"{task}/{part}/{variant}", float(entry["outcome"] == "success"))


def score_task(mode: str, task: str, outcomes: Sequence[dict[str, Any]], expected: int) -> dict[str, Any]:
    """The score of a task in a mode, of the lines of `trials.jsonl`; `expected` are the trials of the full protocol.

    Returns:
        `value`: the mean over parts and variants of the share of successes within each, `None` without a judged trial,
        and its 95 % `interval`, which knows that trials of one layout are not independent; `successes` of `n` judged
        trials, of which `malformed` are failures without an action; `crashed`: trials the simulator did not finish,
        twice; `variants`: share of successes and number of judged trials of each, the ones not counted included.
    """
    judged = [entry for entry in outcomes if entry["outcome"] != "crashed"]
    counted = [entry for entry in judged if entry["counted"]]
    ends = Counter(entry["outcome"] for entry in outcomes if entry["counted"])
    variants: dict[str, list[bool]] = {}
    for entry in judged:
        variants.setdefault(entry["variant"], []).append(entry["outcome"] == "success")
    found = clustered_share([scored_trial(entry) for entry in counted]) if counted else None
    return {
        "metric": "success rate",
        "value": round(found.share, 6) if found else None,
        "mode": mode,
        "task": task,
        "successes": ends["success"],
        "n": len(counted),
        "interval": (round(found.interval[0], 4), round(found.interval[1], 4)) if found else None,
        "malformed": ends["malformed"],
        "crashed": ends["crashed"],
        "expected": expected,
        "variants": {name: (round(sum(seen) / len(seen), 4), len(seen)) for name, seen in variants.items()},
    }
