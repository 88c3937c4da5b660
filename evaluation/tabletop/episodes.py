"""Which tabletop episodes a run consists of, and the file that remembers the finished ones.

    matching          the look of the demonstrations
    variants          every variant of every family, in no data (`tabletop/variants.py`)
    seen_variants     the same of what vision-language data has, and the demonstrations have not
    masked            everything black but robot, cabinet and objects
    paraphrase        held-out wordings, one per layout in turn
    new_objects       that vision-language data has, and the demonstrations left out (`record ... --familiar`)
    familiar_objects  things that the demonstrations did not leave out, to compare

All modes and variants but the last two show the same layouts. A log has a line of settings, then one per finished
episode.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from gen_vla.evaluation.resumable import append_line, read_lines
from gen_vla.evaluation.simulation.layouts import (
    EVALUATION_SEEDS,
    MAX_STEPS,
    NEW_WORDS,
    TASKS,
    Task,
    goal_of,
    sample_layout,
)
from gen_vla.evaluation.simulation.looks import HOME
from gen_vla.evaluation.simulation.rollouts import Ending, EpisodeJob, Outcome
from gen_vla.evaluation.tabletop.variants import PER_FAMILY, SEEN_VARIANTS, VARIANTS
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases
from gen_vla.training.provenance.private_paths import publishable


Mode = Literal["matching", "variants", "seen_variants", "masked", "paraphrase", "new_objects", "familiar_objects"]
MODES: tuple[Mode, ...] = get_args(Mode)
OBJECT_MODES: tuple[Mode, ...] = ("new_objects", "familiar_objects")  # of models that were not shown the new ones
DEFAULT_MODES: tuple[Mode, ...] = tuple(mode for mode in MODES if mode not in OBJECT_MODES)
CONTROLLED: tuple[Mode, ...] = ("matching", *OBJECT_MODES)  # where a model's controls run, too
LOOKS = {"variants": VARIANTS, "seen_variants": SEEN_VARIANTS}
EpisodeKey = tuple[Mode, str, str, int, str]  # mode, variant, task, seed, instruction: one episode and no other


@dataclass(frozen=True)
class TabletopJob(EpisodeJob):
    mode: Mode
    variant: str


@dataclass(frozen=True)
class TabletopEpisode:
    """One finished episode; `steps` are policy steps, `detail` says what was malformed or how it crashed."""

    mode: Mode
    variant: str
    task: str
    seed: int
    instruction: str
    layout: str
    outcome: Outcome
    steps: int
    attempts: int
    detail: str | None = None


def key_of(episode: TabletopJob | TabletopEpisode) -> EpisodeKey:
    return episode.mode, episode.variant, episode.task, episode.seed, episode.instruction


def plan_jobs(
    modes: Sequence[Mode] = DEFAULT_MODES,
    tasks: Sequence[Task] = TASKS,
    episodes: int = 50,
    variants: int = PER_FAMILY,
    seeds: Sequence[int] = EVALUATION_SEEDS,
) -> list[TabletopJob]:
    """Every episode of a run: the first `episodes` layouts of `seeds` for each mode, variant and task (where
    objects are new or familiar, of layouts with such alone), the first `variants` of each family; raises `ValueError`
    where a mode or task is unknown, or there is nothing to run."""
    for what, names, known in (("modes", modes, MODES), ("tasks", tasks, TASKS)):
        if not names or set(names) - set(known):
            raise ValueError(f"got {what} {list(names)}, expected at least one, each of {', '.join(known)}")
    if not 1 <= episodes <= len(seeds):
        raise ValueError(f"got episodes {episodes}, expected 1..{len(seeds)}")
    jobs = []
    for mode in modes:
        chosen = list(islice((seed for seed in seeds if shows(mode, seed)), episodes))
        for variant in [look for n, look in enumerate(LOOKS.get(mode, (HOME,))) if n % PER_FAMILY < variants]:
            for task in tasks:
                for number, seed in enumerate(chosen):
                    text = goal_of(task, seed).instruction(sample_layout(seed))
                    if mode == "paraphrase":
                        wordings = held_out_paraphrases(text)
                        text = wordings[number % len(wordings)]
                    start = (task, seed, variant, mode == "masked")
                    jobs.append(TabletopJob(task, seed, text, MAX_STEPS[task], start, mode, variant.key))
    return jobs


def shows(mode: Mode, seed: int) -> bool:
    """Whether the layout of a seed has the objects of a mode."""
    if mode not in OBJECT_MODES:
        return True
    words = sample_layout(seed).words
    return words <= NEW_WORDS if mode == "new_objects" else not words & NEW_WORDS


class EpisodeLog:
    """The finished episodes of one policy on disk, or only in memory without a path; raises `ValueError` if the file
    was written under other settings."""

    def __init__(self, path: Path | None, settings: dict[str, Any]):
        self._path = path
        self.episodes: list[TabletopEpisode] = []
        if path is None:
            return
        settings = publishable(json.loads(json.dumps(settings)))
        lines = list(read_lines(path))
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            append_line(path, {"settings": settings})
            return
        if (before := publishable(lines[0].get("settings") or {})) != settings:
            keys = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
            changed = "; ".join(f"{key} {before.get(key)!r}, now {settings.get(key)!r}" for key in keys)
            raise ValueError(
                f"got results in {path} of other settings ({changed}), expected the same to continue them; "
                "choose another output folder or delete that file"
            )
        self.episodes = [TabletopEpisode(**entry) for entry in lines[1:]]

    def finish(self, job: TabletopJob, ending: Ending) -> None:
        """Remembers how a job ended; on disk before this returns."""
        self.episodes.append(TabletopEpisode(*key_of(job), sample_layout(job.seed).digest(), *ending))
        if self._path is not None:
            append_line(self._path, asdict(self.episodes[-1]))

    def missing(self, jobs: Sequence[TabletopJob]) -> list[TabletopJob]:
        done = {key_of(episode) for episode in self.episodes}
        return [job for job in jobs if key_of(job) not in done]

    def of(self, jobs: Sequence[TabletopJob]) -> list[TabletopEpisode]:
        found = {key_of(episode): episode for episode in self.episodes}
        return [found[key_of(job)] for job in jobs if key_of(job) in found]
