"""The training step's benchmark: both ways compute the same loss and gradients, and both are measured."""

import pytest
import torch
from printed_tables import printed

from gen_vla.evaluation.benchmarks.random_models import build_random
from gen_vla.evaluation.benchmarks.training_step import ANSWER, LOSSES, run_benchmark, steps_table, training_inputs


def test_both_ways_have_the_same_loss_and_gradients(tiny_sizes):
    model = build_random("tiny", "cpu", torch.float32).train()
    inputs = training_inputs(model, 3)
    assert int((inputs["labels"] != -100).sum()) == 3 * ANSWER
    gradients = []
    for loss in LOSSES.values():
        model.zero_grad()
        loss(model, inputs).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-6, rtol=1e-4)


def test_every_way_is_measured_in_a_process_of_its_own():
    results = run_benchmark(["mini"], [2], repeats=1)
    everywhere, where_needed = results["steps"]
    assert everywhere["loss"] == pytest.approx(where_needed["loss"], abs=1e-4)
    assert where_needed["peak_gb_above_model"] < everywhere["peak_gb_above_model"]
    assert "supervised columns" in printed(steps_table(results))
