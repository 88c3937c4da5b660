"""Training runs that start from converted vision-language models: every answer learned, D kept, adapters, resuming."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hub_stand_in import HubStandIn
from safetensors.torch import load_file
from tiny_models import picture
from tiny_runs import noise, read_log, run_tiny, tiny_recipe, write_questions, write_robot_data
from tiny_vlms import FAMILIES, tiny_inputs, tiny_vla_pair, tiny_vla_plus, tiny_vlm_config, write_base_processor
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gen_vla.commands.main import main
from gen_vla.processors import ActionStringProcessor
from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.collator import CoTrainingCollator
from gen_vla.training.converting.conversion import convert
from gen_vla.training.model_building import square_side
from gen_vla.training.planning.plan import planned_config
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import RecipeError
from gen_vla.training.run import build_collator, build_preparer, run_recipe, training_arguments


LABS = ("smolvlm", "gemma3", "qwen2_5_vl")
Start = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Lays converted models and data into a work folder; returns the overrides that make the tiny recipe begin so."""

    @cache
    def converted(family: str, dual: bool) -> Path:
        work_dir = tmp_path_factory.mktemp(family)
        tokenizer = write_base_processor(family, work_dir / "base")
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(tiny_vlm_config(family, tokenizer)).save_pretrained(work_dir / "base")
        options = {"family": "vla_plus"} if family.startswith("paligemma") else {}
        convert(work_dir / "base", work_dir / "start", dual=dual, check=False, **options)
        tiny_recipe(work_dir)
        return work_dir

    def begin(family: str, work_dir: Path, dual: bool = True) -> dict[str, Any]:
        shutil.copytree(converted(family, dual), work_dir, dirs_exist_ok=True)
        model = {"family": "vla_plus", "initial_model": "start", "frozen": "vision" if dual else None}
        return {"model": model, "training__learning_rate": 3e-3, "training__steps": 4, "training__save_steps": 2}

    return begin


@pytest.fixture(scope="module")
def trained(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The work folders of whole runs by family, each trained once: from `start` to `tiny`."""

    @cache
    def work_dir_of(family: str) -> Path:
        work_dir = tmp_path_factory.mktemp(f"{family}_run")
        run_tiny(work_dir, **start(family, work_dir))
        return work_dir

    return work_dir_of


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_what_it_should(family: str, trained: Callable[[str], Path]) -> None:
    work_dir = trained(family)
    folder = work_dir / "tiny"
    before, after = weights(work_dir / "start"), weights(folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    model, processor = load_model(folder), load_processor(folder)
    projectors = tuple(f"vlm.model.frozen_vision.{name}" for name in model.family.projectors)
    frozen = {name for name in before if name.startswith("vlm.model.frozen_vision.")}
    assert frozen
    assert not {name for name in moved & frozen if not name.startswith(projectors)}
    assert moved & frozen
    assert any("layers.0" in name and name not in frozen for name in moved)
    inputs = processor.action_inputs(noise(1), "open the drawer")
    prediction = model.predict_actions(**inputs)
    assert prediction.text == model.predict_actions(**inputs, tree_nodes=0).text
    assert prediction.actions.shape == (1, 1, 3)


@pytest.mark.parametrize("family", LABS)
def test_commands_act_with_it_and_publish_it(
    family: str, trained: Callable[[str], Path], hub: HubStandIn, tmp_path: Path, capsys: Any
) -> None:
    """The repository, which a fresh interpreter verifies, acts as the run's folder does."""
    folder, repository, picture = trained(family) / "tiny", tmp_path / "repository", tmp_path / "camera.png"
    noise(1).save(picture)
    assert main(["publish", str(folder), "gen-vla/tiny", "--dry-run", "--output", str(repository)]) == 0
    assert "would be uploaded to gen-vla/tiny" in capsys.readouterr().out
    assert 'from_pretrained("gen-vla/tiny"' in (repository / "README.md").read_text()
    model, processor = load_model(folder), load_processor(folder)
    expected = model.predict_actions(**processor.action_inputs(noise(1), "open the drawer"))
    for each in (folder, repository):
        assert main(["predict", str(each), str(picture), "open the drawer"]) == 0
        answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert answer["text"] == expected.text[0]
        np.testing.assert_allclose(answer["action"], expected.actions[0], atol=1e-5)


BINS = {"actions__representation": "bins", "actions__bin_tokens": "bytes"}


@pytest.mark.parametrize("family", LABS)
@pytest.mark.parametrize(
    ("settings", "dual"),
    [
        (BINS, False),
        ({"data__co_training": []}, False),
        ({"training__lora": {"rank": 4}, **BINS}, True),
        ({"training__lora": {"rank": 4, "tower": "lora"}}, True),
        ({"training__gradient_checkpointing": True}, True),
    ],
    ids=["bins without D", "robot data alone, without D", "lora and bins", "lora everywhere", "checkpointing"],
)
def test_other_recipes_run(family: str, settings: dict[str, Any], dual: bool, start: Start, tmp_path: Path) -> None:
    folder = run_tiny(tmp_path, **{**start(family, tmp_path, dual), "training__steps": 2, **settings})
    model, processor = load_model(folder), load_processor(folder)
    assert hasattr(model.vlm.model, "frozen_vision") == dual
    assert model.config.action_config["representation"] == settings.get("actions__representation", "string")
    inputs = processor.action_inputs(noise(1), "open the drawer")
    prediction = model.predict_actions(**inputs)
    assert prediction.text == model.predict_actions(**inputs, tree_nodes=0).text
    assert prediction.actions.shape == (1, 1, 3)


class Killed(TrainerCallback):
    """Ends a run behind a step, as a power cut would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("family", LABS)
def test_a_killed_run_resumes_to_the_same_weights(
    family: str, start: Start, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = start(family, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path, callbacks=[Killed(3)], **settings)
    resumed, whole = weights(run_tiny(tmp_path, resume=True, **settings)), weights(trained(family) / "tiny")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_what_the_model_sees_when_it_acts_and_answers(family: str, tmp_path: Path) -> None:
    """Prompts token for token as at inference; supervised are the action, and every answer with what ends it."""
    model, processor = tiny_vla_pair(family, tmp_path, ActionStringProcessor(2, decimals=2))
    robot = {"images": [noise(0)], "prompt": processor.action_prompt("lift it"), "completion": "+0.50-0.25"}
    question = {"images": [noise(1)], "prompt": "how many two?", "completion": "two"}
    talk = {**question, "more_turns": [{"prompt": "which color?", "completion": "red"}]}
    rows = [{**robot, "source": "robot/tiny"}, *({**row, "source": "vision_language/x"} for row in (question, talk))]
    words = {"images": [], "prompt": "go?", "completion": "no", "source": "vision_language/x"}
    batch = CoTrainingCollator(processor)([*rows, words])
    acting, asking = processor.action_inputs(noise(0), "lift it"), processor.question_inputs(noise(1), "how many two?")
    for row, inputs in ((0, acting), (1, asking), (2, asking)):
        prompt = inputs["input_ids"][0]
        assert batch["input_ids"][row, : len(prompt)].tolist() == prompt.tolist()
        assert bool((batch["labels"][row, : len(prompt)] == -100).all())
        for name, value in processor.answer_types.items():
            types = batch[name][row].tolist()
            assert types[: len(prompt)] == inputs[name][0].tolist()
            length = int(batch["attention_mask"][row].sum())
            assert types[len(prompt) :] == [value] * (length - len(prompt)) + [0] * (len(types) - length)
    learned = [processor.decode(labels[labels != -100]) for labels in batch["labels"]]
    end = processor.tokenizer.eos_token if family.startswith("paligemma") else "<|im_end|>"
    assert learned[0] == f"+0.50-0.25{processor.tokenizer.eos_token}"
    assert [text.replace(" ", "") for text in learned[1:3]] == [f"two{end}", f"two{end}red{end}"]
    assert learned[3] == f"no{end}"
    said = processor.decode(batch["input_ids"][2][batch["attention_mask"][2].bool()])
    if family.startswith("paligemma"):
        assert said.endswith("how many two?\ntwo</s>which color?\nred</s>")
    else:
        assert "two<|im_end|>\n<|im_start|>user\nwhich color?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>" in said
    model.train()
    inputs = {name: value for name, value in batch.items() if name not in ("token_weights", "is_robot", "replaced")}
    assert torch.isfinite(model(**inputs).loss)


def test_a_recipe_sets_the_size_of_pictures_and_tiles(start: Start, tmp_path: Path) -> None:
    """They are trained on, saved and acted on."""
    options = {"crop_to_patches": True, "min_patches": 2, "max_patches": 2, "size": {"height": 16, "width": 16}}
    begun = {**start("internvl", tmp_path), "training__steps": 1}
    before = planned_config(tiny_recipe(tmp_path, **begun), tmp_path).num_image_tokens
    recipe = tiny_recipe(tmp_path, data__picture_options=options, **begun)
    assert planned_config(recipe, tmp_path).num_image_tokens == 3 * before  # two tiles, and the whole
    processor = load_processor(run_recipe(recipe, tmp_path, progress=False))
    assert processor.picture_options == options
    inputs = processor.action_inputs(noise(1), "open the drawer")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 3 * before
    with pytest.raises(ValueError, match=r"'crop_to_patch', expected arguments of .*did you mean 'crop_to_patches'"):
        run_tiny(
            tmp_path / "misspelt",
            **start("internvl", tmp_path / "misspelt"),
            data__picture_options={"crop_to_patch": True},
        )
    with pytest.raises(RecipeError, match=r"got data\.picture_options with model\.family='openvla_plus'"):
        tiny_recipe(tmp_path / "openvla", data__picture_options=options)


@pytest.mark.parametrize("family", FAMILIES)
def test_augmented_pictures_have_the_shape_of_acting(family: str, tmp_path: Path) -> None:
    """Not that of `data.image_size`: most processors see a picture's proportions."""
    model, processor = tiny_vla_pair(family, tmp_path, ActionStringProcessor(3, decimals=2))
    if family.startswith("qwen"):
        processor.picture_options = {"min_pixels": 64, "max_pixels": 4096}
    unchanged = {"crop_area": 1.0, "brightness": 0.0, "contrast": [1, 1], "saturation": [1, 1], "hue": 0.0}
    settings = {"family": "vla_plus", "initial_model": "start", "frozen": "vision"}
    recipe = tiny_recipe(tmp_path, data__image_augmentation=unchanged, model=settings)
    collator = build_collator(recipe, model.config, processor, [])
    prepare = build_preparer(recipe, processor, model.config.norm_stats, collator, model.config)
    wide = picture(2, (64, 32))
    row = {"images": [wide], "instruction": "lift it", "action": np.zeros((1, 3)), "identity": "row"}
    trained = collator([prepare({**row, "action_is_pad": np.zeros(1, bool)}, "robot/tiny", 0)])
    acting = processor.action_inputs(wide, "lift it")
    assert trained["pixel_values"].shape == acting["pixel_values"].shape
    assert trained["input_ids"][:, : acting["input_ids"].shape[1]].tolist() == acting["input_ids"].tolist()
    if square_side(processor) is None:
        assert torch.equal(trained["pixel_values"], acting["pixel_values"])


@pytest.mark.parametrize("family", ["smolvlm", "gemma3", "qwen2_5_vl", "llava"])
def test_trls_own_trainer_trains_a_published_folder(family: str, tmp_path: Path) -> None:
    """Loaded by name, by TRL's SFTTrainer on prompts and completions: answers alone are supervised."""
    (base := tmp_path / "base").mkdir()
    model, processor = tiny_vla_pair(family, base)
    model.save_pretrained(tmp_path / "repo")
    processor.save_pretrained(tmp_path / "repo")
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "repo", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "repo", trust_remote_code=True)
    prompt, answer = [{"role": "user", "content": "how many two?"}], [{"role": "assistant", "content": "two"}]
    rows = [{"images": [noise(row)], "prompt": prompt, "completion": answer} for row in range(4)]
    options: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    arguments = SFTConfig(str(tmp_path / "run"), bf16=False, max_length=None, learning_rate=1e-2, **options)
    trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=processor)
    for batch in trainer.get_train_dataloader():
        learned = [processor.decode(labels[labels != -100]) for labels in batch["labels"]]
        assert learned == ["two<|im_end|>\n"] * 2
    assert trainer.train().training_loss > 0
    frozen = model.vlm.model.frozen_vision
    assert all(weight.grad is None for weight in frozen.parameters() if not weight.requires_grad)


def test_the_shipped_recipe_runs_at_mini_size_from_random_weights(tmp_path: Path) -> None:
    write_robot_data(tmp_path / "robot")
    write_questions(tmp_path / "questions")
    changes: dict[str, Any] = {
        "data.robot": [{"path": "robot", "key": "tiny"}],
        "data.vision_language": [{"path": "questions", "name": "scenes"}],
        "data.streaming": False,
        "actions.action_dim": 3,
        "actions.binary_dims": [2],
    }
    folder = run_recipe(load_recipe("plus_bridge", changes, mini=True), tmp_path, progress=False)
    model, processor = load_model(folder), load_processor(folder)
    assert model.predict_action(**processor.action_inputs(noise(1), "open the drawer")).shape == (3,)


def test_processes_do_not_wait_for_gradients_that_do_not_come(gemma_like: Any, tmp_path: Path) -> None:
    """Of what LLaVA's features do not depend on, which would stop DDP in its second step."""
    model = tiny_vla_plus("llava", gemma_like).train()
    inputs = tiny_inputs(model)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    missing = {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None}
    assert missing == {f"vlm.model.vision_tower.post_layernorm.{name}" for name in ("weight", "bias")}
    settings = {"family": "vla_plus", "initial_model": "start", "frozen": "vision"}
    assert training_arguments(tiny_recipe(tmp_path, model=settings), tmp_path).ddp_find_unused_parameters


def test_a_question_with_a_control_token_is_skipped(start: Start, tmp_path: Path) -> None:
    overrides = start("smolvlm", tmp_path)
    shutil.rmtree(tmp_path / "questions")
    write_questions(tmp_path / "questions", question=["how many <image>?", "which?", "two?", "where?"])
    folder = run_tiny(tmp_path, **overrides, data__max_bad_share=0.5)
    problems = read_log(folder)["data"]["undecodable"]["vision_language/scenes"]
    assert problems["by_reason"].keys() == {"control token in a text"}
