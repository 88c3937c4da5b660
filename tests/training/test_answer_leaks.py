"""No token of an answer shows where it is to be predicted, whoever collates rows of π0+; other rows are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_models import picture, tiny_pi0_model, tiny_pi0_processor
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling, SFTTrainer

from gen_vla.training.collator import CoTrainingCollator


ROWS = [("what is it?", "a cup"), ("how?", "two")]
MANY = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a cup"}]


@pytest.fixture(scope="module")
def processor(gemma_like: Any) -> Any:
    return tiny_pi0_processor(gemma_like)


def ours(processor: Any) -> dict[str, Any]:
    """Padded on the right; the second row is a conversation of two turns."""
    rows: list[dict[str, Any]] = [
        {"source": "vision_language", "prompt": q + "\n", "completion": a, "images": [picture()]} for q, a in ROWS
    ]
    rows[1]["more_turns"] = [{"prompt": "and?\n", "completion": "red"}]
    return CoTrainingCollator(processor)(rows)


def trls(processor: Any) -> dict[str, Any]:
    rows = [
        {
            "images": [picture()],
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer in ROWS
    ]
    return DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(rows)


def written_by_hand(processor: Any, side: str, rows: int = 2, types: bool = True) -> dict[str, Any]:
    """Whole rows from the processor, which calls all of them prompt, and labels on the answers."""
    texts = [question + "\n" + answer for question, answer in ROWS[:rows]]
    inputs = dict(processor(images=[[picture()]] * rows, text=texts, padding_side=side))
    inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
    for row, (_, answer) in enumerate(ROWS[:rows]):
        end = int(inputs["attention_mask"][row].nonzero()[-1]) + 1
        start = end - len(processor.encode_text(answer))
        inputs["labels"][row, start:end] = inputs["input_ids"][row, start:end]
    if not types:
        del inputs["token_type_ids"]
    return inputs


COLLATED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "ours": ours,
    "trl": trls,
    "left": lambda processor: written_by_hand(processor, "left"),
    "right": lambda processor: written_by_hand(processor, "right"),
    "alone": lambda processor: written_by_hand(processor, "left", rows=1),
    "no types": lambda processor: written_by_hand(processor, "left", types=False),
}


def outputs_of(model: Any, batch: dict[str, Any], fused: bool) -> torch.Tensor:
    """What predicts the next tokens: logits, or the hidden states that TRL's output layer gets without labels."""
    known = ("input_ids", "attention_mask", "pixel_values", "token_type_ids", *(() if fused else ("labels",)))
    given = {name: batch[name] for name in known if name in batch}
    return (model.base_model(**given).last_hidden_state if fused else model(**given).logits).detach()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", COLLATED)
def test_a_later_token_of_an_answer_changes_nothing_before_it(gemma_like: Any, rows: str, attention: str) -> None:
    model = tiny_pi0_model(gemma_like, attn_implementation=attention).train()
    batch = COLLATED[rows](tiny_pi0_processor(gemma_like))
    fused = rows in ("ours", "trl")
    before = outputs_of(model, batch, fused)
    for row, place in (batch["labels"] != -100).nonzero().tolist():
        ids = batch["input_ids"].clone()
        ids[row, place] = gemma_like.convert_tokens_to_ids("z")
        after = outputs_of(model, {**batch, "input_ids": ids}, fused)
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(after[row, :place][real[:place]], before[row, :place][real[:place]])
        assert (after[row, place] - before[row, place]).abs().max() > 1e-3
    first = int(batch["labels"][0].ne(-100).nonzero()[0])
    ids = batch["input_ids"].clone()
    ids[0, first - 2] = gemma_like.convert_tokens_to_ids("z")  # the prompt sees itself, as in generate
    start = int(batch["attention_mask"][0].nonzero()[0])
    changed = outputs_of(model, {**batch, "input_ids": ids}, fused)[0, start] - before[0, start]
    assert changed.abs().max() > 1e-4


NO_PROMPT = r"got no token_type_ids of a prompt \(0\) in row 0"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"messages": MANY}, {}, "got a conversation that ends in an answer.*'prompt' and 'completion'"),
        ({"text": "<image><s>what is it?\na cup</s>"}, {}, NO_PROMPT + " of 2.*'prompt' and 'completion'"),
        # TRL's loss takes the labels out of the call before they reach the model's own forward pass
        ({"prompt": MANY[:1], "completion": MANY[1:]}, {"completion_only_loss": False}, NO_PROMPT),
    ],
)
def test_trls_trainer_refuses_rows_without_a_prompt_and_to_supervise_one(
    processor: Any, gemma_like: Any, tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    rows = Dataset.from_list([{"images": [picture()], **columns}] * 2)
    options |= {"report_to": "none", "max_length": None, "bf16": False, "use_cpu": True, "max_steps": 1}
    settings = SFTConfig(output_dir=str(tmp_path), remove_unused_columns=False, **options)
    trainer = SFTTrainer(
        model=tiny_pi0_model(gemma_like), processing_class=processor, train_dataset=rows, args=settings
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_a_supervised_prompt_is_refused_in_training(processor: Any, gemma_like: Any) -> None:
    model, inputs = tiny_pi0_model(gemma_like), trls(processor)
    inputs["labels"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
    assert model(**inputs).loss.isfinite()  # in evaluation: causal throughout
    with pytest.raises(ValueError, match=r"got no token_type_ids of a prompt \(0\) in row 0 of 2"):
        model.train()(**inputs)
    question = processor.question_inputs(picture(), "how?")
    assert model.generate(**question, max_new_tokens=2).shape[1] <= question["input_ids"].shape[1] + 2


def test_a_conversation_is_causal_from_its_first_answer_on(processor: Any) -> None:
    later = [*MANY, {"role": "user", "content": "and?"}]
    first = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "how?"}]}]
    inputs = processor.apply_chat_template(
        [later, first], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    types, prompt = inputs["token_type_ids"], processor(text="what is it?\n")
    answered = len(prompt["input_ids"][0])
    start = int(inputs["attention_mask"][0].argmax())
    assert types[0].tolist() == [0] * (start + answered) + [1] * (types.shape[1] - start - answered)
    assert not types[1].any()
    trained = CoTrainingCollator(processor)(
        [
            {
                "source": "vision_language",
                "prompt": "what is it?\n",
                "completion": "a cup",
                "images": [],
                "more_turns": [{"prompt": "and?\n", "completion": "red"}],
            }
        ]
    )
    length = types.shape[1] - start
    assert trained["input_ids"][0, :length].tolist() == inputs["input_ids"][0, start:].tolist()
    assert trained["token_type_ids"][0, :length].tolist() == types[0, start:].tolist()
