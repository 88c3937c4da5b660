"""Bad rows: counts, reasons, and when a share is too large."""

import logging
import os

import pytest

from gen_vla.training.mixing.skipped_rows import NAMED, RowProblems, TooManyBadRows


def test_good_and_bad_rows_are_counted_by_reason():
    problems = RowProblems(limit_share=0.5)
    problems.seen()
    problems.seen(5)
    problems.skip("a.parquet row 3", "no picture")
    problems.skip("a.parquet row 4", "no picture")
    problems.skip("b.tfrecord episode 1", "action is not finite", rows=3)
    counts = {"seen": 6, "skipped": 5, "by_reason": {"action is not finite": 3, "no picture": 2}}
    examples = [*(f"a.parquet row {row}: no picture" for row in (3, 4)), "b.tfrecord episode 1: action is not finite"]
    assert problems.report() == {**counts, "examples": examples}
    problems.finish()


def test_the_share_is_judged_from_the_minimum_on():
    problems = RowProblems(limit_share=0.1, minimum_rows=10, name="bridge_orig")
    problems.seen(7)
    problems.skip("x row 7", "no picture")  # 1 of 8
    problems.seen()
    with pytest.raises(TooManyBadRows, match=r"bridge_orig: got 2 bad rows among 10, expected at most 10.00%.*row 7"):
        problems.skip("x row 9", "no picture")


def test_exactly_the_share_is_tolerated_and_a_small_set_is_judged_at_its_end():
    exact, small = RowProblems(limit_share=0.1, minimum_rows=10), RowProblems(limit_share=0.01, minimum_rows=200)
    for problems in (exact, small):
        problems.finish()  # of no rows at all
        problems.seen(9)
        problems.skip("x row 9", "no picture")
    exact.finish()
    with pytest.raises(TooManyBadRows, match="got 1 bad rows among 10"):
        small.finish()


def test_only_the_first_are_named(caplog):
    problems = RowProblems(limit_share=1.0)
    with caplog.at_level(logging.WARNING):
        for row in range(NAMED + 5):
            problems.skip(f"x row {row}", "no picture")
    assert len(problems.report()["examples"]) == NAMED
    assert len(caplog.records) == NAMED
    assert "x row 0: no picture" in caplog.text
    assert problems.report()["skipped"] == NAMED + 5


def test_news_are_what_was_not_taken_yet():
    problems = RowProblems(limit_share=1.0)
    problems.seen(2)
    problems.skip("x row 2", "no picture")
    expected = {"seen": 2, "skipped": 1, "by_reason": {"no picture": 1}, "examples": ["x row 2: no picture"]}
    assert problems.take() == expected == problems.report()
    problems.seen()
    assert problems.take() == {"seen": 1, "skipped": 0, "by_reason": {}, "examples": []}
    assert problems.report()["seen"] == 3


def test_what_another_process_counted_is_added_and_judged():
    problems, worker = RowProblems(limit_share=0.1, minimum_rows=10), RowProblems(limit_share=1.0)
    worker.seen(7)
    problems.receive(worker.take())
    worker.skip("x row 7", "no picture")
    problems.receive(worker.take())
    assert problems.report() == worker.report()
    assert problems.take()["seen"] == 0  # they are no news of its own
    worker.skip("x row 8", "too long", 2)
    with pytest.raises(TooManyBadRows, match=r"got 3 bad rows among 10, expected .*too long \(2\); no picture \(1\)"):
        problems.receive(worker.take())


def test_a_forked_copy_has_only_its_own_news():
    problems = RowProblems(limit_share=1.0)
    problems.seen(5)
    reader, writer = os.pipe()
    if os.fork() == 0:  # the copy of a loader's worker
        problems.seen(2)
        os.write(writer, str(problems.take()["seen"]).encode())
        os._exit(0)
    os.wait()
    assert os.read(reader, 9) == b"2"
    assert problems.take()["seen"] == 5


def test_rows_that_are_longer_than_the_recipe_takes_are_counted_and_stop_nothing() -> None:
    problems = RowProblems(limit_share=0.0)
    for _ in range(300):
        problems.leave_out()
    problems.seen()
    problems.finish()
    assert problems.report()["longer"] == 300
    other = RowProblems(limit_share=0.0)
    other.receive(problems.take())
    assert other.report() == problems.report()
