"""Rows to a batch: joins the tokens of prompt and answer, supervises the answer and EOS, cuts nothing.

    prompt                                         answer        EOS   padding
    <s> <image> x N In: How many ...?\\nOut:        two           </s>  <PAD>
    -100 ................................... -100  two           </s>  -100       labels

A conversation goes on behind EOS, and every answer in it is supervised with its EOS:

    <s> <image> x N In: ...?\\nOut: two </s> In: ...?\\nOut: red </s>
    -100 ................... -100 two </s> -100 ...... -100 red </s>      labels
    0 ........................ 0  1 ................................     token_type_ids, where a model has them

Of a chunk that reaches behind the end of its episode, the steps that were recorded are supervised alone (T = 3):

    prompt                         +0.5000\n+0.2500\n+0.2500</s>
    -100 .................... -100 +0.5000 -100 ........... -100          labels, action_is_pad [F T T]

TRL's own collator tokenizes prompt and completion apart, which puts a space in front of a Llama answer, and it can cut
a row at `max_length`, which costs an action its tail; hence this one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gen_vla.processors import ActionGrammar, BinGrammar
from gen_vla.processors.action_grammar import grammar_from_action_config
from gen_vla.training.loss_weights import ActionTokenWeights, BinTokenWeights, tokens_of_steps
from gen_vla.training.mixing.prepared_rows import ROBOT, RowOverLimit, RowTooLong


class CoTrainingCollator:
    """Collates prepared rows (`prepared_rows.py`).

    Args:
        weights: weights of the tokens of an action, or `None` for 1 everywhere.
        max_tokens: the model's context; a longer row raises.
        sources: names of all sources, which `source_id` counts.
        most_tokens: of a vision-language row that `fit` lets pass; `None` for `max_tokens`.

    Returns (from a call): `input_ids`, `attention_mask`, `labels` int64 [B, L]; `token_weights` float32 [B, L];
    `is_robot` bool [B]; `source_id` int64 [B] where `sources` were given (`source_ids`); `replaced` bool [B], whether
    a row stands in for an unreadable one; `pixel_values` float32 [pictures, C, H, W] where there are pictures, and
    what else a stock processor returns for them; the processor's `answer_types` int64 [B, L] (`token_type_ids`).
    """

    def __init__(
        self,
        processor: Any,
        weights: ActionTokenWeights | BinTokenWeights | None = None,
        max_tokens: int = 2048,
        sources: Sequence[str] = (),
        most_tokens: int | None = None,
        longer_rows: str = "skip",
    ):
        self.processor = processor
        self.most_tokens = most_tokens
        self.longer_rows = longer_rows
        self.weights = weights
        self.max_tokens = max_tokens
        self.sources = {name: number for number, name in enumerate(sources)}
        self.grammar: ActionGrammar | BinGrammar | None = None
        if processor.action_config:
            self.grammar = grammar_from_action_config(processor.action_config)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        acting = [is_robot(row) for row in rows]
        images, texts = [row["images"] for row in rows], [row["prompt"] for row in rows]
        prompts = self.processor.row_inputs(images, texts, acting)
        types = getattr(self.processor, "answer_types", {})
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        fill |= {"token_weights": 0.0, **dict.fromkeys(types, 0)}
        batch: dict[str, list[list[Any]]] = {name: [] for name in fill}
        for number, row in enumerate(rows):
            values = self._row(row, prompts["input_ids"][number])
            answer = len(values["input_ids"]) - len(prompts["input_ids"][number])
            values |= {name: prompts[name][number] + [value] * answer for name, value in types.items()}
            for name, each in values.items():
                batch[name].append(each)
        width = max(map(len, batch["input_ids"]))
        tensors = {
            name: torch.tensor([line + [fill[name]] * (width - len(line)) for line in lines])
            for name, lines in batch.items()
        }
        tensors["is_robot"] = torch.tensor(acting)
        tensors["replaced"] = torch.tensor([row.get("replaced", False) for row in rows])
        if self.sources:
            tensors["source_id"] = source_ids(rows, self.sources)
        return {**{name: value for name, value in prompts.items() if name not in batch}, **tensors}

    def fit(self, row: dict[str, Any]) -> dict[str, Any]:
        """A prepared row that `__call__` takes and that is as short as it has to be.

        Raises:
            RowTooLong: if it does not fit into the model's context, and `most_tokens` is no bound.
            RowOverLimit: if it has more than `most_tokens`, and those of its first turn alone are to be cut.
        """
        prompt = self._prompt(row)
        while True:
            try:
                length = len(self._row(row, prompt)["input_ids"])
                if length <= (self.most_tokens or length):
                    return row
                raise RowOverLimit(
                    f"got a row of {length} tokens (source {row['source']}, prompt {row['prompt'][:60]!r}...), "
                    f"expected at most data.max_tokens={self.most_tokens}"
                )
            except RowTooLong as error:
                if self.most_tokens is None or self.longer_rows == "skip" or not row.get("more_turns"):
                    if is_robot(row) or self.most_tokens is None or self.most_tokens > self.max_tokens:
                        raise
                    raise RowOverLimit(str(error)) from error
                row = {**row, "more_turns": row["more_turns"][:-1]}

    def tokens(self, row: dict[str, Any]) -> int:
        """Tokens of a prepared row, its answers included, however many they are."""
        return len(self._row(row, self._prompt(row), check=False)["input_ids"])

    def _prompt(self, row: dict[str, Any]) -> list[int]:
        """Ids of the first prompt; pixels are computed only where the number of image tokens depends on them."""
        if hasattr(self.processor, "row_start"):
            return self.processor.row_start(len(row["images"])) + self.processor.encode_prompt(row["prompt"])
        return self.processor.row_inputs([row["images"]], [row["prompt"]], [is_robot(row)])["input_ids"][0]

    def _row(self, row: dict[str, Any], prompt: list[int], check: bool = True) -> dict[str, list[Any]]:
        if self.grammar is not None and is_robot(row):
            answer = [*self.grammar.token_ids(row["completion"]), self.processor.tokenizer.eos_token_id]
        else:
            answer = self.processor.answer_ids(row["prompt"], row["completion"])
        learned, padding = len(answer), row.get("action_is_pad")
        if self.grammar is not None and padding is not None:
            learned = tokens_of_steps(self.grammar, answer, len(padding) - sum(map(bool, padding)))
        weights = self.weights(answer) if self.weights is not None and is_robot(row) else [1.0] * len(answer)
        ids, unlearned = prompt + answer, len(answer) - learned
        labels = [-100] * len(prompt) + answer[:learned] + [-100] * unlearned
        weights = [0.0] * len(prompt) + weights[:learned] + [0.0] * unlearned
        for turn in row.get("more_turns") or ():
            question = self.processor.later_prompt_ids(turn["prompt"])
            reply = self.processor.answer_ids(turn["prompt"], turn["completion"], later=True)
            ids += question + reply
            labels += [-100] * len(question) + reply
            weights += [0.0] * len(question) + [1.0] * len(reply)
        if check and len(ids) > self.max_tokens:
            remedy = "drop the row"
            if is_robot(row):
                remedy = "lower actions.horizon or actions.decimals, or show fewer cameras"
            raise RowTooLong(
                f"got a row of {len(ids)} tokens (source {row['source']}, prompt {row['prompt'][:60]!r}...), expected "
                f"at most {self.max_tokens}; nothing is cut: {remedy}, or train a model of a larger context "
                "(max_position_embeddings)"
            )
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "token_weights": weights}


def is_robot(row: dict[str, Any]) -> bool:
    return row["source"].partition("/")[0] == ROBOT


def source_ids(rows: list[dict[str, Any]], sources: Mapping[str, int]) -> torch.Tensor:
    """The numbers of the rows' sources, int64 [B]; -1 for rows that are in no figure (`held_out.HeldOutRows`)."""
    numbers = [sources[row["source"]] if sources else 0 for row in rows]
    return torch.tensor([number if row.get("counted", True) else -1 for number, row in zip(numbers, rows)])
