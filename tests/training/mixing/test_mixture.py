"""The mixture: every batch half and half, in an order that only the seed decides, and rows spelled exactly."""

from collections import Counter
from itertools import islice
from typing import Any

import pytest
from tiny_models import tiny_processor
from tiny_runs import noise

from gen_vla.training.mixing.mixture import HalfAndHalfSampler, MixedTables, Turns, weighted_turns
from gen_vla.training.mixing.prepared_rows import RowPreparer
from gen_vla.training.mixing.skipped_rows import TooManyBadRows


# ---- the order
def order_of(*sizes: Any, **settings: Any) -> list[int]:
    """Which row stands at each place; the places themselves are counted."""
    places, order = zip(*HalfAndHalfSampler(*sizes, **settings))
    assert places == tuple(range(len(order)))
    return list(order)


def test_the_order_of_a_small_run() -> None:
    order = order_of([3], [2], length=12, seed=0)
    assert all(index < 3 for index in order[::2])  # robot rows come first in the concatenation
    assert all(index in (3, 4) for index in order[1::2])
    assert [sorted(order[0:6:2]), sorted(order[6:12:2])] == [[0, 1, 2]] * 2  # every row once before any comes again
    assert [sorted(order[k : k + 4 : 2]) for k in (1, 5, 9)] == [[3, 4]] * 3
    assert order == [2, 3, 0, 4, 1, 4, 2, 3, 1, 4, 0, 3]


@pytest.mark.parametrize(("robot", "vision"), [([5], [3]), ([1], [7]), ([4, 2], [3, 3, 5]), ([2, 9, 1], [1])])
@pytest.mark.parametrize("batch", [2, 4, 6])
def test_every_batch_is_half_and_half(robot: list[int], vision: list[int], batch: int) -> None:
    order = order_of(robot, vision, length=batch * 30, seed=3)
    assert len(order) == len(HalfAndHalfSampler(robot, vision, length=batch * 30, seed=3)) == batch * 30
    for start in range(0, len(order), batch):
        assert sum(index < sum(robot) for index in order[start : start + batch]) == batch // 2
    assert set(order) == set(range(sum(robot) + sum(vision)))


def test_the_sets_of_a_kind_take_turns() -> None:
    order = order_of([2], [3, 4, 5], length=30, seed=1)
    which = [sum(index >= start for start in (2, 5, 9)) for index in order]
    assert which == [0, 1, 0, 2, 0, 3] * 5
    two_robots = order_of([2, 2], [4], length=16, seed=1)
    assert [index // 2 for index in two_robots[::2]] == [0, 1] * 4


def test_a_used_up_set_comes_again_in_another_order() -> None:
    order = order_of([50], [10], length=100, seed=0)
    rounds = [order[1 + 20 * k : 1 + 20 * (k + 1) : 2] for k in range(5)]
    assert all(sorted(one) == list(range(50, 60)) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 5
    assert Counter(order[::2]) == Counter(range(50))


def test_the_seed_decides_the_order_and_a_longer_run_begins_alike() -> None:
    order = order_of([6], [5], length=40, seed=7)
    sampler = HalfAndHalfSampler([6], [5], length=40, seed=7)
    assert list(sampler) == list(sampler)  # asking twice changes nothing, so that a resumed run can skip
    assert order_of([6], [5], length=40, seed=8) != order
    assert order_of([6], [5], length=90, seed=7)[:40] == order


@pytest.mark.parametrize(("robot", "vision"), [([4], []), ([], [4]), ([], [1, 3])])
def test_one_kind_alone_is_not_mixed(robot: list[int], vision: list[int]) -> None:
    assert set(order_of(robot, vision, length=12, seed=0)) == {0, 1, 2, 3}


@pytest.mark.parametrize(("robot", "vision"), [([], []), ([0], [3]), ([3], [2, 0])])
def test_an_empty_set_raises(robot: list[int], vision: list[int]) -> None:
    with pytest.raises(ValueError, match=r"got data sets of \[.*\] rows, expected at least one row in each"):
        HalfAndHalfSampler(robot, vision, length=4, seed=0)


# ---- rows of similar length
LENGTHS = [5, 900, 40, 300, 7, 1200, 45, 310] * 20


@pytest.mark.parametrize("step", [4, 16])
def test_grouped_rows_of_a_step_are_of_similar_length(step: int) -> None:
    settings: dict[str, Any] = {"length": 2 * 512, "seed": 3}
    plain, order = (
        order_of([9], [60, 100], **settings, **more) for more in ({}, {"row_lengths": LENGTHS, "step": step})
    )
    assert order[::2] == plain[::2], "robot rows stay where they are"
    for window in (slice(0, 512), slice(512, 1024)):
        assert Counter(order[window]) == Counter(plain[window]), "every row comes as often"

    def padding(rows: list[int]) -> float:
        steps = [[LENGTHS[row - 9] for row in rows[start + 1 : start + step : 2]] for start in range(0, 1024, step)]
        return 1 - sum(map(sum, steps)) / sum(len(lengths) * max(lengths) for lengths in steps)

    assert padding(order) < 0.05 < 0.3 < padding(plain)
    longest = [max(LENGTHS[row - 9] for row in order[start + 1 : start + step : 2]) for start in range(0, 512, step)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True)), "long and short steps take turns"
    assert order_of([9], [60, 100], length=700, seed=3, row_lengths=LENGTHS, step=step) == order[:700]


# ---- weights
def test_weighted_turns_by_hand() -> None:
    assert list(islice(weighted_turns([2.0, 1.0]), 6)) == [0, 1, 0, 0, 1, 0]
    assert list(islice(weighted_turns([1.0, 1.0, 1.0]), 6)) == [0, 1, 2, 0, 1, 2]
    assert list(islice(weighted_turns([0.3, 0.3]), 4)) == [0, 1, 0, 1]
    assert list(islice(weighted_turns([0.5, 0.25, 0.25]), 8)) == [0, 1, 2, 0] * 2


@pytest.mark.parametrize("weights", [[3.0, 1.0], [0.7, 0.2, 0.1], [5.0, 1.0, 1.0, 2.5], [1 / 3, 2 / 3]])
def test_after_any_number_of_turns_every_set_is_within_one_of_its_share(weights: list[float]) -> None:
    counts = [0] * len(weights)
    for turn, chosen in enumerate(islice(weighted_turns(weights), 500), start=1):
        counts[chosen] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - turn * weight / sum(weights)) < 1


def test_a_weight_next_to_nothing_raises() -> None:
    with pytest.raises(ValueError, match=r"got weights \[1.0, 1e-09\], expected numbers above 0"):
        next(weighted_turns([1.0, 1e-9]))


@pytest.mark.parametrize(("share", "batch"), [(0.5, 2), (0.25, 4), (0.75, 8), (0.3, 10), (0.625, 16)])
def test_a_share_is_that_of_every_batch(share: float, batch: int) -> None:
    turns = Turns([2.0, 1.0], [500_000.0, 25_000.0, 7.0], share)
    order = list(islice(turns, 40 * batch))
    for start in range(0, len(order), batch):
        assert sum(number < 2 for number in order[start : start + batch]) == round(batch * share)
    assert turns.shares() == pytest.approx(
        [share * 2 / 3, share / 3, *((1 - share) * rows / 525_007 for rows in (500_000, 25_000, 7))]
    )


def test_weights_move_robot_places_and_leave_the_halves_alone() -> None:
    order = list(islice(Turns([3.0, 1.0], [1.0, 1.0]), 16))
    assert order[::2] == [0, 0, 1, 0] * 2
    assert order[1::2] == [2, 3] * 4
    weighted = order_of([5, 2], [4], length=32, seed=0, turns=Turns([3.0, 1.0], [1.0]))
    which = ["ab"[index >= 5] for index in weighted[::2]]
    assert which == list("aaba") * 4
    assert order_of([5, 2], [4], 32, 0, Turns([2.0, 2.0], [0.5])) == order_of([5, 2], [4], 32, 0)


# ---- rows that cannot be read
def table(answers: list[str], broken: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """A table is whatever has rows by number."""
    encoded = {"bytes": b"not a picture", "path": None}
    return [
        {
            "images": [encoded if number in broken else noise(number)],
            "turns": [{"question": "what?", "answer": answer}],
            "identity": f"set row {number}",
        }
        for number, answer in enumerate(answers)
    ]


def mixed(llama_like: Any, broken: tuple[int, ...], share: float) -> MixedTables:
    tables = {"vision_language/a": table(["zero", "one", "two"], broken), "vision_language/b": table(["three"])}
    return MixedTables(tables, RowPreparer(tiny_processor(llama_like), {}), share)  # type: ignore[arg-type]


def test_the_next_row_of_the_same_set_stands_in_for_an_unreadable_one(llama_like: Any) -> None:
    rows = mixed(llama_like, (1, 2), 0.9)
    got = [rows[place, index] for place, index in enumerate([0, 1, 2, 3])]
    assert [row["completion"] for row in got] == [" zero", " zero", " zero", " three"]
    assert [row["replaced"] for row in got] == [False, True, True, False]
    report = rows.problems["vision_language/a"].report()
    assert (report["seen"], report["skipped"]) == (1, 2)
    assert report["examples"] == [f"set row {number}: picture that does not decode" for number in (1, 2)]
    assert rows.problems["vision_language/b"].report()["skipped"] == 0


def test_too_many_unreadable_rows_stop_the_run(llama_like: Any) -> None:
    rows = mixed(llama_like, (1,), 0.25)
    with pytest.raises(TooManyBadRows, match=r"vision_language/a: got 67 bad rows among 200, expected at most 25"):
        [rows[place, place % 3] for place in range(300)]
    with pytest.raises(TooManyBadRows, match=r"picture that does not decode \(1\)"):
        mixed(llama_like, (0, 1, 2), 0.25)[0, 0]
