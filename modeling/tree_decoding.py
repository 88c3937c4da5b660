"""Exact speculative decoding of actions: one forward pass verifies a draft tree of possible continuations.

A pass feeds, per row, the accepted tokens that the cache does not hold yet and the nodes of a tree. Every node attends
to the cached row, to the accepted tokens and to its own ancestors, at the position it would have if it were accepted:

    fed        + 0 .  | 0   1   00  01  10          accepted "+0.", then a tree of 5 nodes
    position   7 8 9  | 10  10  11  11  11
    node 01 attends to the cache, "+0.", 0 and itself

Then the tree is verified: the logits of the last accepted token say which token comes next; if it is a node of the
tree, its own logits say which comes after it, and so on. The first token that is no node is accepted, too, and fed in
the next pass. At every step this is the choice of constrained decoding one token at a time from the same logits, so
the result is the same for any tree. Tokens the grammar forces need no logits at all.

While a GPU computes a pass, Python grows the trees that the next pass will probably need (`draft_trees.py`): where
verification leaves a tree is a guess, but most exits lead to one of a few trees.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from .draft_distribution import Cursor, DraftDistribution, advance
from .draft_trees import DraftTree, grow_tree, likely_exits
from .static_passes import StaticPasses, static_passes
from .token_probabilities import action_tokens, allowed_tokens, token_probabilities
from .verification_passes import DynamicPasses, PassInputs, Prompt


CACHED_GRAMMARS = 16
CACHED_MASKS = 16
DRAFTED_AHEAD = 2  # trees per row and pass at most: one more is needed in one pass of twenty, and takes memory


@dataclass
class DecodingCost:
    """Forward passes, the prefill included, and tree nodes they verified, over all rows."""

    passes: int = 0
    nodes: int = 0


@dataclass
class Row:
    """One observation while its action is decoded.

    Attributes:
        position: of the next token to be fed.
        draft: what its trees are grown from; without one it has none.
        tokens: accepted so far.
        logits: float32 [G], what each of them was chosen from; `None` for forced tokens.
        cursor: after the last accepted token.
        pending: accepted tokens that the cache does not hold and that will be fed.
    """

    position: int
    draft: DraftDistribution | None
    tokens: list[int] = field(default_factory=list)
    logits: list[np.ndarray | None] = field(default_factory=list)
    cursor: Cursor = field(default_factory=Cursor)
    pending: list[int] = field(default_factory=list)
    done: bool = False

    def accept(self, grammar: Any, token: int, logits: np.ndarray | None = None) -> None:
        """Adds a token; a row is done where only EOS can follow."""
        self.tokens.append(token)
        self.logits.append(logits)
        self.cursor = advance(grammar, self.cursor, token)
        following = grammar.transitions[self.cursor.state]
        self.done = len(following) == 1 and grammar.eos_token_id in following

    def accept_forced(self, grammar: Any) -> None:
        """Accepts every token that has no alternative; they become pending, unless the row is done."""
        while not self.done and len(grammar.transitions[self.cursor.state]) == 1:
            token = next(iter(grammar.transitions[self.cursor.state]))
            self.accept(grammar, token)
            self.pending.append(token)
        if self.done:
            self.pending = []

    def probabilities(self, grammar: Any, temperature: float | None) -> np.ndarray:
        """Float64 [L], see `token_probabilities`."""
        forced = np.zeros(len(action_tokens(grammar)[0]), dtype=np.float32)
        logits = np.stack([forced if each is None else each for each in self.logits])
        return token_probabilities(grammar, self.tokens, logits, temperature or 1.0)


class TreeDecoder:
    """Decodes a batch of actions.

    Args:
        nodes: tree nodes per pass and row; at least 1.
        temperature: sample at this temperature; `None` takes the most probable token.
        static: passes of shapes that repeat, for a GPU (`static_passes.py`); `None` for them where they suit.
    """

    def __init__(
        self, model: Any, grammar: Any, nodes: int, temperature: float | None = None, static: bool | None = False
    ):
        self.model, self.grammar, self.nodes, self.temperature = model, grammar, nodes, temperature
        self.static = static
        self.token_ids, _ = action_tokens(grammar)

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
        pixel_values: Any,
        drafts: Callable[[], Sequence[DraftDistribution | None]],
    ) -> tuple[list[Row], "DecodingCost"]:
        """Rows with their tokens, and what they cost.

        Args:
            input_ids, attention_mask: int64 [B, L], left-padded, lead-in included.
            pixel_values: float [pictures, C, H, W] or `None`.
            drafts: called once the encoders are running; gives one per row, `None` for rows decoded without a tree.
        """
        lengths = attention_mask.sum(dim=1).tolist()
        cost = DecodingCost()
        passes = self._passes(Prompt(input_ids, attention_mask, pixel_values))
        try:
            passes.encode_pictures()
            rows = [Row(int(length), draft) for length, draft in zip(lengths, drafts(), strict=True)]
            for row in rows:
                row.accept_forced(self.grammar)
            while not all(row.done for row in rows):
                self._step(rows, passes, offset=int(cost.passes == 0), cost=cost)
        finally:
            passes.close()
        return rows, cost

    def _passes(self, prompt: Prompt) -> DynamicPasses | StaticPasses:
        most = self.grammar.max_tokens
        if self.static is not False:
            widest = self.nodes + 1 + longest_forced_run(self.grammar)
            requested = bool(self.static)
            if passes := static_passes(self.model, self.token_ids, prompt, widest, most, requested):
                return passes
        return DynamicPasses(self.model, self.head, prompt, room=2 * (most + self.nodes))

    def _step(self, rows: list[Row], passes: DynamicPasses | StaticPasses, offset: int, cost: "DecodingCost") -> None:
        """Drafts, runs and verifies one pass; in the prefill, logits begin one position earlier (`offset` 1)."""
        trees, fed = self._next(rows, passes)
        computed = passes.run(fed)
        self._draft_ahead(rows, trees, is_computing(computed.device))
        logits = computed.to("cpu", copy=True).numpy()  # kept, and the next pass may write where this one did
        self._accept(rows, trees, logits, passes, offset)
        cost.passes += 1
        cost.nodes += sum(len(tree.tokens) for tree in trees)

    def _next(self, rows: list[Row], passes: DynamicPasses | StaticPasses) -> tuple[list[DraftTree], PassInputs]:
        """The rows' trees, and what is fed with them."""
        trees = [
            DraftTree()
            if row.done or row.draft is None
            else grow_tree(self.grammar, row.draft, row.cursor, self.nodes)
            for row in rows
        ]
        fed = [(row.position, row.pending, tree) for row, tree in zip(rows, trees, strict=True)]
        width = passes.width(max(len(pending) + len(tree.tokens) for _, pending, tree in fed))
        return trees, PassInputs(*pack(fed, width))

    def _accept(
        self,
        rows: list[Row],
        trees: list[DraftTree],
        logits: np.ndarray,
        passes: DynamicPasses | StaticPasses,
        offset: int,
    ) -> None:
        """Verifies every row's tree; `logits` float32 [B, W, G]."""
        passes.keep(
            [self._verify(row, tree, logits[index], offset) for index, (row, tree) in enumerate(zip(rows, trees))]
        )

    def _draft_ahead(self, rows: list[Row], trees: list[DraftTree], waiting: Callable[[], bool]) -> None:
        """Grows the trees that rows will probably need next, the most probable first, as long as there is time."""
        exits: list[tuple[float, int, Cursor]] = []
        for index, (row, tree) in enumerate(zip(rows, trees, strict=True)):
            if not waiting():
                return
            if row.draft is not None:
                found = likely_exits(self.grammar, row.draft, tree)[:DRAFTED_AHEAD]
                exits += [(probability, index, cursor) for probability, cursor in found]
        for _, index, cursor in sorted(exits, key=itemgetter(0), reverse=True):
            if not waiting():
                return
            draft = rows[index].draft
            assert draft is not None
            _ = grow_tree(self.grammar, draft, cursor, self.nodes).arrays  # cached, the tree by its distribution

    def _verify(self, row: Row, tree: DraftTree, logits: np.ndarray, offset: int) -> list[int]:
        """Accepts tokens along the tree; returns which fed tokens the row keeps."""
        if row.done:
            return []
        count = len(row.pending)
        path = list(range(count))
        node = -1
        while not row.done:
            here = logits[offset + count + node]
            token = self._choose(row, here)
            row.accept(self.grammar, token, here)
            following = tree.child(node, token)
            if following is None:
                row.pending = [token]
                break
            node = following
            path.append(count + node)
        row.position += len(path)
        row.accept_forced(self.grammar)
        return path

    def _choose(self, row: Row, logits: np.ndarray) -> int:
        """One of the tokens allowed next; `logits` float32 [G]."""
        columns, tokens = allowed_tokens(self.grammar, row.cursor.state)
        scores = logits[columns]
        if self.temperature is None:
            return tokens[int(scores.argmax())]
        probabilities = torch.from_numpy(scores).double().div(self.temperature).softmax(dim=0)
        if bool(probabilities.isnan().any()):  # nothing can be drawn; `padded_probabilities` raises
            return tokens[0]
        return tokens[int(torch.multinomial(probabilities, 1))]


def is_computing(device: torch.device) -> Callable[[], bool]:
    """A function that tells whether a device is still busy with the work given so far; a CPU never is."""
    if device.type != "cuda":
        return lambda: False
    event = torch.cuda.current_stream(device).record_event()
    return lambda: not event.query()


@lru_cache(maxsize=CACHED_GRAMMARS)
def longest_forced_run(grammar: Any) -> int:
    """The most tokens in a row that have no alternative."""
    longest = 0
    for state in range(len(grammar.transitions)):
        run, following = 0, grammar.transitions[state]
        while len(following) == 1 and grammar.eos_token_id not in following:
            run, following = run + 1, grammar.transitions[next(iter(following.values()))]
        longest = max(longest, run)
    return longest


@lru_cache(maxsize=CACHED_MASKS)
def identity_mask(width: int) -> np.ndarray:
    """Bool [W, W]: each token attends to itself."""
    return np.eye(width, dtype=bool)


@lru_cache(maxsize=CACHED_MASKS)
def causal_mask(count: int) -> np.ndarray:
    """Bool [count, count]: each token attends to itself and those before it."""
    return np.tri(count, dtype=bool)


def pack(
    fed: Sequence[tuple[int, list[int], DraftTree]], width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What rows feed as tensors, padded on the right.

    Args:
        fed: per row the position of its next token, the pending tokens, and a tree behind them.
        width: W.

    Returns:
        ids int64 [B, W], positions int64 [B, W] and the tree mask bool [B, W, W]: each token attends to itself, the
        pending ones before it and its ancestors in the tree. Padding attends to itself alone.
    """
    ids = np.zeros((len(fed), width), dtype=np.int64)
    positions = np.zeros((len(fed), width), dtype=np.int64)
    tree_mask = np.repeat(identity_mask(width)[None], len(fed), axis=0)
    for row, (position, pending, tree) in enumerate(fed):
        count, end = len(pending), len(pending) + len(tree.tokens)
        ids[row, :count] = pending
        positions[row, :count] = range(position, position + count)
        tree_mask[row, :count, :count] = causal_mask(count)
        if end > count:
            tokens, depths, among_nodes = tree.arrays
            ids[row, count:end] = tokens
            positions[row, count:end] = position + count - 1 + depths  # the first nodes behind the pending tokens
            tree_mask[row, count:end, :count] = True
            tree_mask[row, count:end, count:end] = among_nodes
    return torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(tree_mask)
