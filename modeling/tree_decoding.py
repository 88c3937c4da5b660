"""Exact speculative decoding of actions: one forward pass verifies a draft tree of possible continuations.

A pass feeds, per row, the last accepted token and the tree of its grammar state (`draft_trees.py`). Every node attends
to the cached row, to the accepted token and to its own ancestors, at the position it would have if it were accepted:

    fed        .  | 0   1   00  01  10          accepted "+0.", then a tree of 5 nodes
    position   9  | 10  10  11  11  11
    node 01 attends to the cache, ".", 0 and itself

Then the tree is verified on the device. Every slot chooses among the tokens that the grammar allows behind it, all at
once; a node is accepted if it and all its ancestors are what their parents chose. The choice of the deepest accepted
slot is accepted, too, and fed in the next pass. At every step this is the choice of constrained decoding one token at
a time from the same logits, so the result is the same for any tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .draft_trees import Drafts, DraftTree, action_tokens, drafts_for, forced_completions
from .static_passes import StaticPasses, static_passes
from .verification_passes import DynamicPasses, PassInputs, Prompt


CACHED_GRAMMARS = 16


@dataclass
class DecodingCost:
    """Forward passes, the prefill included, and tree nodes they verified, over all rows."""

    passes: int = 0
    nodes: int = 0


@dataclass
class Row:
    """One observation while its action is decoded.

    Attributes:
        last: the last accepted token, which the cache does not hold; to begin with, the prompt's.
        position: of that token.
        drafts: its trees.
        tokens: of the action, accepted so far.
        probabilities: of each of them among those the grammar allows in its place.
        state: of the grammar behind them.
        done: whether the action is complete.
    """

    last: int
    position: int
    drafts: Drafts
    tokens: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    state: int = 0
    done: bool = False

    def accept(self, tokens: Sequence[int], probabilities: Sequence[float]) -> None:
        """Adds the tokens chosen one after the other, and those that must follow to the end of the action."""
        grammar, completions = self.drafts.grammar, forced_completions(self.drafts.grammar)
        self.position += len(tokens)
        for token, probability in zip(tokens, probabilities, strict=True):
            self.done = self.done or token == grammar.eos_token_id
            if self.done:
                return
            self.last, self.state = token, grammar.transitions[self.state][token]
            completion = completions[self.state]
            self.tokens += [token, *(completion or ())]
            self.probabilities += [probability] + [1.0] * len(completion or ())
            self.done = completion is not None


class TreeDecoder:
    """Decodes a batch of actions.

    Args:
        nodes: tree nodes per pass and row.
        temperature: sample at this temperature; `None` takes the most probable token.
        static: passes of shapes that repeat, for a GPU (`static_passes.py`); `None` for them where they suit.
    """

    def __init__(
        self, model: Any, grammar: Any, nodes: int, temperature: float | None = None, static: bool | None = False
    ):
        self.model, self.grammar, self.nodes, self.temperature = model, grammar, nodes, temperature
        self.static = static
        self.token_ids = action_tokens(grammar)

    @property
    def head(self) -> torch.Tensor:
        """The rows of the output layer that actions need, float [G, width]."""
        weight = self.model.get_output_embeddings().weight
        return weight[torch.tensor(self.token_ids, device=weight.device)]

    @torch.no_grad()
    def decode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pictures: dict[str, Any],
        histograms: Sequence[Any],
    ) -> tuple[list[Row], DecodingCost]:
        """Rows with their tokens, and what they cost.

        Args:
            input_ids, attention_mask: int64 [B, L], left-padded, lead-in included.
            pictures: what else the processor returned, such as `pixel_values`.
            histograms: of each row's data set, float [D, bins], or `None`.
        """
        lengths, last = attention_mask.sum(dim=1).tolist(), input_ids[:, -1].tolist()
        drafts = [drafts_for(self.grammar, counts, self.nodes) for counts in histograms]
        rows = [Row(token, length - 1, draft) for token, length, draft in zip(last, lengths, drafts, strict=True)]
        passes = self._passes(Prompt(input_ids[:, :-1], attention_mask[:, :-1], pictures))
        cost = DecodingCost()
        try:
            while not all(row.done for row in rows):
                trees = [row.drafts.tree(row.state) for row in rows]
                fed = pack(rows, trees, passes.width(max(len(tree.tokens) for tree in trees)))
                accepted, chosen, probabilities = self.verify(passes.run(fed), fed).tolist()  # waits for the device
                paths: list[list[int]] = []
                for index, (row, tree) in enumerate(zip(rows, trees, strict=True)):
                    slots = [] if row.done else [slot for slot in range(len(tree.tokens)) if accepted[index][slot]]
                    tokens = [self.token_ids[int(chosen[index][slot])] for slot in slots]
                    row.accept(tokens, [probabilities[index][slot] for slot in slots])
                    paths.append(slots)
                passes.keep(paths)
                cost.passes += 1
                cost.nodes += sum(len(tree.tokens) - 1 for tree in trees)
        finally:
            passes.close()
        return rows, cost

    def verify(self, logits: torch.Tensor, fed: PassInputs) -> torch.Tensor:
        """Which slots are accepted, the column each chooses, and its probability: float32 [3, B, W], on the device.

        Args:
            logits: float32 [B, W, G].
        """
        columns, parents, allowed, mask = (
            each.to(logits.device) for each in (fed.columns, fed.parents, fed.allowed, fed.tree_mask)
        )
        scores = (logits / (self.temperature or 1.0)).masked_fill(~allowed, -torch.inf)
        probabilities = scores.softmax(dim=-1)
        # Where a model computes NaN any allowed token will do: `padded_probabilities` raises an error.
        weights = torch.where(probabilities.isnan(), allowed.float(), probabilities)
        if self.temperature is None:
            chosen = weights.argmax(dim=-1, keepdim=True)  # the lowest token id wins ties, as in `generate`
        else:
            chosen = torch.multinomial(weights.flatten(0, 1), 1).view(*weights.shape[:2], 1)
        agrees = columns == chosen[..., 0].gather(1, parents)
        agrees[:, 0] = True
        accepted = ~(mask & ~agrees[:, None]).any(dim=-1)
        return torch.stack((accepted.float(), chosen[..., 0].float(), probabilities.gather(-1, chosen)[..., 0]))

    def _passes(self, prompt: Prompt) -> DynamicPasses | StaticPasses:
        most = self.grammar.max_tokens
        if self.static is not False:
            widest = self.nodes + 1 + longest_forced_run(self.grammar)
            if passes := static_passes(self.model, self.token_ids, prompt, widest, most, bool(self.static)):
                return passes
        return DynamicPasses(self.model, self.head, prompt, room=2 * (most + self.nodes))


@lru_cache(maxsize=CACHED_GRAMMARS)
def longest_forced_run(grammar: Any) -> int:
    """The most tokens in a row that have no alternative, before the end of the action."""
    completions, longest = forced_completions(grammar), 0
    for state in range(len(grammar.transitions)):
        run = 0
        while completions[state] is None and len(grammar.transitions[state]) == 1:
            run, state = run + 1, next(iter(grammar.transitions[state].values()))
        longest = max(longest, run)
    return longest


def pack(rows: Sequence[Row], trees: Sequence[DraftTree], width: int) -> PassInputs:
    """What rows feed, padded on the right to `width` slots; padding attends to itself alone."""
    ids, positions, columns, parents = np.zeros((4, len(rows), width), dtype=np.int64)
    allowed = np.ones((len(rows), width, trees[0].allowed.shape[1]), dtype=bool)
    mask = np.repeat(np.eye(width, dtype=bool)[None], len(rows), axis=0)
    for index, (row, tree) in enumerate(zip(rows, trees, strict=True)):
        count = len(tree.tokens)
        ids[index, :count], ids[index, 0] = tree.tokens, row.last
        positions[index, :count] = row.position + tree.depths
        columns[index, :count], parents[index, :count] = tree.columns, tree.parents
        allowed[index, :count], mask[index, :count, :count] = tree.allowed, tree.mask
    return PassInputs(*map(torch.from_numpy, (ids, positions, columns, parents, allowed, mask)))


def padded_probabilities(token_ids: np.ndarray, probabilities: Sequence[Sequence[float]]) -> np.ndarray:
    """Probabilities of all rows, float32 [B, L], padded with 1; `token_ids` is int64 [B, L].

    Raises:
        ValueError: where a probability is NaN: tokens chosen by it are no action.
    """
    padded = np.ones(token_ids.shape, dtype=np.float32)
    for row, each in enumerate(probabilities):
        padded[row, : len(each)] = each
    wrong = np.flatnonzero(np.isnan(padded).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"got NaN as probabilities in row {wrong[0]} of {len(padded)}, expected numbers: pixel_values or weights "
            "hold NaN or infinity, or the model overflows; for float16, try bfloat16"
        )
    return padded
