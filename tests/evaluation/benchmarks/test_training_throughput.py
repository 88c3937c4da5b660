"""The benchmark of whole steps: both trainers take the same steps on rows of the same length."""

import pytest
from printed_tables import printed

from gen_vla.evaluation.benchmarks.training_throughput import PARTS, TRAINERS, measure, throughput_table


def test_both_trainers_are_measured_on_rows_of_the_same_length(tiny_sizes):
    ours, plain = (measure("tiny", 2, 2, trainer) for trainer in TRAINERS)
    assert ours["n"] == plain["n"] == 2
    assert ours["tokens_per_row"] == pytest.approx(plain["tokens_per_row"], abs=3)  # TRL puts no EOS behind a row
    for run in (ours, plain):
        assert run["rows_per_second"] == pytest.approx(2 / run["seconds"]["step"], rel=0.1)
        assert sum(run["seconds"][part] for part in PARTS) == pytest.approx(run["seconds"]["step"], rel=0.5)
    shown = printed(throughput_table({"machine": {"device": "here"}, "runs": [ours, plain]}))
    assert "x TRL" in shown
