"""Exact fast decoding: one forward pass checks a tree of possible continuations of an action.

Decides: what is fed in a pass, who may attend to whom in it, which tokens are accepted, what the cache keeps. Refuses
to know: which continuations are likely (`action_prior.py`), what tokens mean, units.

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

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .action_prior import ActionPrior, Place, TokenTree, grow_tree, step


class TreeCache:
    """Keys and values in buffers, of which a pass keeps the slots it accepted.

    Args:
        capacity: slots per row to begin with.

    It has what transformers' attention layers and models use of a cache when the mask and the positions are given.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Writes [B, heads, fed, width] behind what is kept; returns everything up to there."""
        if layer_idx == len(self.keys):
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self.keys.append(keys.new_empty(shape))
            self.values.append(values.new_empty((*shape[:3], values.shape[3])))
        end = self.length + keys.shape[2]
        if end > self.keys[layer_idx].shape[2]:
            self.keys[layer_idx] = enlarged(self.keys[layer_idx], end)
            self.values[layer_idx] = enlarged(self.values[layer_idx], end)
        self.keys[layer_idx][:, :, self.length : end] = keys
        self.values[layer_idx][:, :, self.length : end] = values
        return self.keys[layer_idx][:, :, :end], self.values[layer_idx][:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots kept."""
        return self.length

    def keep(self, prompt: int, accepted: torch.Tensor) -> None:
        """Keeps, of what the last pass wrote, the first `prompt` slots and those named by `accepted` int64 [B, K]."""
        self.length += prompt
        source = (self.length - prompt + accepted)[:, None, :, None]
        end = self.length + accepted.shape[1]
        for buffer in (*self.keys, *self.values):
            rows = source.expand(-1, buffer.shape[1], -1, buffer.shape[3])
            buffer[:, :, self.length : end] = buffer.gather(2, rows)
        self.length = end


@dataclass
class Row:
    """One observation while its action is being written.

    Attributes:
        tokens, chances: accepted so far, and the probability of each among those allowed.
        spreads: per accepted token, the probability of every token that was allowed there.
        place: behind the last accepted token.
        pending: accepted tokens the cache does not hold.
        position: of the next token to be fed.
    """

    position: int
    prior: ActionPrior
    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    spreads: list[dict[int, float]] = field(default_factory=list)
    place: Place = field(default_factory=Place)
    pending: list[int] = field(default_factory=list)
    done: bool = False

    def accept(self, grammar: Any, token: int, spread: dict[int, float]) -> None:
        """Adds a token; a row is done where only EOS can follow."""
        self.tokens.append(token)
        self.chances.append(spread[token])
        self.spreads.append(spread)
        self.place = step(grammar, self.place, token)
        self.done = set(grammar.transitions[self.place.state]) == {grammar.eos_token_id}

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
    """

    def __init__(self, model: Any, grammar: Any, nodes: int, temperature: float | None = None):
        self.model, self.grammar, self.nodes, self.temperature = model, grammar, nodes, temperature
        head = model.get_output_embeddings()
        ids = sorted({token for state in grammar.transitions for token in state})
        self.column = {token: index for index, token in enumerate(ids)}
        # Of the output layer only the rows an action can be written with.
        self.head = head.weight[torch.tensor(ids, device=head.weight.device)]
        self.device, self.dtype = head.weight.device, head.weight.dtype

    @torch.no_grad()
    def decode(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: Any, priors: list[ActionPrior]
    ) -> tuple[list[Row], int]:
        """Rows with their tokens, and the number of forward passes.

        Args:
            input_ids, attention_mask: int64 [B, L], left-padded, lead-in included.
            pixel_values: float [pictures, C, H, W] or `None`.
            priors: one per row.
        """
        lengths = attention_mask.sum(dim=1).tolist()
        rows = [Row(int(length), prior) for length, prior in zip(lengths, priors, strict=True)]
        for row in rows:
            row.accept_forced(self.grammar)
        cache = TreeCache(input_ids.shape[1] + 2 * (self.grammar.max_tokens + self.nodes))
        seen = attention_mask.bool()
        passes = 0
        while not all(row.done for row in rows):
            prompt = (input_ids, attention_mask) if passes == 0 else None
            seen = self._pass(rows, cache, seen, prompt, pixel_values if passes == 0 else None)
            passes += 1
        return rows, passes

    def _pass(
        self, rows: list[Row], cache: TreeCache, seen: torch.Tensor, prompt: Any, pixel_values: Any
    ) -> torch.Tensor:
        """One forward pass and its walk; returns which cached slots are real, bool [B, slots]."""
        trees = [self._tree(row) for row in rows]
        fed = [self._layout(row, tree) for row, tree in zip(rows, trees, strict=True)]
        width = max(len(tokens) for tokens, _, _ in fed)
        ids, positions, sight = pack(fed, width)
        ids, positions, sight = ids.to(self.device), positions.to(self.device), sight.to(self.device)
        start = 0
        if prompt is not None:
            start = prompt[0].shape[1]
            ids = torch.cat((prompt[0].to(self.device), ids), dim=1)
            before = (prompt[1].to(self.device).cumsum(dim=1) - 1).clamp(min=0)
            positions = torch.cat((before, positions), dim=1)
        mask = self._mask(seen, sight, start)
        outputs = self.model.model(
            input_ids=ids,
            pixel_values=pixel_values,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        # Behind the last token known before the pass, and behind everything fed.
        hidden = outputs.last_hidden_state[:, max(start - 1, 0) :]
        logits = (hidden @ self.head.T).float().cpu().numpy().astype(np.float64)
        paths = [
            self._walk(row, tree, logits[index], offset=int(start > 0))
            for index, (row, tree) in enumerate(zip(rows, trees, strict=True))
        ]
        longest = max(len(path) for path in paths)
        kept = torch.zeros(len(rows), longest, dtype=torch.long)
        real = torch.zeros(len(rows), longest, dtype=torch.bool)
        for index, path in enumerate(paths):
            kept[index, : len(path)] = torch.tensor(path, dtype=torch.long)
            real[index, : len(path)] = True
        cache.keep(start, (kept + start).to(self.device))
        return torch.cat((seen, real.to(self.device)), dim=1)

    def _tree(self, row: Row) -> TokenTree:
        return TokenTree() if row.done else grow_tree(self.grammar, row.prior, row.place, self.nodes)

    def _layout(self, row: Row, tree: TokenTree) -> tuple[list[int], list[int], list[int]]:
        """Tokens to feed, their positions, and each one's parent among them (-1 for none)."""
        pending = [] if row.done else row.pending
        count = len(pending)
        tokens = [*pending, *tree.tokens]
        depths = [*range(count), *(count - 1 + depth for depth in tree.depths)]
        parents = [*range(-1, count - 1), *(count + parent if parent >= 0 else count - 1 for parent in tree.parents)]
        return tokens, [row.position + depth for depth in depths], parents

    def _mask(self, seen: torch.Tensor, sight: torch.Tensor, start: int) -> torch.Tensor:
        """What to add to attention scores, [B, 1, fed, cached + fed]; the first `start` fed tokens are a prompt."""
        batch, width = sight.shape[:2]
        cached = 0 if start else seen.shape[1]
        allowed = torch.zeros(batch, start + width, cached + start + width, dtype=torch.bool, device=self.device)
        allowed[:, start:, : cached + start] = seen[:, None]
        allowed[:, start:, cached + start :] = sight
        if start:
            prompt = seen[:, None].expand(-1, start, -1)
            if not self.model.prompt_is_bidirectional:
                prompt = prompt & torch.ones(start, start, dtype=torch.bool, device=self.device).tril()
            allowed[:, :start, :start] = prompt
        mask = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~allowed, torch.finfo(self.dtype).min)[:, None]

    def _walk(self, row: Row, tree: TokenTree, logits: np.ndarray, offset: int) -> list[int]:
        """Accepts tokens along the tree; returns which fed slots the row keeps."""
        if row.done:
            return []
        count = len(row.pending)
        path = list(range(count))
        node = -1
        while not row.done:
            spread = self._spread(row, logits[offset + count + node])
            token = self._pick(spread)
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
        allowed = list(self.grammar.transitions[row.place.state])
        if len(allowed) == 1:
            return {allowed[0]: 1.0}
        scores = logits[[self.column[token] for token in allowed]] / (self.temperature or 1.0)
        chances = np.exp(scores - scores.max())
        return dict(zip(allowed, (chances / chances.sum()).tolist()))

    def _pick(self, spread: dict[int, float]) -> int:
        if self.temperature is None:
            return max(spread, key=spread.__getitem__)
        tokens = list(spread)
        chances = torch.tensor([spread[token] for token in tokens], dtype=torch.float64)
        return tokens[int(torch.multinomial(chances, 1))]


def enlarged(buffer: torch.Tensor, needed: int) -> torch.Tensor:
    """A copy of [B, heads, slots, width] with at least `needed` slots."""
    more = max(needed, 2 * buffer.shape[2]) - buffer.shape[2]
    return torch.cat((buffer, buffer.new_empty(*buffer.shape[:2], more, buffer.shape[3])), dim=2)


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
    sight = np.zeros((len(fed), width, width), dtype=bool)
    sight[:] = np.eye(width, dtype=bool)
    for row, (tokens, places, parents) in enumerate(fed):
        ids[row, : len(tokens)] = tokens
        positions[row, : len(tokens)] = places
        for index, parent in enumerate(parents):
            if parent >= 0:
                sight[row, index] |= sight[row, parent]
    return torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(sight)
