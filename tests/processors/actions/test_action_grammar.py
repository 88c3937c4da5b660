"""The token grammar accepts what tokenizers, real ones where at hand, make of action strings, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_action_strings import edge_actions
from tiny_models import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import LogitsProcessorList, PreTrainedTokenizerFast

from gen_vla.processors import (
    PROMPT_TEMPLATE,
    ActionGrammar,
    ActionLogitsProcessor,
    ActionStringError,
    ActionStringProcessor,
    make_action_config,
)
from gen_vla.processors.action_strings import STYLES


PROMPT = PROMPT_TEMPLATE["action"].format(instruction="put the carrot on the plate")


def grammar_of(strings: ActionStringProcessor, tokenizer: Any) -> ActionGrammar:
    return ActionGrammar.from_action_config(make_action_config(strings, tokenizer))


def words_of(grammar: ActionGrammar) -> set[tuple[int, ...]]:
    """Every token sequence from the start to EOS, EOS left out."""
    words: set[tuple[int, ...]] = set()
    pending: list[tuple[tuple[int, ...], int]] = [((), 0)]
    while pending:
        tokens, state = pending.pop()
        for token, target in grammar.transitions[state].items():
            if token == grammar.eos_token_id:
                words.add(tokens)
            else:
                pending.append(((*tokens, token), target))
    return words


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def behind_a_digit(tokenizer: Any, text: str) -> list[int]:
    """What the tokenizer makes of a text in the middle of an answer."""
    digit, whole = encode(tokenizer, ["7", "7" + text])
    return whole[len(digit) :]


def spellings(grammar: ActionGrammar, text: str, state: int = 0) -> int:
    """How many token sequences that the grammar accepts have this text."""
    if not text:
        return int(grammar.eos_token_id in grammar.transitions[state])
    return sum(
        spellings(grammar, text.removeprefix(grammar.text_of[token]), target)
        for token, target in grammar.transitions[state].items()
        if token != grammar.eos_token_id and text.startswith(grammar.text_of[token])
    )


@st.composite
def merge_tables(draw: st.DrawFn, characters: str) -> list[tuple[str, str]]:
    """Merges of up to four characters, each of parts that are characters or merged before."""
    pieces, merges = [*characters], []
    for _ in range(draw(st.integers(0, 12))):
        pair = draw(st.tuples(st.sampled_from(pieces), st.sampled_from(pieces)))
        if len("".join(pair)) <= 4 and pair not in merges:
            merges.append(pair)
            pieces.append("".join(pair))
    return draw(st.permutations(merges))


def check_spellings(tokenizer: Any, style: str, seed: int) -> None:
    """The tokenizer's ids of action strings are accepted, and what is accepted is the tokenizer's ids."""
    rng = np.random.default_rng(seed)
    strings = ActionStringProcessor(action_dim=2, horizon=2, style=style)
    grammar = grammar_of(strings, tokenizer)
    for action in rng.choice([-1.0, -0.5, -0.0001, 0.0, 0.0001, 0.0312, 1.0], (5, 2, 2)):
        text = grammar.prefix + strings.encode(action)
        ids = behind_a_digit(tokenizer, text)
        assert grammar.token_ids(text) == ids
        assert spellings(grammar, text) == 1
        grammar.advance([*ids, grammar.eos_token_id])
    for _ in range(5):
        tokens, state = [], 0
        while grammar.eos_token_id not in grammar.transitions[state]:
            tokens.append(int(rng.choice(list(grammar.transitions[state]))))
            state = grammar.transitions[state][tokens[-1]]
        text = grammar.prefix + grammar.text(tokens)
        assert tokens == behind_a_digit(tokenizer, text)
        assert spellings(grammar, text) == 1


@settings(max_examples=60, deadline=None)
@given(
    first=merge_tables("+-,\n▁e."),
    more=merge_tables("+-,\n▁e."),
    style=st.sampled_from(STYLES),
    seed=st.integers(0, 99),
)
@example(first=[("\n", "-")], more=[], style="plain", seed=0)  # the pair before "\n\n" is thought of
@example(first=[("\n", "\n"), ("\n", "-")], more=[], style="plain", seed=0)
@example(first=[("\n", "\n"), ("\n\n", "-")], more=[], style="plain", seed=0)
def test_a_string_is_spelled_as_the_tokenizer_does_whatever_it_merges(
    first: list[tuple[str, str]], more: list[tuple[str, str]], style: str, seed: int
) -> None:
    check_spellings(tiny_tokenizer("gemma_like", more, first), style, seed)


@settings(max_examples=40, deadline=None)
@given(merges=merge_tables("+-,\n▁e.01"), style=st.sampled_from(STYLES), seed=st.integers(0, 99))
@example(merges=[("e", "0")], style="legacy", seed=0)
@example(merges=[("0", "-")], style="legacy", seed=0)
def test_merged_digits_are_refused_or_never_occur(merges: list[tuple[str, str]], style: str, seed: int) -> None:
    tokenizer, refusal = tiny_tokenizer("gemma_like", first_merges=merges), ""
    try:
        make_action_config(ActionStringProcessor(action_dim=2, horizon=2, style=style), tokenizer)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert "never merges digits" in refusal
        assert any("0" in "".join(pair) or "1" in "".join(pair) for pair in merges)
    else:
        check_spellings(tokenizer, style, seed)


def test_a_config_saved_without_runs_means_the_same(tokenizer: Any) -> None:
    for style in STYLES:
        config = make_action_config(ActionStringProcessor(action_dim=2, horizon=2, style=style), tokenizer)
        before = {name: value for name, value in config.items() if name != "runs"}
        whole, derived = map(ActionGrammar.from_action_config, (config, before))
        assert whole.transitions == derived.transitions
        assert whole.unit_ids == derived.unit_ids


def test_checking_a_tokenizer_warns_of_no_long_text(tokenizer: Any) -> None:
    tokenizer.model_max_length = 16
    make_action_config(ActionStringProcessor(action_dim=2), tokenizer)
    assert not tokenizer.deprecation_warnings


def test_other_text_has_no_tokens(llama_like: Any) -> None:
    grammar = grammar_of(ActionStringProcessor(action_dim=1), llama_like)
    with pytest.raises(ActionStringError, match="expected one of"):
        grammar.token_ids("+0.12x4")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("horizon", [1, 3])
def test_tokenized_actions_are_words_of_the_grammar(style: str, horizon: int, tokenizer: Any) -> None:
    strings = ActionStringProcessor(action_dim=7, horizon=horizon, style=style)
    config = make_action_config(strings, tokenizer)
    grammar = ActionGrammar.from_action_config(config)
    count = 10_000 if len(tokenizer) > 1000 and horizon == 1 else 1_000
    actions = edge_actions(count * horizon, 7).reshape(count, horizon, 7)
    texts = [strings.encode(action) for action in actions]
    prompt_ids = encode(tokenizer, [PROMPT])[0] + config["lead_in_ids"]
    rows = encode(tokenizer, [PROMPT + strings.lead_in + text for text in texts])
    largest = 0.0
    for row, text, action in zip(rows, texts, actions, strict=True):
        assert row[: len(prompt_ids)] == prompt_ids
        answer = row[len(prompt_ids) :]
        final = grammar.advance([*answer, tokenizer.eos_token_id])
        assert grammar.transitions[final] == {tokenizer.eos_token_id: final}
        assert grammar.text(answer) == text
        assert len(answer) <= grammar.max_tokens
        if style == "signed":
            assert len(answer) == len(text) == 50 * horizon - 1
        largest = max(largest, np.abs(strings.decode(grammar.text(answer)) - action).max())
    assert largest <= 5e-5 + 1e-7


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 1), (1, 2, 1)])
def test_the_words_are_the_tokenized_strings_and_no_others(
    style: str, shape: tuple[int, int, int], tokenizer: Any
) -> None:
    action_dim, horizon, decimals = shape
    strings = ActionStringProcessor(action_dim, horizon, decimals, style)
    grammar = grammar_of(strings, tokenizer)
    scale = 10**decimals
    values = np.arange(-scale, scale + 1) / scale
    grids = np.meshgrid(*[values] * (action_dim * horizon), indexing="ij")
    chunks = np.stack([grid.ravel() for grid in grids], axis=-1).reshape(-1, horizon, action_dim)
    texts = {strings.encode(chunk) for chunk in chunks}
    if style == "legacy":  # reads a minus zero too, which encode never writes
        for _ in range(action_dim * horizon):
            texts |= {",".join(parts) for text in texts for parts in _with_a_minus_zero(text.split(","))}
    prompt_ids = encode(tokenizer, [PROMPT])[0] + make_action_config(strings, tokenizer)["lead_in_ids"]
    rows = encode(tokenizer, [PROMPT + strings.lead_in + text for text in sorted(texts)])
    assert words_of(grammar) == {tuple(row[len(prompt_ids) :]) for row in rows}
    assert grammar.max_tokens == max(map(len, words_of(grammar)))


def _with_a_minus_zero(parts: list[str]) -> list[list[str]]:
    return [[*parts[:place], "-0.0", *parts[place + 1 :]] for place, part in enumerate(parts) if part == "0.0"]


def test_random_walks_decode(tokenizer: Any) -> None:
    rng = np.random.default_rng(3)
    for style in STYLES:
        strings = ActionStringProcessor(action_dim=4, horizon=2, style=style, binary_dims=(3,))
        grammar = grammar_of(strings, tokenizer)
        for _ in range(50):
            tokens, state = [], 0
            while not tokens or tokens[-1] != grammar.eos_token_id:
                tokens.append(int(rng.choice(list(grammar.transitions[state]))))
                state = grammar.transitions[state][tokens[-1]]
            assert len(tokens) - 1 <= grammar.max_tokens
            text = grammar.prefix + grammar.text(tokens)
            assert tokens[:-1] == behind_a_digit(tokenizer, text) == grammar.token_ids(text)
            chunk = strings.decode(grammar.text(tokens))
            assert np.isin(chunk[:, 3], (0.0, 1.0)).all()
            assert grammar.advance([*tokens, tokens[-1], tokens[-1]]) == state  # behind EOS only EOS


def test_max_tokens_of_seven_dimensions(llama_like: Any, gemma_like: Any) -> None:
    lengths = {
        (style, horizon): grammar_of(ActionStringProcessor(7, horizon, style=style), llama_like).max_tokens
        for style in STYLES
        for horizon in (1, 2)
    }
    assert lengths[("signed", 1)] == 49
    assert lengths[("signed", 2)] == 99
    assert lengths[("plain", 1)] == 7 * 7 + 6  # -0.0000 and a newline between two
    assert lengths[("plain", 2)] == 2 * 55 + 2
    assert grammar_of(ActionStringProcessor(7, 2, style="plain"), gemma_like).max_tokens == 2 * 55 + 1  # "\n\n" is one
    assert lengths[("legacy", 1)] == 1 + 7 * 6 + 7  # "▁-" or "▁", then 0.0000 seven times, a "," or ",-" behind each


def test_action_config_of_the_llama_vocabulary(llama2: Any) -> None:
    config = make_action_config(ActionStringProcessor(binary_dims=[6]), llama2)
    assert config["lead_in_ids"] == [13]
    assert config["eos_token_id"] == 2
    assert config["pieces"]["+"] == 29974
    assert config["pieces"]["0"] == 29900
    assert config["pieces"]["."] == 29889
    assert len(config["pieces"]) == 13
    legacy = make_action_config(ActionStringProcessor(style="legacy"), llama2)
    assert legacy["lead_in_ids"] == []
    assert legacy["pieces"][",-"] == 6653
    assert legacy["pieces"][" -"] == 448
    assert legacy["pieces"][" "] == 29871


def test_action_config_of_the_gemma_vocabulary(gemma: Any) -> None:
    assert make_action_config(ActionStringProcessor(style="legacy"), gemma)["pieces"][",-"] == 8815
    plain = make_action_config(ActionStringProcessor(style="plain", horizon=2), gemma)
    assert plain["lead_in_ids"] == [108]
    assert plain["pieces"]["\n\n"] == 109


def test_the_mask_allows_each_row_its_own_characters(llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=1, decimals=1)
    mask = strings.logits_processor(llama_like, prompt_length=2)
    pieces = make_action_config(strings, llama_like)["pieces"]
    plus, zero, one, point = (pieces[c] for c in "+01.")
    eos, pad = llama_like.eos_token_id, llama_like.pad_token_id
    rows = [[pad, 9, plus, one], [8, 9, plus, zero], [pad, pad, pieces["-"], zero]]
    scores = torch.arange(3.0 * len(llama_like)).reshape(3, -1)
    allowed = [row.isfinite().nonzero().flatten().tolist() for row in mask(torch.tensor(rows), scores)]
    assert allowed == [[point], [point], [point]]
    longer = torch.tensor([[*row, point] for row in rows])
    masked = mask(longer, scores)
    digits = sorted(pieces[c] for c in "0123456789")
    allowed = [row.isfinite().nonzero().flatten().tolist() for row in masked]
    assert allowed == [[zero], digits, [digit for digit in digits if digit != zero]]
    assert masked[1, digits[3]] == scores[1, digits[3]]
    finished = torch.tensor([[*longer[0].tolist(), zero], [*longer[1].tolist(), digits[4]]])
    allowed = [row.isfinite().nonzero().flatten().tolist() for row in mask(finished, scores[:2])]
    assert allowed == [[eos], [eos]]


def test_a_wrong_prompt_length_is_named(llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=1, decimals=1)
    ids = torch.tensor([llama_like.encode("Out:\n+0.5", add_special_tokens=False)])
    scores = torch.zeros(1, len(llama_like))
    strings.logits_processor(llama_like, prompt_length=ids.shape[1] - 4)(ids, scores)
    with pytest.raises(ActionStringError, match="prompt_length counts every token before the action") as caught:
        strings.logits_processor(llama_like, prompt_length=ids.shape[1] - 5)(ids, scores)
    assert caught.value.position == 0


def generate(model: Any, tokenizer: Any, grammar: ActionGrammar, rows: int, **options: Any) -> list[str]:
    """Action strings from plain `generate` under the grammar, on left-padded prompts of different lengths."""
    prompts = [PROMPT[: 20 + row % 5] + "\n" for row in range(rows)]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
    length = inputs["input_ids"].shape[1]
    output = model.generate(
        **inputs,
        logits_processor=LogitsProcessorList([ActionLogitsProcessor(grammar, length)]),
        **{"max_new_tokens": grammar.max_tokens, "pad_token_id": grammar.eos_token_id, **options},
    )
    return [grammar.text(row) for row in output[:, length:].tolist()]


@pytest.mark.parametrize("style", STYLES)
def test_a_thousand_hot_samples_all_parse(style: str, llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=3, decimals=4, style=style)
    grammar = grammar_of(strings, llama_like)
    torch.manual_seed(0)
    model = tiny_model(llama_like, strings)
    texts = generate(model, llama_like, grammar, 1_000, do_sample=True, temperature=2.0, top_k=0, use_cache=True)
    decoded = np.stack([strings.decode(text) for text in texts])
    assert len(texts) == 1_000
    assert len(set(texts)) > 500
    assert np.abs(decoded).max() <= 1.0


def test_a_character_without_a_token_is_refused() -> None:
    model = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate("-.0123456789\n")}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>")
    with pytest.raises(ValueError, match=r"got 0 tokens for '\+', expected 1; style 'signed' needs a"):
        make_action_config(ActionStringProcessor(action_dim=1), tokenizer)
    assert make_action_config(ActionStringProcessor(action_dim=1, style="plain"), tokenizer)["lead_in_ids"] == [12]


def test_a_tokenizer_without_eos_is_refused(llama_like: Any) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=llama_like.backend_tokenizer)
    with pytest.raises(ValueError, match="without an end-of-sequence token"):
        make_action_config(ActionStringProcessor(action_dim=1), tokenizer)


def test_text_of_a_foreign_token_is_refused(llama_like: Any) -> None:
    grammar = grammar_of(ActionStringProcessor(action_dim=1), llama_like)
    with pytest.raises(ActionStringError, match="got token 99999 at position 0, which is part of no action"):
        grammar.text([99999])
