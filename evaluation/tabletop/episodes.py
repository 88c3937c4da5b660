"""Which tabletop episodes a run consists of, and the file that remembers the finished ones.

    matching       the look of the demonstrations
    variants       every variant of every family, in no data (`tabletop/variants.py`)
    seen_variants  the same of what vision-language data has, and the demonstrations have not
    masked         everything black but robot, cabinet and objects
    paraphrase     held-out wordings, one per layout in turn

All modes and variants show the same layouts. A log holds one JSON object per line: the settings, then an episode each,
written as it ends. Running again skips what is there; other settings are refused.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, MAX_STEPS, TASKS, Task, goal_of, sample_layout
from gen_vla.evaluation.simulation.looks import HOME
from gen_vla.evaluation.simulation.rollouts import Ending, EpisodeJob, Outcome
from gen_vla.evaluation.tabletop.variants import SEEN_VARIANTS, VARIANTS
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases
from gen_vla.training.provenance.private_paths import publishable


Paraphrase = Callable[[str], list[str]]  # an instruction -> other wordings
Mode = Literal["matching", "variants", "seen_variants", "masked", "paraphrase"]
MODES: tuple[Mode, ...] = get_args(Mode)
LOOKS = {"variants": VARIANTS, "seen_variants": SEEN_VARIANTS}
EpisodeKey = tuple[Mode, str, str, int, str]  # mode, variant, task, seed, instruction: one episode and no other


@dataclass(frozen=True)
class TabletopJob(EpisodeJob):
    """One episode to run."""

    mode: Mode
    variant: str

    @property
    def key(self) -> EpisodeKey:
        return self.mode, self.variant, self.task, self.seed, self.instruction


@dataclass(frozen=True)
class TabletopEpisode:
    """One finished episode; `steps` are policy steps, `detail` says what was malformed or how it crashed.

    A crashed episode says nothing about the policy: the simulator failed twice.
    """

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

    @property
    def key(self) -> EpisodeKey:
        return self.mode, self.variant, self.task, self.seed, self.instruction


def plan_jobs(
    modes: Sequence[Mode] = MODES,
    tasks: Sequence[Task] = TASKS,
    episodes: int = 50,
    paraphrase: Paraphrase = held_out_paraphrases,
) -> list[TabletopJob]:
    """Every episode of a run: `episodes` layouts for each mode, variant and task.

    Raises:
        ValueError: if a mode or task is unknown, or there is nothing to run.
    """
    for what, names, known in (("modes", modes, MODES), ("tasks", tasks, TASKS)):
        if not names or set(names) - set(known):
            raise ValueError(f"got {what} {list(names)}, expected at least one, each of {', '.join(known)}")
    if not 1 <= episodes <= len(EVALUATION_SEEDS):
        raise ValueError(f"got episodes {episodes}, expected 1..{len(EVALUATION_SEEDS)}")
    jobs = []
    for mode in modes:
        for variant in LOOKS.get(mode, (HOME,)):
            for task in tasks:
                for number, seed in enumerate(EVALUATION_SEEDS[:episodes]):
                    text = _instruction(task, seed, number, paraphrase if mode == "paraphrase" else None)
                    start = (task, seed, variant, mode == "masked")
                    jobs.append(TabletopJob(task, seed, text, MAX_STEPS[task], start, mode, variant.key))
    return jobs


def _instruction(task: Task, seed: int, number: int, paraphrase: Paraphrase | None) -> str:
    canonical = goal_of(task, seed).instruction(sample_layout(seed))
    if paraphrase is None:
        return canonical
    wordings = paraphrase(canonical)
    if not wordings:
        raise ValueError(f"got no paraphrase of {canonical!r}, expected at least one")
    return wordings[number % len(wordings)]


class EpisodeLog:
    """The finished episodes of one policy on disk, or only in memory without a path.

    Raises:
        ValueError: if the file was written under other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]):
        self._path = path
        self.episodes: list[TabletopEpisode] = []
        if path is None:
            return
        if path.exists() and path.stat().st_size:
            self._load(path, settings)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"settings": publishable(settings)}) + "\n", encoding="utf-8")

    def _load(self, path: Path, settings: dict[str, Any]) -> None:
        whole = path.read_bytes()
        finished = whole[: whole.rfind(b"\n") + 1]  # an interruption may have cut the last line
        header, *lines = finished.decode("utf-8").split("\n")[:-1] or ["{}"]
        before, settings = (publishable(entry) for entry in (json.loads(header).get("settings") or {}, settings))
        if before != json.loads(json.dumps(settings)):
            keys = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
            changed = "; ".join(f"{key} {before.get(key)!r}, now {settings.get(key)!r}" for key in keys)
            raise ValueError(
                f"got results in {path} of other settings ({changed}), expected the same to continue them; "
                "choose another output folder or delete that file"
            )
        if len(finished) < len(whole):
            path.write_bytes(finished)
        self.episodes = [TabletopEpisode(**json.loads(line)) for line in lines]

    def add(self, episode: TabletopEpisode) -> None:
        """Remembers an episode; on disk before this returns."""
        self.episodes.append(episode)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(episode)) + "\n")

    def finish(self, job: TabletopJob, ending: Ending) -> None:
        """Remembers how a job ended."""
        layout = sample_layout(job.seed).digest()
        self.add(TabletopEpisode(*job.key, layout, ending.outcome, ending.steps, ending.attempts, ending.detail))

    def missing(self, jobs: Sequence[TabletopJob]) -> list[TabletopJob]:
        """The jobs that no finished episode answers."""
        done = {episode.key for episode in self.episodes}
        return [job for job in jobs if job.key not in done]

    def of(self, jobs: Sequence[TabletopJob]) -> list[TabletopEpisode]:
        """The finished episodes of these jobs, in their order."""
        found = {episode.key: episode for episode in self.episodes}
        return [found[job.key] for job in jobs if job.key in found]
