"""Exact fast decoding: one forward pass checks a tree of possible continuations of an action.

Decides: what is fed in a pass and which tokens are accepted. Refuses to know: which continuations are likely
(`action_prior.py`), how a pass is computed and what it keeps (`tree_passes.py`), what tokens mean, units.

A pass feeds, per row, the accepted tokens that the cache does not hold yet and the nodes of a tree. Every node attends
to the cached row, to the accepted tokens and to its own ancestors, at the position it would have if it were true:

    fed        + 0 .  | 0   1   00  01  10          accepted "+0.", then a tree of 5 nodes
    position   7 8 9  | 10  10  11  11  11
    node 01 sees the cache, "+0.", 0 and itself

Then the walk: the logits behind the last accepted token say which token comes next; if it is a node of the tree, its
own logits say which comes after it, and so on. The first token that is no node is accepted, too, and fed in the next
pass. What is accepted is at every step what constrained decoding one token at a time would choose from the same
logits, so the result is the same for any tree. Tokens the grammar forces need no logits at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .action_prior import ActionPrior, Place, TokenTree, grow_tree, step
from .static_passes import StaticPasses, static_passes
from .tree_passes import Fed, GrowingPasses, Prompt


GRAMMARS_KEPT = 16
STATES_KEPT = 4096
FEW = 40  # choices that are faster one by one than as an array; bins have 256


@dataclass
class DecodingCost:
    """Forward passes, the prompt's included, and tree nodes they checked, over all rows."""

    passes: int = 0
    nodes: int = 0


@dataclass
class Row:
    """One observation while its action is being written.

    Attributes:
        tokens: accepted so far.
        spreads: per accepted token, the probability of every token that was allowed there.
        place: behind the last accepted token.
        prior: what its trees are grown from; without one it has none.
        pending: accepted tokens the cache does not hold.
        position: of the next token to be fed.
    """

    position: int
    prior: ActionPrior | None
    tokens: list[int] = field(default_factory=list)
    spreads: list[dict[int, float]] = field(default_factory=list)
    place: Place = field(default_factory=Place)
    pending: list[int] = field(default_factory=list)
    done: bool = False

    def accept(self, grammar: Any, token: int, spread: dict[int, float]) -> None:
        """Adds a token; a row is done where only EOS can follow."""
        self.tokens.append(token)
        self.spreads.append(spread)
        self.place = step(grammar, self.place, token)
        following = grammar.transitions[self.place.state]
        self.done = len(following) == 1 and grammar.eos_token_id in following

    def accept_forced(self, grammar: Any) -> None:
        """Adds every token that has no alternative to the pending ones."""
        while not self.done and len(grammar.transitions[self.place.state]) == 1:
            token = next(iter(grammar.transitions[self.place.state]))
            self.accept(grammar, token, {token: 1.0})
            self.pending.append(token)


class TreeDecoder:
    """Decodes a batch of actions.

    Args:
        model: a model of the family.
        grammar: of its actions.
        nodes: tree nodes per pass and row; at least 1.
        temperature: sample at this temperature; `None` takes the most probable token.
        static: passes of shapes that repeat, for a GPU (`static_passes.py`); `None` for them where they suit.
    """

    def __init__(
        self, model: Any, grammar: Any, nodes: int, temperature: float | None = None, static: bool | None = False
    ):
        self.model, self.grammar, self.nodes, self.temperature = model, grammar, nodes, temperature
        self.static = static
        self.token_ids, self.column = written_tokens(grammar)

    @property
    def head(self) -> torch.Tensor:
        """Of the output layer the rows an action can be written with, float [G, width]."""
        weight = self.model.get_output_embeddings().weight
        return weight[torch.tensor(self.token_ids, device=weight.device)]

    @torch.no_grad()
    def decode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: Any,
        priors: Sequence[ActionPrior | None],
    ) -> tuple[list[Row], "DecodingCost"]:
        """Rows with their tokens, and what they cost.

        Args:
            input_ids, attention_mask: int64 [B, L], left-padded, lead-in included.
            pixel_values: float [pictures, C, H, W] or `None`.
            priors: one per row; `None` for rows to be decoded without a tree.
        """
        lengths = attention_mask.sum(dim=1).tolist()
        rows = [Row(int(length), prior) for length, prior in zip(lengths, priors, strict=True)]
        for row in rows:
            row.accept_forced(self.grammar)
        cost = DecodingCost()
        passes = self._passes(Prompt(input_ids, attention_mask, pixel_values))
        try:
            while not all(row.done for row in rows):
                self._step(rows, passes, offset=int(cost.passes == 0), cost=cost)
        finally:
            passes.close()
        return rows, cost

    def _passes(self, prompt: Prompt) -> GrowingPasses | StaticPasses:
        most = self.grammar.max_tokens
        if self.static is not False:
            widest = self.nodes + 1 + longest_forced_run(self.grammar)
            if passes := static_passes(self.model, self.token_ids, prompt, widest, most, asked=bool(self.static)):
                return passes
        return GrowingPasses(self.model, self.head, prompt, room=2 * (most + self.nodes))

    def _step(self, rows: list[Row], passes: GrowingPasses | StaticPasses, offset: int, cost: "DecodingCost") -> None:
        """One forward pass and its walk; in the first one, logits begin one place earlier (`offset` 1)."""
        trees = [self._tree(row) for row in rows]
        fed = [self._layout(row, tree) for row, tree in zip(rows, trees, strict=True)]
        width = passes.width(max(len(tokens) for tokens, _, _ in fed))
        logits = passes.run(Fed(*pack(fed, width))).cpu().numpy().astype(np.float64)
        passes.keep(
            [
                self._walk(row, tree, logits[index], offset)
                for index, (row, tree) in enumerate(zip(rows, trees, strict=True))
            ]
        )
        cost.passes += 1
        cost.nodes += sum(len(tree.tokens) for tree in trees)

    def _tree(self, row: Row) -> TokenTree:
        if row.done or row.prior is None:
            return TokenTree()
        return grow_tree(self.grammar, row.prior, row.place, self.nodes)

    def _layout(self, row: Row, tree: TokenTree) -> tuple[list[int], list[int], list[int]]:
        """Tokens to feed, their positions, and each one's parent among them (-1 for none)."""
        pending = [] if row.done else row.pending
        count = len(pending)
        tokens = [*pending, *tree.tokens]
        # Of a first node the parent is the last of the pending tokens, which stands one place before it.
        first = row.position + count - 1
        positions = [*range(row.position, first + 1), *[first + depth for depth in tree.depths]]
        parents = [*range(-1, count - 1), *[count + parent for parent in tree.parents]]
        return tokens, positions, parents

    def _walk(self, row: Row, tree: TokenTree, logits: np.ndarray, offset: int) -> list[int]:
        """Accepts tokens along the tree; returns which fed slots the row keeps."""
        if row.done:
            return []
        count = len(row.pending)
        path = list(range(count))
        node = -1
        while not row.done:
            spread = self._spread(row, logits[offset + count + node])
            token = self._pick(row, spread)
            row.accept(self.grammar, token, spread)
            following = tree.children.get((node, token))
            if following is None:
                row.pending = [token]
                break
            node = following
            path.append(count + node)
        row.position += len(path)
        row.accept_forced(self.grammar)
        return path

    def _spread(self, row: Row, logits: np.ndarray) -> dict[int, float]:
        """The probabilities of the tokens allowed next."""
        allowed = self.grammar.transitions[row.place.state]
        temperature = self.temperature or 1.0
        if len(allowed) > FEW:
            chances = logits[columns_of(self.grammar, row.place.state)]
            chances = np.exp((chances - chances.max()) / temperature)
            return dict(zip(allowed, (chances / chances.sum()).tolist(), strict=True))
        scores = logits.tolist()  # of a dozen numbers: faster than with arrays
        highest = max(scores[self.column[token]] for token in allowed)
        weights = [math.exp((scores[self.column[token]] - highest) / temperature) for token in allowed]
        total = sum(weights)
        return {token: weight / total for token, weight in zip(allowed, weights, strict=True)}

    def _pick(self, row: Row, spread: dict[int, float]) -> int:
        if self.temperature is None:
            return max(spread, key=spread.__getitem__)
        tokens = list(spread)
        chances = torch.tensor([spread[token] for token in tokens], dtype=torch.float64)
        return tokens[int(torch.multinomial(chances, 1))]


@lru_cache(maxsize=GRAMMARS_KEPT)
def written_tokens(grammar: Any) -> tuple[tuple[int, ...], dict[int, int]]:
    """The tokens an action can be written with, and the place of each among them."""
    token_ids = tuple(sorted({token for state in grammar.transitions for token in state}))
    return token_ids, {token: index for index, token in enumerate(token_ids)}


@lru_cache(maxsize=STATES_KEPT)
def columns_of(grammar: Any, state: int) -> np.ndarray:
    """Which of the tokens an action can be written with may follow in a state, int64."""
    _, column = written_tokens(grammar)
    return np.array([column[token] for token in grammar.transitions[state]])


@lru_cache(maxsize=GRAMMARS_KEPT)
def longest_forced_run(grammar: Any) -> int:
    """The most tokens in a row that have no alternative."""
    longest = 0
    for state in range(len(grammar.transitions)):
        run, following = 0, grammar.transitions[state]
        while len(following) == 1 and grammar.eos_token_id not in following:
            run, following = run + 1, grammar.transitions[next(iter(following.values()))]
        longest = max(longest, run)
    return longest


def pack(
    fed: list[tuple[list[int], list[int], list[int]]], width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of tokens, positions and parents as tensors, padded on the right.

    Returns:
        ids int64 [B, width], positions int64 [B, width], and who sees whom, bool [B, width, width]: each token itself
        and its ancestors. Padding sees only itself.
    """
    ids = np.zeros((len(fed), width), dtype=np.int64)
    positions = np.zeros((len(fed), width), dtype=np.int64)
    size = -(-width // 8)
    seen: list[bytes] = []  # of each token whom it sees, one bit each, the first token's lowest
    for row, (tokens, places, parents) in enumerate(fed):
        ids[row, : len(tokens)] = tokens
        positions[row, : len(tokens)] = places
        sights: list[int] = []
        for index, parent in enumerate(parents):
            sights.append(1 << index | (sights[parent] if parent >= 0 else 0))
        sights += [1 << index for index in range(len(parents), width)]
        seen += [sight.to_bytes(size, "little") for sight in sights]
    bits = np.frombuffer(b"".join(seen), dtype=np.uint8).reshape(len(fed), width, size)
    sight = np.unpackbits(bits, axis=2, count=width, bitorder="little").view(bool)
    return torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(sight)
