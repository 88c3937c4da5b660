"""Rows to a batch: tokenizes prompt and answer together, supervises the answer and EOS, cuts nothing.

Decides: the labels and the weight of every supervised token. Refuses to know: which rows come together
(`mixture.py`), what the weights do to a loss (`co_trainer.py`).

    prompt                                         answer        EOS   padding
    <s> <image> x N In: How many ...?\\nOut:        two           </s>  <PAD>
    -100 ................................... -100  two           </s>  -100       labels

TRL's own collator tokenizes prompt and completion apart, which puts a space in front of a Llama answer, and it can cut
a row at `max_length`, which costs an action its tail; hence this one.
"""

from typing import Any

import torch

from gen_vla.processors import BinGrammar
from gen_vla.training.mixture import ROBOT
from gen_vla.training.token_weights import ActionTokenWeights, BinTokenWeights


class CoTrainingCollator:
    """Collates prompt/completion rows.

    Args:
        processor: a processor of the family.
        weights: weights of the tokens of an action, or `None` for 1 everywhere.
        max_tokens: the model's context; a longer row raises.

    Returns (from a call): `input_ids`, `attention_mask`, `labels` int64 [B, L]; `token_weights` float32 [B, L];
    `is_robot` bool [B]; `pixel_values` float32 [pictures, C, H, W] where there are pictures; `token_type_ids` int64
    [B, L], 1 on the answer, where the processor returns any.
    """

    def __init__(
        self, processor: Any, weights: ActionTokenWeights | BinTokenWeights | None = None, max_tokens: int = 2048
    ):
        self.processor = processor
        self.weights = weights
        self.max_tokens = max_tokens
        action_config = processor.action_config or {}
        bins = action_config.get("representation") == "bins"
        self.bins = BinGrammar.from_action_config(action_config) if bins else None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        images = [row["images"] for row in rows]
        texts = [row["prompt"] for row in rows]
        prompts = self.processor(images=images, text=texts, padding=False, return_tensors=None)
        fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": -100, "token_weights": 0.0}
        if "token_type_ids" in prompts:  # the hook of models whose prompt sees itself in both directions (π0+)
            fill["token_type_ids"] = 0
        batch: dict[str, list[list[Any]]] = {name: [] for name in fill}
        for row, prompt in zip(rows, prompts["input_ids"], strict=True):
            answer = [*self._answer_ids(row), tokenizer.eos_token_id]
            weights = [1.0] * len(answer)
            if self.weights is not None and row["source"] == ROBOT:
                weights = self.weights(answer)
            batch["input_ids"].append(prompt + answer)
            batch["attention_mask"].append([1] * (len(prompt) + len(answer)))
            batch["labels"].append([-100] * len(prompt) + answer)
            batch["token_weights"].append([0.0] * len(prompt) + weights)
            if "token_type_ids" in batch:
                batch["token_type_ids"].append([0] * len(prompt) + [1] * len(answer))
            self._check_length(row, len(prompt) + len(answer))
        width = max(map(len, batch["input_ids"]))
        tensors = {
            name: torch.tensor([line + [fill[name]] * (width - len(line)) for line in lines])
            for name, lines in batch.items()
        }
        tensors["is_robot"] = torch.tensor([row["source"] == ROBOT for row in rows])
        if "pixel_values" in prompts:
            tensors["pixel_values"] = torch.as_tensor(prompts["pixel_values"])
        return tensors

    def _answer_ids(self, row: dict[str, Any]) -> list[int]:
        """The answer's tokens as they stand behind the prompt; raises `ValueError` if they cannot be told apart."""
        if self.bins is not None and row["source"] == ROBOT:
            return self.bins.token_ids(row["completion"])  # bins are tokens that no text need spell
        prompt = self.processor.encode_text(row["prompt"])
        whole = self.processor.encode_text(row["prompt"] + row["completion"])
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise ValueError(
                f"got prompt {row['prompt']!r} and answer {row['completion']!r}, expected the prompt's tokens to "
                "be a beginning of the whole row's; end the prompt where no piece of the vocabulary crosses over, and "
                "give every row an answer"
            )
        return whole[len(prompt) :]

    def _check_length(self, row: dict[str, Any], tokens: int) -> None:
        if tokens > self.max_tokens:
            raise ValueError(
                f"got a row of {tokens} tokens (source {row['source']}, prompt {row['prompt'][:60]!r}...), expected "
                f"at most {self.max_tokens}; nothing is cut, so drop the row or raise max_position_embeddings"
            )
