"""Counts of bad rows from a loader's worker processes: the same in the log as without workers."""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from test_mixture import mixed
from test_streaming_mixture import mixture
from tiny_runs import read_log, run_tiny, tiny_settings, write_questions
from torch.utils.data import DataLoader

from gen_vla.training.mixing.skipped_rows import COUNTS, TooManyBadRows, collate_with_counts, receive_counts


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": [row["completion"] for row in rows]}


def loaded(rows: Any, count: int, workers: int, **settings: Any) -> dict[str, Any]:
    """Reports of all counters behind some batches, none of which keeps its counts."""
    counting = partial(collate_with_counts, collate=collate)
    loader = DataLoader(rows, batch_size=4, collate_fn=counting, num_workers=workers, **settings)
    for batch in islice(loader, count):
        assert (COUNTS in batch) == (workers > 0)
        receive_counts(rows, batch)
        assert list(batch) == ["rows"]
    return {name: counter.report() for name, counter in rows.counters().items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_table_is_counted_as_without_workers(llama_like: Any, workers: int) -> None:
    order = [(place, place % 4) for place in range(24)]
    plain, counted = (loaded(mixed(llama_like, (1, 2), 1.0), 6, n, sampler=order) for n in (0, workers))
    assert counted == plain
    assert sum(report["skipped"] for report in plain.values()) == 12


def test_a_stream_is_counted_as_without_workers(llama_like: Any) -> None:
    plain, counted = (loaded(mixture(llama_like, broken=(2, 9), max_bad_share=1.0, workers=n), 12, n) for n in (0, 1))
    assert counted == plain
    assert plain["preparing vision_language/a"]["by_reason"] == {"picture that does not decode": 2}
    two = loaded(mixture(llama_like, broken=(2, 9), max_bad_share=1.0, workers=2), 12, 2)
    assert two["preparing vision_language/a"]["skipped"] == 2
    assert sum(report["seen"] + report["skipped"] for name, report in two.items() if "preparing" in name) == 48


def test_bad_rows_of_all_workers_together_pass_the_limit(llama_like: Any) -> None:
    """Each worker sees 100 rows of a set at most, too few to be judged alone."""
    rows = mixture(llama_like, broken=tuple(range(12)), max_bad_share=0.2, workers=2)
    with pytest.raises(TooManyBadRows, match=r"vision_language/a: got \d+ bad rows among 20\d, expected at most 20"):
        loaded(rows, 110, 2)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_log_of_a_run_with_workers_has_the_bad_rows(tmp_path: Path, streaming: bool) -> None:
    logs = []
    for workers in (0, 1):
        work_dir = tmp_path / str(workers)
        write_questions(work_dir / "questions", answer=["0123456789" * 15, "yes", "two", "no"])
        settings = {"data__max_bad_share": 0.5, "data__streaming": streaming, "data__num_workers": workers}
        logs.append(read_log(run_tiny(work_dir, training__steps=3, **settings))["data"])
    assert logs[0]["undecodable"] == logs[1]["undecodable"]
    assert logs[0]["undecodable"]["vision_language/scenes"]["by_reason"].keys() == {"too long"}
    rows = 3 * tiny_settings()["training"]["batch_size"]
    assert sum(r["seen"] + r["skipped"] for r in logs[1]["undecodable"].values()) == rows
