"""What users of transformers do with a model without anything else of this package: Trainer, export, offloading."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from hub_stand_in import HubStandIn
from tiny_models import picture, tiny_pair
from tiny_vlms import tiny_vla_pair
from transformers import Trainer, TrainingArguments, pipeline
from transformers.utils import logging as transformers_logging


FAMILIES = ("openvla_plus", "pi0_flow")
PAD = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "labels": -100}


@pytest.fixture(params=FAMILIES)
def maker(request: Any, llama_like: Any, gemma_like: Any, tiny_strings: Any) -> Callable[..., tuple[Any, Any]]:
    """Makes a model and a processor of one family; called with a `seed`, with other weights."""
    tokenizer = llama_like if request.param == "openvla_plus" else gemma_like
    return lambda seed=0: tiny_pair(request.param, tokenizer, tiny_strings, seed)


def training_rows(processor: Any) -> list[dict[str, torch.Tensor]]:
    """Four demonstrations as a user would write them: prompt and action, the prompt without labels."""
    rows = []
    for number in range(4):
        prompt = processor.action_prompt("go now"[: 2 + number])
        if processor.action_config["representation"] == "flow":
            actions = torch.full((4, 3), 0.1 * number)
            rows.append({**only(processor.action_inputs(picture(number), "go")), "actions": actions})
            continue
        action = processor.action_strings.encode(np.full(3, 0.1 * number, np.float32))
        row = only(processor(images=[[picture(number)]], text=[prompt + action]))
        start = processor(images=[[picture(number)]], text=[prompt])["input_ids"].shape[1]
        labels = row["input_ids"].clone()
        labels[:start] = -100
        rows.append({**row, "labels": labels})
    return rows


def observation(model: Any, processor: Any, **flow: Any) -> dict[str, Any]:
    """Inputs of one observation; for a flow with its noise and `flow`."""
    inputs = {**processor.action_inputs(picture(), "go")}
    return {**inputs, "noise": torch.zeros(1, 4, 3), **flow} if model.config.model_type == "pi0_flow" else inputs


def only(batch: Any) -> dict[str, torch.Tensor]:
    return {name: value[0] for name, value in batch.items()}


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(value, (longest - len(value), 0), value=PAD[name]) if name in PAD else value

    return {name: torch.stack([padded(name, row[name]) for row in rows]) for name in rows[0]}


def plain_trainer(model: Any, processor: Any, folder: Path, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=0.01,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    rows: Any = training_rows(processor)
    return Trainer(model, arguments, train_dataset=rows, data_collator=collate)


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What transformers has logged as a warning."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    transformers_logging.warning_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def test_a_plain_trainer_goes_on_from_a_checkpoint(
    maker: Callable[..., tuple[Any, Any]], tmp_path: Path, messages: Callable[[], str]
) -> None:
    model, processor = maker()
    torch.manual_seed(0)
    plain_trainer(model, processor, tmp_path, save_steps=1).train()
    resumed, _ = maker(seed=1)
    for parameter in resumed.parameters():
        parameter.data.zero_()  # what is not read from the checkpoint shows
    plain_trainer(resumed, processor, tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    trained = model.state_dict()
    for name, tensor in resumed.state_dict().items():
        torch.testing.assert_close(tensor, trained[name], rtol=0, atol=1e-6, msg=name)
    assert "unexpected keys" not in messages()
    assert "vision_tower" not in messages()
    assert "loss_type" not in messages()


def test_checkpointed_layers_are_not_asked_for_actions(maker: Callable[..., tuple[Any, Any]]) -> None:
    """They would drop the cache and go on, and every token but the first would be another one."""
    model, processor = maker()
    inputs = observation(model, processor)
    expected = model.predict_action(**inputs)
    np.testing.assert_array_equal(model.train().predict_action(**inputs), expected)
    model.gradient_checkpointing_enable()
    if "noise" in inputs:  # whose language model is not checkpointed
        np.testing.assert_array_equal(model.predict_action(**inputs), expected)
        return
    for ask in (
        lambda: model.predict_action(**inputs),
        lambda: model.predict_action(**inputs, tree_nodes=0),
        lambda: model.generate(**processor.question_inputs(picture(), "How many?"), max_new_tokens=3),
    ):
        with pytest.raises(ValueError, match=r"training mode with gradient checkpointing.*call model\.eval\(\)"):
            ask()
    answers = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 8, -100)
    model(**inputs, labels=answers).loss.backward()
    np.testing.assert_array_equal(model.eval().predict_action(**inputs), expected)


class Logits(torch.nn.Module):
    """A model without its cache, which is nothing that can be exported."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs).logits


def test_a_forward_pass_is_exported_with_its_check(maker: Callable[..., tuple[Any, Any]]) -> None:
    model, processor = maker()
    inputs = observation(model, processor, timestep=torch.ones(1))
    with torch.no_grad():
        program: Any = torch.export.export(Logits(model), (), inputs, strict=False).module()
        torch.testing.assert_close(program(**inputs), model(**inputs).logits, rtol=0, atol=1e-5)
        wordless = {**inputs, "input_ids": torch.ones_like(inputs["input_ids"])}
        with pytest.raises(RuntimeError, match="Image features and image tokens do not match"):
            program(**wordless)


def test_an_offloaded_model_acts(maker: Callable[..., tuple[Any, Any]]) -> None:
    model, processor = maker()
    inputs = observation(model, processor)
    expected = model.predict_action(**inputs)
    offloaded: Any = cpu_offload(model, torch.device("cpu"))  # weights lie on the meta device between uses
    assert offloaded.device.type == "meta"
    np.testing.assert_allclose(offloaded.predict_action(**inputs), expected, rtol=0, atol=1e-6)
    if "noise" in inputs:
        assert offloaded.draw_noise(2).shape == (2, 4, 3)
        torch.manual_seed(0)
        assert np.isfinite(offloaded.predict_action(**processor.action_inputs(picture(), "go"))).all()


def test_a_pipeline_opens_the_pictures_of_messages(llama_like: Any, tiny_strings: Any, tmp_path: Path) -> None:
    model, processor = tiny_pair("openvla_plus", llama_like, tiny_strings)
    picture().save(tmp_path / "camera.png")
    inputs = processor.question_inputs(picture(), "How many?")
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    asked: Any = pipeline("image-text-to-text", model=model, processor=processor)
    for place in ({"path": str(tmp_path / "camera.png")}, {"image": picture()}):
        content = [{"type": "image", **place}, {"type": "text", "text": "How many?"}]
        found = asked(text=[{"role": "user", "content": content}], max_new_tokens=4, return_full_text=False)
        assert found[0]["generated_text"] == processor.decode(answer[0], skip_special_tokens=True)


def test_pushing_goes_where_it_was_told(hub: HubStandIn, tiny_openvla: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = tiny_openvla
    model.push_to_hub("gen-vla/tiny", private=True)
    options = {"repo_id": "gen-vla/tiny", "private": True, "commit_message": "A processor"}
    processor.save_pretrained(tmp_path / "first", push_to_hub=True, **options)
    processor.save_pretrained(tmp_path / "alone", push_to_hub=True, **{**options, "repo_id": "gen-vla/alone"})
    assert hub.storage.repositories["gen-vla/tiny"].private
    assert hub.storage.repositories["gen-vla/alone"].private
    assert hub.storage.repositories["gen-vla/tiny"].history()[0] == "A processor"
    tree = hub.storage.repositories["gen-vla/tiny"].tree("main")
    assert {"config.json", "model.safetensors", "dataset_statistics.json", "processor_config.json"} <= set(tree)
    written = (tmp_path / "first" / "tokenizer_config.json").read_bytes()
    assert tree["tokenizer_config.json"].content == written


def test_a_stock_processor_is_pushed_as_it_is_saved(hub: HubStandIn, tmp_path: Path) -> None:
    _, processor = tiny_vla_pair("gemma3", tmp_path / "stock")
    processor.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="gen-vla/stock", private=True)
    written = (tmp_path / "saved" / "tokenizer_config.json").read_bytes()
    assert b"TokenizersBackend" not in written
    repository = hub.storage.repositories["gen-vla/stock"]
    assert repository.private
    assert repository.tree("main")["tokenizer_config.json"].content == written
