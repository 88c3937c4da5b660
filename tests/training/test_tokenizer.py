"""The tokenizer small recipes train: Llama's layout, and digits that never join anything."""

from typing import Any

import numpy as np
import pytest

from gen_vla.processors import ActionStringProcessor
from gen_vla.training.tokenizer import train_tokenizer


TEXTS = [
    "In: What action should the robot take to open the drawer?\nOut:\n+0.0312-0.1200",
    "In: What action should the robot take to close the drawer 12 times?\nOut:\n-0.5000+1.0000",
    "In: How many blocks are there, 10 or 12?\nOut: 12",
    "Out: two, -0.5,-1.0,",
] * 20
UNSEEN = ["zürich Ω 東京 🤖", "In: {weird}\tinput\n\nOut:", "42 is 6*7", "a<b>c </d>", "~#%&|^`"]


@pytest.fixture(scope="module")
def learned() -> Any:
    return train_tokenizer(TEXTS, vocab_size=420)


def test_the_layout_is_llamas(learned: Any) -> None:
    vocab = learned.get_vocab()
    assert [vocab[token] for token in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert [vocab[f"<0x{byte:02X}>"] for byte in (0, 10, 255)] == [3, 13, 258]
    assert sorted(vocab.values()) == list(range(len(learned)))
    assert [vocab["<PAD>"], vocab["<image>"]] == [len(learned) - 2, len(learned) - 1]
    assert (learned.bos_token_id, learned.eos_token_id, learned.unk_token_id) == (1, 2, 0)
    assert learned.pad_token_id == vocab["<PAD>"]
    assert learned.padding_side == "left"
    assert learned("a")["input_ids"][0] == 1
    assert set(learned("a")) == {"input_ids", "attention_mask"}


def test_a_newline_is_its_byte(learned: Any) -> None:
    assert learned.encode("\n", add_special_tokens=False)[-1] == 13
    ids = learned.encode("Out:\n+0.5\n\n-0.5", add_special_tokens=False)
    assert [learned.decode([token]) for token in ids if token == 13] == ["\n"] * 3
    assert not [piece for piece in learned.get_vocab() if "\n" in piece]


def test_no_piece_joins_a_digit_or_a_sign_with_anything(learned: Any) -> None:
    pieces = [piece for piece in learned.get_vocab() if not piece.startswith(("<0x", "<unk", "<s>", "</s", "<PAD"))]
    assert len(pieces) > 60
    words = "In: What action should the robot take to open the drawer?"
    assert len(learned.encode(words, add_special_tokens=False)) < len(words) / 2, "frequent words are few pieces"
    joined = [piece for piece in pieces if len(piece) > 1 and any(c in "0123456789+-.,:?" for c in piece)]
    assert joined == []
    assert all(character in pieces for character in "0123456789+-.,▁")


def test_a_signed_action_is_49_tokens_of_one_character(learned: Any) -> None:
    strings = ActionStringProcessor(action_dim=7, decimals=4, binary_dims=[6])
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = np.append(rng.uniform(-1, 1, 6), rng.integers(0, 2))
        text = strings.encode(action)
        prompt = learned.encode("Out:\n", add_special_tokens=False)
        ids = learned.encode("Out:\n" + text, add_special_tokens=False)
        assert ids[: len(prompt)] == prompt
        assert len(ids) - len(prompt) == len(text) == 49
        assert learned.convert_ids_to_tokens(ids[len(prompt) :]) == list(text)


@pytest.mark.parametrize("text", UNSEEN + TEXTS[:4])
def test_every_text_comes_back_through_its_bytes(learned: Any, text: str) -> None:
    ids = learned.encode(text, add_special_tokens=False)
    assert learned.unk_token_id not in ids
    assert learned.decode(ids) == text


def test_the_same_texts_give_the_same_tokenizer(learned: Any) -> None:
    again = train_tokenizer(iter(TEXTS), vocab_size=420)
    assert again.get_vocab() == learned.get_vocab()
    assert again.backend_tokenizer.to_str() == learned.backend_tokenizer.to_str()
    other = train_tokenizer([text.replace("drawer", "window") for text in TEXTS], vocab_size=420)
    assert other.get_vocab() != learned.get_vocab()


def test_too_small_a_vocabulary_raises() -> None:
    with pytest.raises(ValueError, match=r"got vocab_size=360, expected at least 361: 261 are reserved"):
        train_tokenizer(TEXTS, vocab_size=360)
    many = ["".join(map(chr, range(0x4E00, 0x4E00 + 300)))]
    with pytest.raises(ValueError, match=r"got vocab_size=400 .* 3\d\d different characters, expected at least"):
        train_tokenizer(many, vocab_size=400)
    assert len(train_tokenizer(many, vocab_size=600)) <= 600
