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

Tokens that are forced (`prefix_actions` of `predict_actions`) are trees without branches in which every slot allows
the next one alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .draft_trees import Drafts, DraftTree, action_tokens, allowed_columns, drafts_for, forced_completions
from .recorded_passes import recorded_forward
from .verification_passes import Forward, Passes, PassInputs, Prompt, TreeCache


@dataclass
class DecodingCost:
    """Forward passes, the prefill included, and tree nodes they verified, over all rows."""

    passes: int = 0
    nodes: int = 0


@dataclass
class Row:
    """One observation while its action is decoded."""

    last: int  # the last accepted token, which the cache does not hold; to begin with, the prompt's
    position: int  # of that token
    drafts: Drafts
    forced: list[int] = field(default_factory=list)  # tokens that come next, whatever the model prefers
    tokens: list[int] = field(default_factory=list)  # of the action, accepted so far
    probabilities: list[float] = field(default_factory=list)  # of each among those the grammar allows in its place
    state: int = 0  # of the grammar behind them
    done: bool = False

    def accept(self, tokens: Sequence[int], probabilities: Sequence[float]) -> None:
        """Adds the tokens chosen one after the other, and those that must follow to the end of the action."""
        grammar, completions = self.drafts.grammar, forced_completions(self.drafts.grammar)
        self.position += len(tokens)
        self.forced = self.forced[len(tokens) :]
        for token, probability in zip(tokens, probabilities, strict=True):
            self.done = self.done or token == grammar.eos_token_id
            if self.done:
                return
            self.last, self.state = token, grammar.transitions[self.state][token]
            completion = completions[self.state]
            self.tokens += [token, *(completion or ())]
            self.probabilities += [probability] + [1.0] * len(completion or ())
            self.done = completion is not None

    def tree(self, widest: int, width: int | None = None) -> DraftTree:
        """The tree of its state, or of as many forced tokens as fit into `widest` slots; padded to a width."""
        if not self.forced:
            return self.drafts.tree(self.state, width)
        chain = forced_tree(self.drafts.grammar, self.state, self.forced, widest)
        return chain if width is None else chain.padded(width)


class TreeDecoder:
    """Decodes a batch of actions with so many tree nodes per pass and row.

    Args:
        temperature: sample at this temperature; `None` takes the most probable token.
        static: passes of shapes that repeat, for a GPU (`recorded_passes.py`); `None` for them where they suit.
    """

    def __init__(
        self, model: Any, grammar: Any, nodes: int, temperature: float | None = None, static: bool | None = False
    ):
        self.model, self.grammar, self.nodes, self.temperature = model, grammar, nodes, temperature
        self.static = static
        self.token_ids = action_tokens(grammar)
        self.widest = nodes + 1 + longest_forced_run(grammar)

    @torch.no_grad()
    def decode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pictures: dict[str, Any],
        histograms: Sequence[Any],
        forced: Sequence[list[int]] | None = None,
    ) -> tuple[list[Row], DecodingCost]:
        """Rows with their tokens, and what they cost.

        Args:
            input_ids, attention_mask: int64 [B, L], left-padded, lead-in included.
            pictures: what else the processor returned, such as `pixel_values`.
            histograms: of each row's data set, float [D, bins], or `None`.
            forced: tokens that each row's action begins with.
        """
        lengths, last = attention_mask.sum(dim=1).tolist(), input_ids[:, -1].tolist()
        drafts = [drafts_for(self.grammar, counts, self.nodes) for counts in histograms]
        begun = forced or [[]] * len(last)
        rows = [
            Row(token, length - 1, draft, tokens)
            for token, length, draft, tokens in zip(last, lengths, drafts, begun, strict=True)
        ]
        prompt, cost = Prompt(input_ids[:, :-1], attention_mask[:, :-1], pictures), DecodingCost()
        forward = self._forward(*prompt.ids.shape)
        try:
            passes = self._passes(prompt, forward)
            while not all(row.done for row in rows):
                counts = [len(row.tree(self.widest).tokens) for row in rows]
                fed = pack(rows, passes.width(max(counts)), self.widest)
                paths: list[list[int]] = []
                for row, count, found in zip(rows, counts, self._walk(passes, fed), strict=True):
                    paths.append([] if row.done else [slot for slot in range(count) if found[slot][0]])
                    chosen = [found[slot][1:] for slot in paths[-1]]
                    check_numbers(len(paths) - 1, len(rows), [probability for _, probability in chosen])
                    row.accept([self.token_ids[int(column)] for column, _ in chosen], [each for _, each in chosen])
                passes.keep(paths)
                cost.passes += 1
                cost.nodes += sum(counts) - len(rows)
        finally:
            forward.release()
        return rows, cost

    def _walk(self, passes: Passes, fed: PassInputs) -> list[list[list[float]]]:
        """What `verify` finds, read back once for the whole pass."""
        inputs = [passes.run(fed), *map(torch.from_numpy, fed[2:])]
        if self.temperature is not None:
            inputs += [inputs[0].new_tensor([self.temperature]), torch.empty_like(inputs[0]).exponential_()]
        return passes.forward.call(self.verify, *inputs).tolist()  # waits for the device

    @staticmethod
    def verify(
        logits: torch.Tensor,
        columns: torch.Tensor,
        parents: torch.Tensor,
        allowed: torch.Tensor,
        tree_mask: torch.Tensor,
        temperature: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Which slots are accepted, the column each chooses, and its probability: float32 [B, W, 3].

        Args:
            logits: float32 [B, W, G].
            columns, parents, allowed, tree_mask: as in `PassInputs`.
            temperature, noise: to sample, float32 [1], and [B, W, G] drawn from an exponential distribution.
        """
        scores = (logits if temperature is None else logits / temperature).masked_fill(~allowed, -torch.inf)
        probabilities = scores.softmax(dim=-1)
        # The lowest token id wins ties, as in `generate`. Divided by the noise, each wins as often as it is probable.
        chosen = (scores if noise is None else probabilities / noise).argmax(dim=-1, keepdim=True)
        taken = probabilities.gather(-1, chosen)
        if columns.shape[1] == 1:
            return torch.cat((torch.ones_like(taken), chosen, taken), dim=-1)
        agrees = columns == chosen[..., 0].gather(1, parents)
        agrees[:, 0].fill_(True)  # the last accepted token
        accepted = (agrees[:, None] | ~tree_mask).all(dim=-1, keepdim=True)
        return torch.cat((accepted, chosen, taken), dim=-1)

    def _passes(self, prompt: Prompt, forward: Forward) -> Passes:
        return Passes(self.model, prompt, forward)

    def _forward(self, rows: int, length: int) -> Forward:
        """What computes the passes for prompts of so many tokens."""
        widest, most = self.widest, self.grammar.max_tokens + 1
        if self.static is not False:
            sizes = rows, length, widest, most
            if (forward := recorded_forward(self.model, self.token_ids, sizes, bool(self.static))) is not None:
                return forward
        return Forward(self.model, self.token_ids, TreeCache(widest, widest + length + most))


@lru_cache(maxsize=16)
def longest_forced_run(grammar: Any) -> int:
    """The most tokens in a row that have no alternative, before the end of the action."""
    completions, longest = forced_completions(grammar), 0
    for state in range(len(grammar.transitions)):
        run = 0
        while completions[state] is None and len(grammar.transitions[state]) == 1:
            run, state = run + 1, next(iter(grammar.transitions[state].values()))
        longest = max(longest, run)
    return longest


def forced_tree(grammar: Any, state: int, forced: Sequence[int], widest: int) -> DraftTree:
    """A tree without branches of the first forced tokens, `widest` slots at most, from a state of the grammar."""
    tokens, states = [0, *forced[: widest - 1]], [state]
    for token in tokens[1:]:
        states.append(grammar.transitions[states[-1]][token])
    slots = np.arange(len(tokens))
    allowed, following = allowed_columns(grammar)[states], forced[: len(tokens)]
    allowed[: len(following)] = np.array(action_tokens(grammar)) == np.array(following)[:, None]
    columns = np.searchsorted(action_tokens(grammar), tokens)
    return DraftTree(
        np.array(tokens), np.maximum(slots - 1, 0), slots, columns, allowed, np.tri(len(tokens), dtype=bool)
    )


def pack(rows: Sequence[Row], width: int, widest: int) -> PassInputs:
    """The trees of rows, padded on the right to `width` slots; padding attends to itself alone."""
    trees = zip(*(row.tree(widest, width) for row in rows), strict=True)
    tokens, parents, depths, columns, allowed, mask = map(np.array, trees)
    last, positions = np.array([[row.last, row.position] for row in rows]).T[..., None]
    return PassInputs(np.where(depths == 0, last, tokens), depths + positions, columns, parents, allowed, mask)


def padded_probabilities(token_ids: np.ndarray, probabilities: Sequence[Sequence[float]]) -> np.ndarray:
    """Probabilities of all rows, float32 [B, L], padded with 1; `token_ids` is int64 [B, L]. See `check_numbers`."""
    padded = np.ones(token_ids.shape, dtype=np.float32)
    for row, each in enumerate(probabilities):
        check_numbers(row, len(padded), each)
        padded[row, : len(each)] = each
    return padded


def check_numbers(row: int, rows: int, probabilities: Sequence[float]) -> None:
    """Raises `ValueError` where a probability in a row is NaN."""
    if any(map(math.isnan, probabilities)):
        raise ValueError(
            f"got NaN as probabilities in row {row} of {rows}, expected numbers: pixel_values or weights hold NaN or "
            "infinity, or the model overflows; for float16, try bfloat16"
        )
