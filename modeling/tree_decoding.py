"""Exact fast decoding: one forward pass checks a tree of possible continuations of an action.

Decides: what is fed in a pass, which tokens are accepted, what is done while a GPU computes. Refuses to know: which
continuations are likely (`token_trees.py`), how a pass is computed and what it keeps (`tree_passes.py`), what tokens
mean, units.

A pass feeds, per row, the accepted tokens that the cache does not hold yet and the nodes of a tree. Every node attends
to the cached row, to the accepted tokens and to its own ancestors, at the position it would have if it were true:

    fed        + 0 .  | 0   1   00  01  10          accepted "+0.", then a tree of 5 nodes
    position   7 8 9  | 10  10  11  11  11
    node 01 sees the cache, "+0.", 0 and itself

Then the walk: the logits behind the last accepted token say which token comes next; if it is a node of the tree, its
own logits say which comes after it, and so on. The first token that is no node is accepted, too, and fed in the next
pass. What is accepted is at every step what constrained decoding one token at a time would choose from the same
logits, so the result is the same for any tree. Tokens the grammar forces need no logits at all.

A GPU computes a pass while Python goes on. It uses the time to grow the trees that the next pass will probably need:
where a walk leaves a tree is a guess, but most places it may be left at lead to one of a few trees.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from .action_choices import allowed_in, token_chances, written_tokens
from .action_prior import ActionPrior, Place, step
from .static_passes import StaticPasses, static_passes
from .token_trees import TokenTree, grow_tree, likely_ends
from .tree_passes import Fed, GrowingPasses, Prompt


GRAMMARS_KEPT = 16
WIDTHS_KEPT = 16
FORESEEN = 2  # trees grown per row and pass at most: one more is needed in one pass of twenty, and takes memory


@dataclass
class DecodingCost:
    """Forward passes, the prompt's included, and tree nodes they checked, over all rows."""

    passes: int = 0
    nodes: int = 0


@dataclass
class Row:
    """One observation while its action is being written.

    Attributes:
        position: of the next token to be fed.
        prior: what its trees are grown from; without one it has none.
        tokens: accepted so far.
        logits: float32 [G], what each of them was chosen from; `None` where none were looked at, since it was forced.
        place: behind the last accepted token.
        pending: accepted tokens the cache does not hold and that will be fed.
    """

    position: int
    prior: ActionPrior | None
    tokens: list[int] = field(default_factory=list)
    logits: list[np.ndarray | None] = field(default_factory=list)
    place: Place = field(default_factory=Place)
    pending: list[int] = field(default_factory=list)
    done: bool = False

    def accept(self, grammar: Any, token: int, logits: np.ndarray | None = None) -> None:
        """Adds a token; a row is done where only EOS can follow."""
        self.tokens.append(token)
        self.logits.append(logits)
        self.place = step(grammar, self.place, token)
        following = grammar.transitions[self.place.state]
        self.done = len(following) == 1 and grammar.eos_token_id in following

    def accept_forced(self, grammar: Any) -> None:
        """Adds every token that has no alternative to the pending ones, of which a row that is done has none."""
        while not self.done and len(grammar.transitions[self.place.state]) == 1:
            token = next(iter(grammar.transitions[self.place.state]))
            self.accept(grammar, token)
            self.pending.append(token)
        if self.done:
            self.pending = []

    def chances(self, grammar: Any, temperature: float | None) -> np.ndarray:
        """Float64 [L], see `token_chances`."""
        unasked = np.zeros(len(written_tokens(grammar)[0]), dtype=np.float32)
        logits = np.stack([unasked if each is None else each for each in self.logits])
        return token_chances(grammar, self.tokens, logits, temperature or 1.0)


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
        self.token_ids, _ = written_tokens(grammar)

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
        priors: Callable[[], Sequence[ActionPrior | None]],
    ) -> tuple[list[Row], "DecodingCost"]:
        """Rows with their tokens, and what they cost.

        Args:
            input_ids, attention_mask: int64 [B, L], left-padded, lead-in included.
            pixel_values: float [pictures, C, H, W] or `None`.
            priors: gives one per row, and is asked when the encoders are at work; `None` for rows to be decoded
                without a tree.
        """
        lengths = attention_mask.sum(dim=1).tolist()
        cost = DecodingCost()
        passes = self._passes(Prompt(input_ids, attention_mask, pixel_values))
        try:
            passes.encode_pictures()
            rows = [Row(int(length), prior) for length, prior in zip(lengths, priors(), strict=True)]
            for row in rows:
                row.accept_forced(self.grammar)
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
        trees, fed = self._next(rows, passes)
        computed = passes.run(fed)
        self._foresee(rows, trees, under_way(computed.device))
        logits = computed.to("cpu", copy=True).numpy()  # kept, and the next pass may write where this one did
        self._accept(rows, trees, logits, passes, offset)
        cost.passes += 1
        cost.nodes += sum(len(tree.tokens) for tree in trees)

    def _next(self, rows: list[Row], passes: GrowingPasses | StaticPasses) -> tuple[list[TokenTree], Fed]:
        """The rows' trees, and what is fed with them."""
        trees = [self._tree(row) for row in rows]
        fed = [(row.position, row.pending, tree) for row, tree in zip(rows, trees, strict=True)]
        width = passes.width(max(len(pending) + len(tree.tokens) for _, pending, tree in fed))
        return trees, Fed(*pack(fed, width))

    def _accept(
        self,
        rows: list[Row],
        trees: list[TokenTree],
        logits: np.ndarray,
        passes: GrowingPasses | StaticPasses,
        offset: int,
    ) -> None:
        """Walks every row's tree; `logits` float32 [B, W, G]."""
        passes.keep(
            [self._walk(row, tree, logits[index], offset) for index, (row, tree) in enumerate(zip(rows, trees))]
        )

    def _tree(self, row: Row) -> TokenTree:
        if row.done or row.prior is None:
            return TokenTree()
        return grow_tree(self.grammar, row.prior, row.place, self.nodes)

    def _foresee(self, rows: list[Row], trees: list[TokenTree], waiting: Callable[[], bool]) -> None:
        """Grows the trees that rows will probably need next, the most probable first, as long as there is time."""
        ends: list[tuple[float, int, Place]] = []
        for index, (row, tree) in enumerate(zip(rows, trees, strict=True)):
            if not waiting():
                return
            if row.prior is not None:
                found = likely_ends(self.grammar, row.prior, tree)[:FORESEEN]
                ends += [(chance, index, place) for chance, place in found]
        for _, index, place in sorted(ends, key=itemgetter(0), reverse=True):
            if not waiting():
                return
            prior = rows[index].prior
            assert prior is not None
            _ = grow_tree(self.grammar, prior, place, self.nodes).arrays  # kept, the tree by its prior

    def _walk(self, row: Row, tree: TokenTree, logits: np.ndarray, offset: int) -> list[int]:
        """Accepts tokens along the tree; returns which fed slots the row keeps."""
        if row.done:
            return []
        count = len(row.pending)
        path = list(range(count))
        node = -1
        while not row.done:
            here = logits[offset + count + node]
            token = self._pick(row, here)
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

    def _pick(self, row: Row, logits: np.ndarray) -> int:
        """One of the tokens allowed next; `logits` float32 [G]."""
        columns, tokens = allowed_in(self.grammar, row.place.state)
        scores = logits[columns]
        if self.temperature is None:
            return tokens[int(scores.argmax())]
        chances = torch.from_numpy(scores).double().div(self.temperature).softmax(dim=0)
        if bool(chances.isnan().any()):  # nothing can be drawn; whoever asks for its probability learns why
            return tokens[0]
        return tokens[int(torch.multinomial(chances, 1))]


def under_way(device: torch.device) -> Callable[[], bool]:
    """Whether a device is still busy with what it was told before this; a CPU never is, since it computes at once."""
    if device.type != "cuda":
        return lambda: False
    told = torch.cuda.current_stream(device).record_event()
    return lambda: not told.query()


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


@lru_cache(maxsize=WIDTHS_KEPT)
def own_sight(width: int) -> np.ndarray:
    """Bool [W, W]: each token sees itself."""
    return np.eye(width, dtype=bool)


@lru_cache(maxsize=WIDTHS_KEPT)
def ordered_sight(count: int) -> np.ndarray:
    """Bool [count, count]: each token sees itself and those before it."""
    return np.tri(count, dtype=bool)


def pack(
    fed: Sequence[tuple[int, list[int], TokenTree]], width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What rows feed as tensors, padded on the right.

    Args:
        fed: per row the position of its next token, the accepted tokens to be fed, and a tree behind them.
        width: W.

    Returns:
        ids int64 [B, W], positions int64 [B, W], and who sees whom, bool [B, W, W]: each token itself, the accepted
        ones before it and its ancestors in the tree. Padding sees only itself.
    """
    ids = np.zeros((len(fed), width), dtype=np.int64)
    positions = np.zeros((len(fed), width), dtype=np.int64)
    sight = np.repeat(own_sight(width)[None], len(fed), axis=0)
    for row, (position, pending, tree) in enumerate(fed):
        count, end = len(pending), len(pending) + len(tree.tokens)
        ids[row, :count] = pending
        positions[row, :count] = range(position, position + count)
        sight[row, :count, :count] = ordered_sight(count)
        if end > count:
            tokens, depths, among_nodes = tree.arrays
            ids[row, count:end] = tokens
            positions[row, count:end] = position + count - 1 + depths  # the first nodes behind the pending tokens
            sight[row, count:end, :count] = True
            sight[row, count:end, count:end] = among_nodes
    return torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(sight)
