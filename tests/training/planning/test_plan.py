"""What a run needs: counted exactly where it can be, by hand where it is estimated."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny_runs import tiny_flow_settings, tiny_recipe, tiny_vlm_model

from gen_vla.commands.main import main
from gen_vla.commands.train import train
from gen_vla.training.checkpoints import load_model
from gen_vla.training.model_building import build_model
from gen_vla.training.planning.plan import (
    GPUS,
    PROMPT_TOKENS,
    UTILISATION,
    PartSize,
    activations,
    plan,
    plan_recipe,
    planned_config,
    row_lengths,
    work,
)
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import build_collator, build_preparer, run_recipe


PART = PartSize("language_model", trainable=1000, frozen=0, layers=2, width=10, inner=20, tokens=5, largest_block=400)


@pytest.mark.parametrize("family", ["openvla_plus", "vla_plus"])
def test_parameters_are_those_of_the_trained_model(family, tmp_path):
    recipe = tiny_recipe(tmp_path, training__steps=1, **({"model": tiny_vlm_model()} if family == "vla_plus" else {}))
    model = load_model(run_recipe(recipe, tmp_path, progress=False)).train()
    again = tiny_recipe(
        tmp_path, name="more", model={"family": family, "initial_model": "tiny", "frozen": model.config.frozen}
    )
    parts, plans = plan_recipe(again, tmp_path)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sum(part.trainable for part in parts) == trainable
    assert sum(part.parameters for part in parts) == sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    moments = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    )
    assert plans[0].optimizer == moments == 2 * plans[0].gradients


def test_the_flow_matching_pi0_is_counted_too(tmp_path):
    recipe = tiny_recipe(tmp_path, **tiny_flow_settings(), training__steps=1)
    model = load_model(run_recipe(recipe, tmp_path, progress=False)).train()
    settings = {**tiny_flow_settings(), "model": {"family": "pi0_flow", "initial_model": "tiny", "frozen": None}}
    parts, _ = plan_recipe(tiny_recipe(tmp_path, name="more", **settings), tmp_path)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    assert sum(part.trainable for part in parts) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert {part.name: part.tokens for part in parts} == {
        "vision_tower": 4,
        "projector": 4,
        "language_model": 4 + 25,
        "action_expert": 4,
        "action_layers": 4,
    }
    assert [part.name for part in parts if not part.checkpointed] == ["language_model", "action_expert"]


def test_what_checkpointing_does_not_reach_is_kept_and_not_computed_again():
    cached = replace(PART, checkpointed=False)
    assert work(cached, checkpointing=True) == work(PART, checkpointing=False)
    assert activations([cached], batch=3, checkpointing=True) == activations([PART], batch=3, checkpointing=False)


def test_rows_are_as_long_as_their_pictures_prompts_and_answers(tmp_path):
    recipe = tiny_recipe(tmp_path)  # strings of 3 values with 2 decimals: 15 characters
    config = planned_config(recipe, tmp_path)
    assert config.num_image_tokens == 4
    assert row_lengths(recipe, config) == {"robot": 4 + 25 + 15 + 1, "vision-language": 4 + 25 + 60 + 1}
    padded = {part.name: part.tokens for part in plan_recipe(recipe, tmp_path)[0]}["language_model"]
    assert padded == 4 + 25 + 60 + 1, "a batch is padded to its longest row"
    robots_only = tiny_recipe(tmp_path, data__co_training=[], actions__horizon=2)
    assert row_lengths(robots_only, config) == {"robot": 4 + 25 + 2 * 15 + 1 + 1}
    robot = [{"path": "robot", "key": "tiny", "cameras": ["top", "wrist", "front"]}]
    of_three = tiny_recipe(tmp_path, data__robot=robot)
    assert row_lengths(of_three, config) == {"robot": 12 + 25 + 15 + 1, "vision-language": 4 + 25 + 60 + 1}
    tokens = {part.name: part.tokens for part in plan_recipe(of_three, tmp_path)[0]}
    assert (tokens["projector"], tokens["siglip"]) == (8, 8)


@pytest.mark.parametrize("representation", ["string", "bins"])
def test_a_row_is_about_as_long_as_the_collator_makes_it(representation, tmp_path):
    shape = {"representation": representation, "action_dim": 3, "horizon": 3, "decimals": 2, "binary_dims": [2]}
    actions = {**shape, **({"bin_tokens": "bytes", "binary_dims": []} if representation == "bins" else {})}
    recipe = tiny_recipe(tmp_path, actions=actions, data__co_training=[])
    opened = open_data(recipe, tmp_path)
    model, processor = build_model(recipe, tmp_path, opened)
    collator = build_collator(recipe, model.config, processor, opened.names)
    prepare = build_preparer(recipe, processor, opened.norm_stats, collator, model.config)
    (row,) = opened.first_rows("robot/tiny", 1)
    prepared = prepare(row, "robot/tiny", 0)
    prompt = len(processor.row_start(0)) + len(processor.encode_text(prepared["prompt"]))
    planned = row_lengths(recipe, model.config)["robot"] - PROMPT_TOKENS + prompt
    assert collator([prepared])["input_ids"].shape[1] == planned


def test_a_plan_says_whether_rows_fit(tmp_path, capsys):
    recipe = tmp_path / "tiny.yaml"
    tiny_recipe(tmp_path)
    assert main(["train", str(recipe), "--work-dir", str(tmp_path), "--plan"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a robot row about 45 tokens, a vision-language row about 90 tokens; the model takes 128 (" in text
    assert "too long" not in text
    assert main(["train", str(recipe), "--work-dir", str(tmp_path), "--plan", "--set=actions.horizon=8"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a robot row about 157 tokens" in text
    assert "too long, a run would stop; lower actions.horizon" in text


@pytest.mark.parametrize("family", ["openvla_plus", "vla_plus", "pi0_flow"])
def test_a_mini_model_takes_the_chunks_of_two_arms(family, tmp_path):
    robot = [{"path": "arms", "key": "arms", "cameras": ["top", "left_wrist", "right_wrist"]}]
    changes = {"actions.action_dim": 14, "actions.horizon": 50, "data.robot": robot, "data.co_training": []}
    name = {"openvla_plus": "openvla_plus_bridge", "vla_plus": "plus_bridge", "pi0_flow": "pi0_bridge"}[family]
    recipe = load_recipe(name, changes, mini=True)
    config = planned_config(recipe, tmp_path)
    texts = config.text_config if hasattr(config, "text_config") else config.vlm_config.text_config
    assert max(row_lengths(recipe, config).values()) <= texts.max_position_embeddings


def test_context_of_a_model_that_is_still_to_be_converted(tmp_path):
    plus = planned_config(load_recipe("openvla_plus_bridge"), tmp_path)
    assert plus.text_config.max_position_embeddings == 4096, "Llama 2's, which converting Prismatic writes"
    assert planned_config(load_recipe("mini_openvla_plus"), tmp_path).text_config.max_position_embeddings == 384


def test_work_and_activations_by_hand():
    forward = 2 * 2 * 400 * 5
    assert work(PART, checkpointing=False) == 3 * forward
    assert work(PART, checkpointing=True) == 4 * forward
    block = 3 * 5 * (16 * 10 + 4 * 20) * 2
    assert activations([PART], batch=3, checkpointing=False) == 2 * block + 0
    assert activations([PART], batch=3, checkpointing=True) == 2 * 3 * 5 * 10 * 4 + 2 * block


def test_spreading_divides_state_but_not_activations(tmp_path):
    recipe = tiny_recipe(tmp_path, training__gradient_accumulation_steps=2)
    one, eight = plan(recipe, [PART], 1, "whole"), plan(recipe, [PART], 8, "FSDP2")
    assert (one.weights, one.gradients, one.optimizer) == (6000, 4000, 8000)
    assert (eight.weights, eight.gradients, eight.optimizer) == (500 + 2 * 400 * 2, 500, 1000)
    assert one.activations == eight.activations
    assert eight.rows_per_second == pytest.approx(8 * one.rows_per_second)
    step = work(PART, recipe.training.gradient_checkpointing) * 4 * 2 / (GPUS["h100"].peak * UTILISATION)
    assert one.seconds_per_step == pytest.approx(step)
    assert one.hours == pytest.approx(step * recipe.training.steps / 3600)


def test_full_size_plans(capsys):
    parts, plans = plan_recipe(load_recipe("openvla_plus_bridge"), Path("nowhere"))
    assert sum(part.parameters for part in parts) == 7_498_158_752
    by_way = {(way.gpus, way.strategy): way for way in plans}
    assert not by_way[1, "whole"].fits
    assert by_way[8, "FSDP2"].fits
    lora = load_recipe("openvla_plus_bridge", {"training.lora": {"rank": 32}})
    assert plan_recipe(lora, Path("nowhere"))[1][0].fits
    assert main(["train", "openvla_plus_bridge", "--plan", "--set", "data.num_workers=8"]) == 0
    text = capsys.readouterr().out
    assert "8 loaders with shuffle buffers of 2 GB in all" in text
    assert "about 6.7 GB of the machine's memory per GPU process" in " ".join(text.split())
    assert "397,200,544" in text  # the frozen SigLIP
    assert "too much" in text
    assert main(["train", "openvla_plus_bridge", "--plan", "--gpu", "rtx4090", "--set", "training.lora.rank=32"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "rtx4090: 24 GB, 165 TFLOP/s" in text
    assert text.count("(too much)") == 3, "frozen weights alone are 30 GB"
    parts, plans = plan_recipe(load_recipe("pi0_bridge"), Path("nowhere"))
    assert sum(part.parameters for part in parts) == 3_238_048_528
    assert all(way.fits for way in plans)
    parts, _ = plan_recipe(load_recipe("mini_openvla_plus"), Path("nowhere"))
    assert sum(part.parameters for part in parts) < 3_000_000  # the size of mini_vlm, which it starts from


def test_the_command_takes_every_gpu_that_is_known() -> None:
    option = inspect.signature(train).parameters["gpu"].annotation
    assert set(get_args(get_args(option)[0])) == set(GPUS)
