"""The loss, checked by hand, and real training runs, counted from inside."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import picture, tiny_model, tiny_processor
from tiny_runs import Witness, logged_steps, run_tiny, tiny_recipe
from trl.trainer.utils import add_fused_lm_head

from gen_vla.processors import ActionStringError, ActionStringProcessor, unnormalize_actions
from gen_vla.training.checkpoints import load_model
from gen_vla.training.collator import CoTrainingCollator
from gen_vla.training.mixing.mixture import HalfAndHalfSampler
from gen_vla.training.mixing.prepared_rows import RowPreparer
from gen_vla.training.model_building import action_weights, build_model
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import run_recipe
from gen_vla.training.trainer import CoTrainer, balanced_loss, score_answers, score_fused, step_totals


# ---- the loss
def test_the_three_balances_by_hand() -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [6.0, 2.0, 0.0]])
    weights = torch.tensor([[1.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.5, 1.0, 0.0]])
    is_robot = torch.tensor([True, False, False])
    # weighted sums by row 3.5, 4, 5; weights by row 2, 1, 1.5
    assert float(balanced_loss(losses, weights, is_robot, "token")) == pytest.approx(12.5 / 4.5)
    assert float(balanced_loss(losses, weights, is_robot, "example")) == pytest.approx((1.75 + 4 + 10 / 3) / 3)
    assert float(balanced_loss(losses, weights, is_robot, "source")) == pytest.approx((1.75 + 9 / 2.5) / 2)


@pytest.mark.parametrize("balance", ["token", "example", "source"])
def test_the_parts_of_a_step_add_up_to_its_loss(balance: str) -> None:
    torch.manual_seed(0)
    weights = torch.rand(6, 5) * (torch.rand(6, 5) > 0.3)
    losses, is_robot = torch.rand(6, 5), torch.tensor([True, False] * 3)
    whole = balanced_loss(losses, weights, is_robot, balance)
    parts = [slice(0, 2), slice(2, 6)]
    totals = sum(step_totals(weights[part], is_robot[part]) for part in parts)
    assert isinstance(totals, torch.Tensor)
    sums = [balanced_loss(losses[part], weights[part], is_robot[part], balance, totals) for part in parts]
    assert float(sum(sums)) == pytest.approx(float(whole), rel=1e-6)


def test_source_balance_with_one_kind_is_that_kinds_mean() -> None:
    losses, weights = torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    for robot in (True, False):
        is_robot = torch.tensor([robot, robot])
        assert float(balanced_loss(losses, weights, is_robot, "source")) == pytest.approx(3.0)


def mixed_batch(processor: Any) -> dict[str, torch.Tensor]:
    prompt = "In: What action should the robot take to go?\nOut:\n"
    shared = {"images": [picture(1)], "prompt": prompt, "completion": "+0.50-0.25+0.00", "source": "robot/tiny"}
    words = {"images": [], "prompt": "In: Only words?\nOut:", "completion": " two", "source": "vision_language/x"}
    batch = CoTrainingCollator(processor)([shared, words, {**shared, "completion": "-1.00+0.01+1.00"}])
    return {name: tensor for name, tensor in batch.items() if name not in ("token_weights", "is_robot", "replaced")}


def test_the_plain_scores_are_those_of_trls_fused_head(llama_like: Any, tiny_strings: ActionStringProcessor) -> None:
    batch = mixed_batch(tiny_processor(llama_like, tiny_strings))
    plain, fused = tiny_model(llama_like, tiny_strings), tiny_model(llama_like, tiny_strings)
    add_fused_lm_head(fused, outputs=("log_probs", "is_top1"))
    right_answers = plain(**{k: v for k, v in batch.items() if k != "labels"}).logits.argmax(-1)
    batch["labels"][0, -3:] = right_answers[0, -4:-1]  # some right, some wrong
    log_probs, predicted = score_answers(plain, batch)
    expected = fused(**batch, fused_lm_head=True)
    torch.testing.assert_close(log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    labels = batch["labels"][:, 1:]
    assert torch.equal((predicted == labels) & labels.ne(-100), expected.is_top1.bool())
    on_a_gpu = score_fused(fused, batch)
    torch.testing.assert_close(on_a_gpu[0], log_probs, rtol=1e-5, atol=1e-5)
    assert torch.equal(on_a_gpu[1], predicted)
    top = plain(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1].argmax(-1)
    assert torch.equal(predicted, top.masked_fill(labels == -100, 0))
    assert 3 <= int(expected.is_top1.sum()) < int(batch["labels"].ne(-100).sum())
    assert log_probs[batch["labels"][:, 1:] == -100].eq(0).all()
    for scores, model in ((log_probs, plain), (expected.log_probs, fused)):
        scores.sum().backward()
        assert model.lm_head.weight.grad.abs().sum() > 0
    pairs = zip(plain.named_parameters(), fused.parameters(), strict=True)
    for (name, one), other in pairs:
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)


# ---- a run
@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run of 8 steps: the recipe, its work folder, the model, what a witness saw, and the logged steps."""
    work_dir = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(work_dir, training__logging_steps=1)
    with pytest.MonkeyPatch.context() as patch:
        witness = Witness().watch(patch)
        folder = run_recipe(recipe, work_dir, callbacks=[witness], progress=False)
    return recipe, work_dir, load_model(folder), witness, logged_steps(folder)


def test_every_batch_was_half_robot_and_half_vision_language(run: Any) -> None:
    assert run[3].batches == [[True, False, True, False]] * 8


def test_the_optimizer_knows_nothing_of_the_frozen_tower(run: Any) -> None:
    _, _, model, witness, _ = run
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert witness.optimized == witness.with_state == trained
    assert not [name for name in witness.optimized if ".siglip." in name]
    assert [name for name in witness.optimized if ".dino." in name]


def test_the_run_learned_and_logged_figures_per_source(run: Any) -> None:
    steps = run[4]
    assert [entry["step"] for entry in steps] == list(range(1, 9))
    names = ("loss", "token_accuracy", "exact")
    figures = {f"{kind}/{name}" for kind in ("robot", "vision_language") for name in names}
    for entry in steps:
        assert figures | {"robot/sign_accuracy"} <= set(entry)
        assert "vision_language/sign_accuracy" not in entry
        for name in figures - {"robot/loss", "vision_language/loss"}:
            assert 0.0 <= entry[name] <= 1.0
    assert steps[-1]["robot/loss"] < 0.7 * steps[0]["robot/loss"]
    assert steps[-1]["vision_language/loss"] < steps[0]["vision_language/loss"]


def test_the_figures_of_the_first_step_by_hand(run: Any) -> None:
    """The same rows through the plain model, without sampler, trainer or `score_answers`."""
    recipe, work_dir, _, _, history = run
    model, processor = build_model(recipe, work_dir, open_data(recipe, work_dir))
    tables = open_data(recipe, work_dir).tables
    prepare = RowPreparer(processor, model.config.norm_stats)
    rows = [prepare(table[number], name, 0) for name, table in tables.items() for number in range(len(table))]
    order = [index for _, index in HalfAndHalfSampler([6], [4], 4, recipe.training.seed)]
    collate = CoTrainingCollator(processor, action_weights(recipe, model.config))
    batch = collate([rows[index] for index in order])
    weights, is_robot = batch.pop("token_weights")[:, 1:], batch.pop("is_robot")
    batch.pop("replaced")
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    right = logits.argmax(-1) == labels
    first = history[0]
    for name, kind in (("robot", is_robot), ("vision_language", ~is_robot)):
        kept = (labels != -100) & kind[:, None]
        assert first[f"{name}/loss"] == pytest.approx(float(losses[kept].mean()), rel=1e-4)
        assert first[f"{name}/token_accuracy"] == pytest.approx(float(right[kept].float().mean()))
    pieces = model.config.action_config["pieces"]
    signs = torch.isin(labels, torch.tensor([pieces["+"], pieces["-"]]))
    assert first["robot/sign_accuracy"] == pytest.approx(float(right[signs].float().mean()))
    assert first["loss"] == pytest.approx(float((losses * weights).sum() / weights.sum()), abs=1e-4)
    strings, statistics = processor.action_strings, model.config.norm_stats["tiny"]["action"]
    spell = {token: piece for piece, token in pieces.items()}
    errors, malformed = [], 0
    for row in is_robot.nonzero().flatten().tolist():
        kept = labels[row] != -100
        ids = (tokens[row][kept].tolist()[:-1] for tokens in (logits.argmax(-1), labels))
        written, told = ("".join(spell.get(token, "?") for token in row_ids) for row_ids in ids)
        try:
            actions = [unnormalize_actions(strings.decode(text), statistics) for text in (written, told)]
            errors.append(float(np.abs(actions[0] - actions[1]).mean()))
        except ActionStringError:
            malformed += 1
    assert first["robot/tiny/malformed"] == first["robot/malformed"] == malformed / 2
    assert ("robot/tiny/action_error" in first) == bool(errors)


@pytest.mark.parametrize("balance", ["token", "example"])
def test_gradient_accumulation_is_one_larger_batch(balance: str, tmp_path: Path) -> None:
    logs = []
    for name, batch, accumulated in ((f"whole-{balance}", 4, 1), (f"parts-{balance}", 2, 2)):
        settings: dict[str, Any] = {
            "training__batch_size": batch,
            "training__gradient_accumulation_steps": accumulated,
        }
        settings |= {"training__steps": 2, "training__logging_steps": 1}
        folder = run_tiny(tmp_path, name=name, loss__balance=balance, **settings)
        logs.append([(entry["loss"], entry["grad_norm"]) for entry in logged_steps(folder)])
    assert len(logs[0]) == 2
    assert logs[1] == [pytest.approx(entry, rel=1e-3) for entry in logs[0]]


def test_outputs_are_not_returned(llama_like: Any, tiny_strings: ActionStringProcessor) -> None:
    trainer = CoTrainer.__new__(CoTrainer)
    with pytest.raises(ValueError, match="got return_outputs=True, expected False"):
        trainer.compute_loss(tiny_model(llama_like, tiny_strings), {}, return_outputs=True)
