"""Runs trials of SimplerEnv with one policy; survives crashes and interruptions.

    success    the simulator says so at the last step
    failure    it does not
    malformed  the policy wrote no action: a failure, counted apart
    crashed    the simulator raised, or took the process down, twice: no judgement on the policy

`settings.json` in a folder says what is measured, `trials*.jsonl` gets a line when a trial begins and one at its end.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gen_vla.evaluation.resumable import append_line, read_lines
from gen_vla.evaluation.simpler.environment import camera_image, reset_options, robot_family
from gen_vla.evaluation.simpler.policy import MalformedActionError, Predict, SimplerPolicy
from gen_vla.evaluation.simpler.trials import Trial
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases
from gen_vla.training.provenance.private_paths import publishable


ATTEMPTS = 2
Make = Callable[[Trial], Any]  # builds the environment of a trial, not yet reset
Begin = Callable[[Trial, str, Any], Predict]  # an episode of a policy: trial, instruction and simulator


class SimulatorCrashError(RuntimeError):
    """The simulator raised; the message says what."""


@dataclass(frozen=True)
class Outcome:
    """A finished trial, one line of `trials.jsonl`: its attributes, how it ended after how many actions, the
    instruction given, the simulator's seed where it tells, `info["episode_stats"]` of the last step, and what went
    wrong."""

    trial: str
    mode: str
    task: str
    part: str
    variant: str
    counted: bool
    outcome: str
    steps: int = 0
    instruction: str = ""
    seed: int | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


def outcome_of(trial: Any, outcome: str, **found: Any) -> Outcome:
    """How a trial ended, of SimplerEnv or of another suite whose trials have the same attributes."""
    return Outcome(
        trial.name, trial.mode, trial.task, trial.part, trial.variant, trial.counted, outcome=outcome, **found
    )


def run_trial(begin: Begin, trial: Trial, make: Make, action_ensemble: bool = False) -> Outcome:
    return attempts(trial, lambda: _attempt(begin, trial, make, action_ensemble))


def attempts(trial: Any, attempt: Callable[[], Outcome]) -> Outcome:
    error = ""
    for _ in range(ATTEMPTS):
        try:
            return attempt()
        except SimulatorCrashError as crash:
            error = str(crash)
    return outcome_of(trial, "crashed", error=error)


def _attempt(begin: Begin, trial: Trial, make: Make, action_ensemble: bool) -> Outcome:
    began = time.perf_counter()
    environment = simulate(make, trial)
    try:
        observation, _ = simulate(environment.reset, options=reset_options(trial))
        simulator = environment.unwrapped
        instruction = simulator.get_language_instruction()
        if trial.mode == "paraphrase":
            wordings = held_out_paraphrases(instruction)
            instruction = wordings[trial.turn % len(wordings)]
        predict = begin(trial, instruction, simulator)
        policy = SimplerPolicy(predict, robot_family(trial.robot), action_ensemble)
        outcome, steps, stats, error, truncated = "failure", 0, {}, None, False
        while not truncated:
            image = camera_image(environment, observation, trial.robot, masked=trial.mode == "masked")
            try:
                action = policy.step(image)
            except MalformedActionError as malformed:
                outcome, error = "malformed", str(malformed)
                break
            observation, _, done, truncated, info = simulate(environment.step, action)
            outcome = "success" if done else "failure"  # not the end: the published scripts go on to the last step
            steps, stats = steps + 1, info.get("episode_stats", {})
        seed = getattr(simulator, "_episode_seed", None)
    finally:
        environment.close()
    stats = {key: value.item() if isinstance(value, np.generic) else value for key, value in stats.items()}
    found = {"seed": None if seed is None else int(seed), "seconds": round(time.perf_counter() - began, 2)}
    return outcome_of(trial, outcome, steps=steps, instruction=instruction, stats=stats, error=error, **found)


def simulate(
    call: Callable[..., Any], *arguments: Any, passing: type[Exception] = FileNotFoundError, **named: Any
) -> Any:
    """A call of the simulator, whose errors are its own; `passing` is the installation's and stops everything."""
    try:
        return call(*arguments, **named)
    except passing:
        raise
    except Exception as error:
        raise SimulatorCrashError(f"{type(error).__name__}: {error}") from error


class TrialLog:
    """What has been run so far in a folder, as which of how many processes; going on with other settings is
    refused."""

    def __init__(self, folder: Path, settings: dict[str, Any], shard: tuple[int, int] = (0, 1)):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "settings.json"
        settings = publishable(json.loads(json.dumps(settings)))
        if path.is_file():
            before = publishable(json.loads(path.read_text(encoding="utf-8")))
            other = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
            if other:
                raise ValueError(
                    f"{path}: got other settings than those the trials there were run with ({', '.join(other)}), "
                    "expected the same; name another --output folder"
                )
        else:
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        index, count = shard
        self.folder = folder
        self.path = folder / ("trials.jsonl" if count == 1 else f"trials-{index}-of-{count}.jsonl")
        self.read()

    def read(self) -> None:
        """What all processes have written."""
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.begun: Counter[str] = Counter()
        for file in sorted(self.folder.glob("trials*.jsonl")):
            for entry in read_lines(file):
                if "begun" in entry:
                    self.begun[entry["begun"]] += 1
                elif "left" in entry:
                    self.begun[entry["left"]] -= 1
                else:
                    self.outcomes[entry["trial"]] = entry

    def begin(self, trial: Trial) -> None:
        self.write({"begun": trial.name})

    def end(self, outcome: Outcome) -> None:
        self.outcomes[outcome.trial] = asdict(outcome)
        self.write(asdict(outcome))

    def write(self, entry: dict[str, Any]) -> None:
        append_line(self.path, entry)


def run_left(trials: Sequence[Any], log: TrialLog, run: Callable[[Any], Outcome]) -> None:
    """Runs what the log does not have yet; a trial that took the process down `ATTEMPTS` times is noted as crashed."""
    left = [trial for trial in trials if trial.name not in log.outcomes]
    for trial in tqdm(left, unit="trial"):
        if log.begun[trial.name] >= ATTEMPTS:
            log.end(outcome_of(trial, "crashed", error=f"the process ended {ATTEMPTS} times in the middle of it"))
            continue
        log.begin(trial)
        try:
            log.end(run(trial))
        except BaseException:
            log.write({"left": trial.name})  # this process stops by itself, which is no crash
            raise
