"""Running tabletop episodes: logs, crashes, malformed actions, batches, processes."""

from functools import partial

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest
from dying_environment import DyingEnv

from gen_vla.evaluation.policies.malformed_actions import actions_or_none
from gen_vla.evaluation.policies.rollout import CONTROLS
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, TASKS
from gen_vla.evaluation.simulation.looks import HOME
from gen_vla.evaluation.simulation.rollouts import run_episodes
from gen_vla.evaluation.simulation.simulators import Crash, Move, Reply, Simulators, Start
from gen_vla.evaluation.tabletop.episodes import DEFAULT_MODES, EpisodeLog, key_of, plan_jobs
from gen_vla.evaluation.tabletop.variants import SEEN_VARIANTS, VARIANTS
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases


SEED = EVALUATION_SEEDS.start
PICKS = plan_jobs(("matching",), ("pick_object",), 4)


class UnstableEnv(TabletopEnv):
    """Its simulation breaks down in the layout of SEED + 1, and only in the first attempt in that of SEED + 2."""

    broken: list[int] = []  # noqa: RUF012  # what broke so far, over all environments of a process

    def step(self, action: np.ndarray) -> bool:
        breaks = self.seed == SEED + 1 or (self.seed == SEED + 2 and self.seed not in self.broken)
        if breaks:
            self.broken.append(self.seed)
            raise FloatingPointError("the simulation diverged")
        return super().step(action)


def run(policy, jobs=PICKS, log=None, environment=TabletopEnv, workers=1, batch_size=3) -> EpisodeLog:
    log = log or EpisodeLog(None, {})
    with Simulators(workers, partial(environment, 64)) as simulators:
        run_episodes(policy, log.missing(jobs), simulators, log.finish, batch_size)
    return log


def outcomes(log: EpisodeLog) -> dict[int, str]:
    return {e.seed - SEED: e.outcome for e in sorted(log.episodes, key=lambda e: e.seed)}


def test_a_plan_holds_every_mode_variant_task_and_layout_once():
    jobs = plan_jobs(DEFAULT_MODES, TASKS, 2)
    assert len(jobs) == len({key_of(job) for job in jobs}) == (3 + len(VARIANTS) + len(SEEN_VARIANTS)) * 4 * 2
    assert {job.seed for job in jobs} == {SEED, SEED + 1}
    matching = {(j.task, j.seed): j.instruction for j in jobs if j.mode == "matching"}
    for job in jobs:
        assert (job.instruction == matching[job.task, job.seed]) is (job.mode != "paraphrase")


def test_paraphrases_take_turns():
    wordings = held_out_paraphrases("open the drawer")
    jobs = plan_jobs(("paraphrase",), ("open_drawer",), len(wordings) + 1)
    assert [job.instruction for job in jobs] == [*wordings, wordings[0]]


def test_the_batch_size_changes_nothing():
    first, second = run(CONTROLS["expert"], batch_size=1), run(CONTROLS["expert"], batch_size=4)
    assert outcomes(first) == outcomes(second) == dict.fromkeys(range(4), "success")
    assert {e.seed: e.steps for e in first.episodes} == {e.seed: e.steps for e in second.episodes}


def test_a_policy_that_does_nothing_fails_at_the_limit():
    log = run(CONTROLS["zero"], PICKS[:1])
    assert [(e.outcome, e.steps, e.attempts, e.detail) for e in log.episodes] == [("failure", 40, 1, None)]


def test_malformed_and_missing_actions_end_their_episode_and_no_other():
    def careless(images, instructions, moments):
        actions: list[np.ndarray | None] = [moment.expert for moment in moments]
        for place, moment in enumerate(moments):
            if moment.step == 2 and moment.seed == SEED:
                actions[place] = None
            if moment.step == 1 and moment.seed == SEED + 1:
                actions[place] = np.full(7, np.nan)
            if moment.seed == SEED + 2:
                actions[place] = np.zeros(4)
        return actions

    log = run(careless)
    assert outcomes(log) == {0: "malformed", 1: "malformed", 2: "malformed", 3: "success"}
    details = {e.seed - SEED: e.detail or "" for e in log.episodes}
    assert details[0] == "the policy gave no action"
    assert "non-finite" in details[1]
    assert "shape (4,), expected (7,)" in details[2]


def test_a_crash_is_tried_once_more_and_then_reported_as_such():
    UnstableEnv.broken = []
    log = run(CONTROLS["expert"], environment=UnstableEnv)
    assert outcomes(log) == {0: "success", 1: "crashed", 2: "success", 3: "success"}
    assert {e.seed - SEED: e.attempts for e in log.episodes} == {0: 1, 1: 2, 2: 2, 3: 1}
    assert next(e.detail for e in log.episodes if e.outcome == "crashed") == (
        "FloatingPointError: the simulation diverged"
    )


def test_a_process_that_dies_is_replaced_and_only_its_own_episode_is_lost():
    log = run(CONTROLS["expert"], environment=DyingEnv, workers=2, batch_size=4)
    assert outcomes(log) == {0: "success", 1: "crashed", 2: "success", 3: "success"}
    assert next(e.detail for e in log.episodes if e.outcome == "crashed") == (
        "the simulator's process ended (exit code 7)"
    )


def test_an_interrupted_run_continues_with_what_is_missing(tmp_path):
    path, settings = tmp_path / "episodes" / "expert.jsonl", {"model": "a", "image_size": 64}
    calls = []

    def interrupted(images, instructions, moments):
        calls.append([m.seed for m in moments])
        if len(calls) == 20:
            raise KeyboardInterrupt
        return CONTROLS["expert"](images, instructions, moments)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, log=EpisodeLog(path, settings), batch_size=2)
    with path.open("a") as file:
        file.write('{"mode": "matching", "vari')  # the interruption cut a line
    log = EpisodeLog(path, settings)
    done = {e.seed for e in log.episodes}
    assert 0 < len(done) < 4
    calls.clear()
    run(lambda *a: calls.append([m.seed for m in a[2]]) or CONTROLS["expert"](*a), log=log)
    assert {seed for call in calls for seed in call} == {SEED + i for i in range(4)} - done
    assert outcomes(EpisodeLog(path, settings)) == dict.fromkeys(range(4), "success")
    assert len(path.read_text().splitlines()) == 6  # the settings, the cut line and four episodes


def test_a_simulator_answers_in_the_order_of_the_requests():
    with Simulators(1, partial(TabletopEnv, 64)) as simulators:
        start = [Start(slot, ("pick_object", SEED + slot, HOME, slot == 1)) for slot in (1, 0)]
        first, second = simulators.ask(start)
        assert isinstance(first, Reply)
        assert isinstance(second, Reply)
        assert (first.image == 0).all(axis=-1).mean() > 0.5  # slot 1 is masked
        assert (second.image == 0).all(axis=-1).mean() < 0.1
        (unknown,) = simulators.ask([Move(5, np.zeros(7))])
        assert isinstance(unknown, Crash)
    with pytest.raises(ValueError, match="got workers 0, expected at least 1"):
        Simulators(0, TabletopEnv)


def test_one_text_that_is_no_action_costs_its_own_observation_only():
    class ActionStringError(ValueError):
        """Named as the one that comes with a model's code."""

    def read(rows):
        if "gibberish" in rows:
            raise ActionStringError("got 'x', expected a sign")
        return np.ones((len(rows), 7), dtype=np.float32)

    actions = actions_or_none(read, ["a", "gibberish", "b"])
    assert [action is None for action in actions] == [False, True, False]


def test_a_policy_of_the_wrong_length_is_a_mistake_in_the_program():
    with pytest.raises(ValueError, match="got 1 actions from the policy, expected 3"):
        run(lambda images, instructions, moments: [np.zeros(7)])
