"""Rows to a batch: exactly the answer and EOS are supervised, in every kind of row, and nothing is cut."""

from typing import Any

import pytest
import torch
from tiny_models import (
    IMAGE_TOKENS,
    picture,
    tiny_model,
    tiny_pi0_model,
    tiny_pi0_processor,
    tiny_processor,
    tiny_tokenizer,
)

from gen_vla.processors import ActionBins, ActionGrammar, ActionStringProcessor, make_action_config
from gen_vla.training.collator import CoTrainingCollator
from gen_vla.training.loss_weights import ActionTokenWeights, BinTokenWeights
from gen_vla.training.mixing.prepared_rows import RowOverLimit, RowTooLong
from gen_vla.training.trainer import balanced_loss, score_answers


def row(prompt: str, completion: str, source: str = "vision_language/scenes", pictures: int = 1) -> dict[str, Any]:
    images = [picture(seed) for seed in range(pictures)]
    return {"images": images, "prompt": prompt, "completion": completion, "source": source}


ACTION = ("In: What action should the robot take to go?\nOut:\n", "+0.50-0.25+0.00")
ROWS = [
    row(*ACTION, source="robot/tiny"),
    row("In: How many?\nOut:", " two"),
    row("In: Only words?\nOut:", " yes", pictures=0),
    row("In: Two pictures of the same drawer?\nOut:", " no", pictures=2),
]


@pytest.fixture(params=["llama_like", "gemma_like", "trained"])
def processor(request: pytest.FixtureRequest, tiny_strings: ActionStringProcessor) -> Any:
    return tiny_processor(request.getfixturevalue(request.param), tiny_strings)


def supervised(labels: torch.Tensor) -> list[int]:
    return labels[labels != -100].tolist()


def test_exactly_the_answer_and_eos_are_supervised(processor: Any) -> None:
    tokenizer = processor.tokenizer
    batch = CoTrainingCollator(processor)(ROWS)
    for number, entry in enumerate(ROWS):
        ids, labels = batch["input_ids"][number], batch["labels"][number]
        length = int(batch["attention_mask"][number].sum())
        answer = supervised(labels)
        assert answer[-1] == tokenizer.eos_token_id
        first = length - len(answer)
        assert labels[:first].eq(-100).all()
        assert labels[length:].eq(-100).all()
        assert torch.equal(labels[first:length], ids[first:length])
        assert tokenizer.decode(answer[:-1]).strip() == entry["completion"].strip()
        assert ids[length:].eq(tokenizer.pad_token_id).all()
        # nothing is cut: the whole row reads back
        words = [token for token in ids[1 : length - 1].tolist() if token != processor.image_token_id]
        assert tokenizer.decode(words) == entry["prompt"] + entry["completion"]


def test_the_prompt_is_what_inference_feeds(processor: Any) -> None:
    """Training and inference must agree on every token before the answer."""
    batch = CoTrainingCollator(processor)(ROWS)
    for number, inputs in enumerate(
        [processor.action_inputs(picture(0), "go"), processor.question_inputs(picture(0), "How many?")]
    ):
        fed = inputs["input_ids"][0].tolist()
        assert batch["input_ids"][number, : len(fed)].tolist() == fed
        assert int(batch["labels"][number].ne(-100).nonzero()[0]) == len(fed)
        assert torch.equal(inputs["pixel_values"][0], batch["pixel_values"][number])


def test_pictures_come_in_the_order_of_their_tokens(processor: Any) -> None:
    batch = CoTrainingCollator(processor)(ROWS)
    for name in ("input_ids", "attention_mask", "labels", "token_weights"):
        assert batch[name].shape == batch["input_ids"].shape
        assert batch[name].dtype == (torch.float32 if name == "token_weights" else torch.int64), name
    assert (batch["is_robot"].dtype, batch["pixel_values"].dtype) == (torch.bool, torch.float32)
    tokens = (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist()
    assert tokens == [IMAGE_TOKENS, IMAGE_TOKENS, 0, 2 * IMAGE_TOKENS]
    assert batch["pixel_values"].shape == (4, 6, 8, 8)
    assert batch["is_robot"].tolist() == [True, False, False, False]
    alone = CoTrainingCollator(processor)([ROWS[3]])
    assert torch.equal(alone["pixel_values"], batch["pixel_values"][2:])
    words = CoTrainingCollator(processor)([ROWS[2], ROWS[2]])
    assert "pixel_values" not in words
    assert len(supervised(words["labels"][0])) > 1


def test_weights_belong_to_robot_answers_only(processor: Any) -> None:
    grammar = ActionGrammar.from_action_config(processor.action_config)
    weights = ActionTokenWeights(grammar, [0.5, 0.25])
    batch = CoTrainingCollator(processor, weights)([*ROWS, row(ACTION[0], ACTION[1], source="vision_language/odd")])
    mine = batch["token_weights"][0][batch["labels"][0] != -100]
    torch.testing.assert_close(mine, torch.tensor([1.0, 1.0, 0.1, 0.5, 0.25] * 3 + [1.0]))
    for number in range(1, 5):
        kept = batch["labels"][number] != -100
        assert batch["token_weights"][number][kept].eq(1.0).all()
    assert batch["token_weights"][batch["labels"] == -100].eq(0.0).all()


def test_a_row_beyond_the_context_raises_and_is_not_cut(processor: Any) -> None:
    length = int(CoTrainingCollator(processor)([ROWS[1]])["attention_mask"].sum())
    assert CoTrainingCollator(processor, max_tokens=length)([ROWS[1]])["input_ids"].shape == (1, length)
    with pytest.raises(ValueError, match=rf"row of {length} tokens .*/scenes, prompt 'In: How.*at most {length - 1}"):
        CoTrainingCollator(processor, max_tokens=length - 1)([ROWS[1]])


def test_an_answer_that_merges_with_its_prompt_and_none_raise() -> None:
    processor = tiny_processor(tiny_tokenizer("gemma_like"))
    with pytest.raises(ValueError, match=r"got prompt 'a:' and answer '-1', expected the prompt's tokens to be a beg"):
        CoTrainingCollator(processor)([row("a:", "-1")])  # ":-" is one piece
    assert len(supervised(CoTrainingCollator(processor)([row("a:", " 1")])["labels"])) == 3
    with pytest.raises(ValueError, match=r"and answer '', expected .* give every row an answer"):
        CoTrainingCollator(processor)([row("In: a?\nOut:", "")])


CONVERSATION = {
    **row("In: How many?\nOut:", " two"),
    "more_turns": [
        {"prompt": "In: Which?\nOut:", "completion": " red one"},
        {"prompt": "In: Sure?\nOut:", "completion": " yes"},
    ],
}


def test_every_answer_of_a_conversation_is_supervised(processor: Any) -> None:
    tokenizer, eos = processor.tokenizer, processor.tokenizer.eos_token_id
    batch = CoTrainingCollator(processor)([CONVERSATION, ROWS[1]])
    labels, ids = batch["labels"][0], batch["input_ids"][0]
    answers, current = [], []
    for token in supervised(labels):
        current.append(token)
        if token == eos:
            answers.append(tokenizer.decode(current[:-1]).strip())
            current = []
    assert (answers, current) == (["two", "red one", "yes"], [])
    spoken = ("In: How many?\nOut: two", "In: Which?\nOut: red one", "In: Sure?\nOut: yes")
    text = tokenizer.decode([token for token in ids[1:].tolist() if token != processor.image_token_id])
    expected = "".join(f"{turn}{tokenizer.eos_token}" for turn in spoken)
    assert text.replace(tokenizer.pad_token, "") == expected
    assert batch["token_weights"][0].bool().equal(labels != -100)


def test_a_conversation_reads_as_the_chat_template_writes_it(processor: Any) -> None:
    """What inference feeds of a conversation, up to its last answer, is what training showed."""
    turns = [("user", "How many?"), ("assistant", "two"), ("user", "Which?")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, {"type": "image"})  # type: ignore[arg-type]
    text = processor.apply_chat_template(messages, tokenize=False)
    fed = processor(images=[picture(0)], text=text, add_special_tokens=False)["input_ids"][0].tolist()
    trained = CoTrainingCollator(processor)([CONVERSATION])["input_ids"][0].tolist()
    assert trained[: len(fed)] == fed


def test_types_turn_at_the_first_answer_and_stay(gemma_like: Any, tiny_strings: ActionStringProcessor) -> None:
    processor = tiny_pi0_processor(gemma_like, tiny_strings)
    conversation = {**CONVERSATION, "prompt": "How many?", "completion": "two"}
    conversation["more_turns"] = [{"prompt": "Which?", "completion": "red"}]
    batch = CoTrainingCollator(processor)([conversation])
    types, labels = batch["token_type_ids"][0], batch["labels"][0]
    first = int((labels != -100).nonzero()[0])
    assert types[:first].eq(0).all()
    assert types[first:].eq(1).all()
    assert labels[first:].eq(-100).any(), "the second question is not supervised"


def test_source_ids_and_stand_ins(processor: Any) -> None:
    names = ["robot/tiny", "vision_language/scenes"]
    batch = CoTrainingCollator(processor, sources=names)([ROWS[1], {**ROWS[0], "replaced": True}])
    assert batch["source_id"].tolist() == [1, 0]
    assert batch["replaced"].tolist() == [False, True]
    assert "source_id" not in CoTrainingCollator(processor)(ROWS)


CHUNK = "+0.50-0.25+0.00\n+0.10+0.20+0.30\n+0.10+0.20+0.30"


def chunk_row(padding: list[bool], completion: str = CHUNK, prompt: str = ACTION[0]) -> dict[str, Any]:
    return {**row(prompt, completion, source="robot/tiny"), "action_is_pad": padding}


def test_steps_behind_an_episode_carry_no_loss(request: pytest.FixtureRequest) -> None:
    strings = ActionStringProcessor(action_dim=3, horizon=3, decimals=2)
    for kind in ("llama_like", "gemma_like", "trained"):
        processor = tiny_processor(request.getfixturevalue(kind), strings)
        weights = ActionTokenWeights(ActionGrammar.from_action_config(processor.action_config), [0.5, 0.25])
        batch = CoTrainingCollator(processor, weights)(
            [chunk_row([False, False, False]), chunk_row([False, False, True]), chunk_row([False, True, True])]
        )
        whole = supervised(batch["labels"][0])
        assert whole[-1] == processor.tokenizer.eos_token_id
        counts = [len(supervised(labels)) for labels in batch["labels"]]
        assert counts == [len(whole), 31, 15]  # 15 a step, a line's end
        for number in (1, 2):
            kept = batch["labels"][number] != -100
            assert supervised(batch["labels"][number]) == whole[: int(kept.sum())]
            assert torch.equal(batch["input_ids"][number], batch["input_ids"][0]), "what is read stays whole"
            assert torch.equal(batch["token_weights"][number][kept], batch["token_weights"][0][kept])
            assert batch["token_weights"][number][~kept].eq(0.0).all()


def test_bins_behind_an_episode_carry_no_loss(llama_like: Any) -> None:
    bins = ActionBins(action_dim=3, horizon=2, bins=16)
    processor = tiny_processor(llama_like)
    processor.action_config = make_action_config(bins, llama_like)
    text = bins.encode([[-1, 0, 1], [0.5, 0.5, 0.5]])
    collate = CoTrainingCollator(processor, BinTokenWeights(3, [1], 0.5))
    prompt = "In: What action should the robot take to go?\nOut:"
    batch = collate([chunk_row(padding, text, prompt) for padding in ([False, False], [False, True])])
    whole, part = (supervised(labels) for labels in batch["labels"])
    assert (len(whole), part) == (7, whole[:3])
    assert batch["token_weights"][1][batch["labels"][1] != -100].tolist() == [1.0, 0.5, 1.0]
    assert batch["token_weights"][1].sum() == 2.5


@pytest.mark.parametrize("family", ["openvla_plus", "pi0_plus"])
def test_what_stands_behind_an_episode_does_not_change_the_loss(family: str, llama_like: Any, gemma_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=3, horizon=3, decimals=2)
    if family == "pi0_plus":
        model, processor = tiny_pi0_model(gemma_like, strings), tiny_pi0_processor(gemma_like, strings)
    else:
        model, processor = tiny_model(llama_like, strings), tiny_processor(llama_like, strings)
    other = CHUNK[:-15] + "-0.90-0.80-0.70"
    losses = []
    for padding in ([False, False, True], [False, False, False]):
        for text in (CHUNK, other):
            batch = CoTrainingCollator(processor)([chunk_row(padding, text, processor.action_prompt("go"))])
            weights, is_robot = batch.pop("token_weights")[:, 1:], batch.pop("is_robot")
            batch.pop("replaced")
            with torch.no_grad():
                log_probs, _ = score_answers(model, batch)
            losses.append(float(balanced_loss(-log_probs, weights, is_robot, "token")))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[2] != pytest.approx(losses[3], abs=1e-3)


# ---- long rows
def conversation(turns: int) -> dict[str, Any]:
    question = {"prompt": "In: How many?\nOut:", "completion": " two"}
    return {**row(question["prompt"], question["completion"]), "more_turns": [question] * (turns - 1)}


def test_last_turns_of_a_long_conversation_are_cut(processor: Any) -> None:
    tokens = CoTrainingCollator(processor).tokens
    lengths = [tokens(conversation(turns)) for turns in (1, 2, 3)]
    assert lengths[0] < lengths[1] < lengths[2]
    for limit, turns in ((lengths[1], 2), (lengths[2] - 1, 2), (lengths[2], 3), (lengths[0], 1)):
        cut = CoTrainingCollator(processor, most_tokens=limit, longer_rows="cut").fit(conversation(3))
        assert len(cut["more_turns"]) == turns - 1
        assert CoTrainingCollator(processor)([cut])["input_ids"].shape[1] == tokens(cut) <= limit


@pytest.mark.parametrize("longer_rows", ["skip", "cut"])
def test_rows_over_the_limit_are_not_those_that_the_model_does_not_take(processor: Any, longer_rows: str) -> None:
    short = CoTrainingCollator(processor).tokens(conversation(1))
    with pytest.raises(RowOverLimit, match=rf"got a row of {short} tokens .* at most data.max_tokens={short - 1}"):
        CoTrainingCollator(processor, most_tokens=short - 1, longer_rows=longer_rows).fit(conversation(1))
    with pytest.raises(RowTooLong, match="train a model of a larger context") as raised:
        CoTrainingCollator(processor, max_tokens=short - 1, longer_rows=longer_rows).fit(conversation(1))
    assert not isinstance(raised.value, RowOverLimit)
    with pytest.raises(RowOverLimit, match="train a model of a larger context"):  # nothing is wrong with such a row
        CoTrainingCollator(processor, max_tokens=short - 1, most_tokens=9, longer_rows=longer_rows).fit(
            conversation(1)
        )


@pytest.mark.parametrize("balance", ["token", "example", "source"])
def test_the_weight_of_vision_language_rows_leaves_the_robot_part_alone(balance: str) -> None:
    losses, weights = torch.tensor([[1.0, 2.0], [4.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    is_robot = torch.tensor([True, False])

    def loss(weight: float) -> float:
        return float(balanced_loss(losses, weights, is_robot, balance, vision_language_weight=weight))

    robot = {"token": 3 / 3, "example": 1.5 / 2, "source": 1.5 / 2}[balance]
    other = {"token": 4 / 3, "example": 4 / 2, "source": 4 / 2}[balance]
    assert loss(1.0) == pytest.approx(robot + other)
    assert loss(0.1) == pytest.approx(robot + 0.1 * other)
