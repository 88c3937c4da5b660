"""Draft trees: the most probable continuations of an action under the draft distribution, verified in one pass."""

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any

import numpy as np

from .action_grammar import ActionGrammar, BinGrammar
from .draft_distribution import CACHED_STEPS, Cursor, DraftDistribution, advance, digit_row


CACHED_BRANCHES = 2**16  # of a grammar, some tens of megabytes
CACHED_GRAMMARS = 16
MAX_NODES = 2**20  # of a tree


@dataclass
class DraftTree:
    """Nodes in an order in which every parent comes before its children. Parent -1 is the last accepted token.

    Attributes:
        start: the branch that the tree begins at.
        tokens, parents, depths: of each node; the first ones have depth 1.
        children: `edge(parent, token)` -> node.
        probabilities: of each node under the draft distribution.
        branches: of each node, what may follow it.
    """

    start: "Branch | None" = field(default=None, repr=False, compare=False)
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[int, int] = field(default_factory=dict)
    probabilities: list[float] = field(default_factory=list)
    branches: list["Branch"] = field(default_factory=list, repr=False, compare=False)

    def child(self, parent: int, token: int) -> int | None:
        """The node of a token after a parent, if the tree has it."""
        return self.children.get(edge(parent, token))

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens and depths int64 [N]; tree mask bool [N, N]: each node attends to itself and its ancestors."""
        count = len(self.tokens)
        size = -(-count // 8)
        masks: list[int] = []  # of each node, one bit for each node it attends to, the first node's lowest
        for node, parent in enumerate(self.parents):
            masks.append(1 << node | (masks[parent] if parent >= 0 else 0))
        packed = b"".join(mask.to_bytes(size, "little") for mask in masks)
        bits = np.frombuffer(packed, dtype=np.uint8).reshape(count, size)
        tree_mask = np.unpackbits(bits, axis=1, count=count, bitorder="little").view(bool)
        return np.array(self.tokens, dtype=np.int64), np.array(self.depths, dtype=np.int64), tree_mask


def edge(parent: int, token: int) -> int:
    """A parent and a token as one number: of thousands of pairs, Python's garbage collector would keep track."""
    return parent + token * MAX_NODES


def grow_tree(grammar: Any, draft: DraftDistribution, start: Cursor, nodes: int) -> DraftTree:
    """The `nodes` most probable continuations of `start`, best first.

    A continuation is at most as probable as its prefix, so taking the best one at a time gives, of all trees of this
    size, the one from which the most tokens are expected to be accepted.
    """
    branch = branch_at(grammar, start)
    known = draft.trees.get((branch, nodes))
    if known is not None:
        return known
    tree = draft.trees[branch, nodes] = DraftTree(branch)
    tokens, parents, depths, children = tree.tokens, tree.parents, tree.depths, tree.children
    probabilities, branches = tree.probabilities, tree.branches
    # The best continuation of each parent that is not taken yet: -probability, parent, its rank, -the parent's
    # probability, the parent's branch, all its continuations. Most parents get no child: until one gets its first,
    # its continuations are `None`.
    best = _best_probability(grammar, draft, branch)
    heap: list[Any] = [(-best, -1, 0, -1.0, branch, None)] if best else []
    while heap and len(tokens) < nodes:
        probability, parent, rank, above, branch, options = heap[0]
        if options is None:
            options = _ordered_options(grammar, draft, branch)
        token, node = options[rank][0], len(tokens)
        reached = branch.following.get(token) or _follow(grammar, branch, token)
        tokens.append(token)
        parents.append(parent)
        depths.append(1 if parent < 0 else depths[parent] + 1)
        children[parent + token * MAX_NODES] = node  # `edge`, without the call
        probabilities.append(-probability)
        branches.append(reached)
        rank += 1
        if rank < len(options):
            heapq.heapreplace(heap, (above * options[rank][1], parent, rank, above, branch, options))
        else:
            heapq.heappop(heap)
        if best := _best_probability(grammar, draft, reached):
            heapq.heappush(heap, (probability * best, node, 0, probability, reached, None))
    return tree


def likely_exits(grammar: Any, draft: DraftDistribution, tree: DraftTree) -> list[tuple[float, Cursor]]:
    """Where verification will probably leave a tree, most probable first: probabilities and cursors.

    The next trees may be grown from these cursors, which lie after the first token that is no node and those that the
    grammar forces. Where all such tokens of a node lead to the same branch, it stands for all; else the most probable
    one stands for itself.
    """
    if tree.start is None:
        return []
    taken = [0] * (len(tree.tokens) + 1)  # of each node's continuations, the start's first; the best ones are
    left = [1.0, *tree.probabilities]
    for parent, probability in zip(tree.parents, tree.probabilities):
        taken[parent + 1] += 1
        left[parent + 1] -= probability
    ends: defaultdict[Branch, float] = defaultdict(float)
    nodes = zip([tree.start, *tree.branches], [1.0, *tree.probabilities], taken, left)
    for branch, probability, count, mass in nodes:
        options = _ordered_options(grammar, draft, branch)
        if count < len(options):
            first, last = (_after_forced(grammar, branch, options[rank][0]) for rank in (count, -1))
            if first is not None:
                ends[first] += mass if first is last else probability * options[count][1]
    return sorted(((mass, branch.cursor) for branch, mass in ends.items()), key=itemgetter(0), reverse=True)


def _after_forced(grammar: Any, branch: "Branch", token: int) -> "Branch | None":
    """The branch after a token and those that have no alternative; `None` where the action is complete."""
    if token not in branch.after_forced:
        reached = branch.following.get(token) or _follow(grammar, branch, token)
        while len(grammar.transitions[reached.cursor.state]) == 1 and reached.tokens:
            reached = _follow(grammar, reached, reached.tokens[0])
        branch.after_forced[token] = reached if reached.tokens else None
    return branch.after_forced[token]


def _best_probability(grammar: Any, draft: DraftDistribution, branch: "Branch") -> float:
    """The probability of the most probable continuation given the cursor; 0 where there is none."""
    if branch.row is not None:
        return draft.best_digit_probabilities[branch.row]
    options = branch.uniform
    if options is None:
        options = _ordered_options(grammar, draft, branch)
    return options[0][1] if options else 0.0


def _ordered_options(grammar: Any, draft: DraftDistribution, branch: "Branch") -> list[tuple[int, float]]:
    """As `_options`, most probable first; cached, since many paths lead to the same branch."""
    options = draft.options.get(branch)
    if options is None:
        options = sorted(_options(grammar, draft, branch), key=itemgetter(1), reverse=True)
        draft.options[branch] = options
    return options


def _options(grammar: Any, draft: DraftDistribution, branch: "Branch") -> list[tuple[int, float]]:
    """Tokens that may follow, EOS excepted, with their probabilities given the cursor."""
    if branch.uniform is not None:
        return branch.uniform
    if branch.row is not None:
        return list(zip(branch.tokens, draft.digit_probabilities[branch.row].tolist(), strict=True))
    cursor = branch.cursor
    if isinstance(grammar, BinGrammar):
        edges = grammar.strings.edges
        bins = draft.masses(cursor.value, np.append(edges, edges[-1]))  # the last bin holds the last edge alone
        masses = [float(bins[int(text)]) + 1e-9 for text in branch.texts]
    elif branch.decimals is not None:
        by_digit = draft.decimal_masses(cursor.value, cursor.prefix[0] == "-", branch.decimals)
        masses = [
            _text_mass(grammar, draft, cursor, text) if digit is None else by_digit[digit]
            for text, digit in zip(branch.texts, branch.digits, strict=True)
        ]
    else:
        masses = [_text_mass(grammar, draft, cursor, text) for text in branch.texts]
    total = sum(masses) or 1.0
    return [(token, mass / total) for token, mass in zip(branch.tokens, masses, strict=True) if mass > 0]


@dataclass(eq=False, slots=True)
class Branch:
    """A cursor and what may follow there, EOS excepted, as far as it is the same for every draft distribution.

    Attributes:
        tokens, texts, digits: what may follow; the digit is `None` where it is no token of its own.
        uniform: each token with the same probability, where no distribution tells them apart.
        decimals: what is already written behind the point of a value below 1.
        row: of a distribution's ten digits, where exactly these follow.
        following: the branches after tokens that were taken before.
        after_forced: likewise, after the tokens that a token forces, too; `None` where nothing follows.
    """

    cursor: Cursor
    tokens: list[int]
    texts: list[str]
    digits: list[int | None]
    uniform: list[tuple[int, float]] | None = None
    decimals: str | None = None
    row: int | None = None
    following: dict[int, "Branch"] = field(default_factory=dict, repr=False)
    after_forced: dict[int, "Branch | None"] = field(default_factory=dict, repr=False)


def branch_at(grammar: Any, cursor: Cursor) -> Branch:
    """The branch of a cursor, cached for all later actions.

    Cursors from which the same trees grow share a branch: decimals finer than the grid do not matter. (In legacy style
    they do, since a number may end after any of them.)
    """
    decimals = len(cursor.prefix.partition(".")[2])
    if decimals > 2 and grammar.strings.style != "legacy":
        cursor = Cursor(cursor.state, cursor.value, "0." + "0" * decimals)
    branches = _branches(grammar)
    branch = branches.get(cursor)
    if branch is None:
        if len(branches) >= CACHED_BRANCHES:
            branches.clear()
        branch = branches[cursor] = _new_branch(grammar, cursor)
    return branch


@lru_cache(maxsize=CACHED_GRAMMARS)
def _branches(grammar: Any) -> dict[Cursor, Branch]:
    return {}


def _follow(grammar: Any, branch: Branch, token: int) -> Branch:
    """The branch after one more token."""
    reached = branch.following[token] = branch_at(grammar, advance(grammar, branch.cursor, token))
    return reached


def _new_branch(grammar: Any, cursor: Cursor) -> Branch:
    tokens, texts, digits, uniform = _allowed(grammar, cursor.state)
    branch = Branch(cursor, tokens, texts, digits)
    prefix, values = cursor.prefix, grammar.strings.action_dim * grammar.strings.horizon
    if len(tokens) <= 1:
        branch.uniform = uniform
    elif not isinstance(grammar, BinGrammar) and cursor.value < values and "0." in prefix[:3] and "e" not in prefix:
        branch.decimals = prefix.partition(".")[2]
        if len(branch.decimals) > 2 and None not in digits:
            branch.uniform = uniform  # finer than the grid
        elif digits == list(range(10)):
            branch.row = digit_row(cursor.value, prefix[0] == "-", branch.decimals)
    return branch


@lru_cache(maxsize=CACHED_STEPS)
def _allowed(grammar: Any, state: int) -> tuple[list[int], list[str], list[int | None], list[tuple[int, float]]]:
    """What may follow in a state, EOS excepted: tokens, texts, digits, and each token with the same probability."""
    tokens = [token for token in grammar.transitions[state] if token != grammar.eos_token_id]
    texts = [grammar.text_of[token] for token in tokens]
    digits = [int(text) if len(text) == 1 and text.isdigit() else None for text in texts]
    return tokens, texts, digits, [(token, 1 / len(tokens)) for token in tokens]


def _text_mass(grammar: ActionGrammar, draft: DraftDistribution, cursor: Cursor, piece: str) -> float:
    """The mass of the values a piece leaves possible; of two values, where a piece reaches into the next one."""
    mass, value, prefix = 1.0, cursor.value, cursor.prefix
    ends_value = piece[0] in ", \n"
    if ends_value and grammar.strings.style == "legacy" and piece[0] == ",":
        mass = _interval_mass(draft, value, prefix, closed=True, decimals=grammar.strings.decimals)
        value += 1
    rest = piece.lstrip(", \n")
    if ends_value:
        return mass * (_interval_mass(draft, value, rest, False, grammar.strings.decimals) if rest else 1.0)
    return _interval_mass(draft, value, prefix + piece, False, grammar.strings.decimals)


def _interval_mass(draft: DraftDistribution, value: int, prefix: str, closed: bool, decimals: int) -> float:
    """The mass of all values that begin with `prefix`, or, if `closed`, of the one that is `prefix`."""
    if value >= draft.values:
        return 1.0
    unit = 10.0**-decimals
    negative = prefix.startswith("-")
    digits = prefix.lstrip("+-")
    if not digits:
        return draft.mass(value, -1.0, -unit) if negative else draft.mass(value, 0.0, 1.0)
    if "e" in digits:
        return unit  # "1e-04", one value
    whole, _, fraction = digits.partition(".")
    low = int(whole) + (int(fraction) * 10.0 ** -len(fraction) if fraction else 0.0)
    width = 0.0 if closed else (1.0 if not fraction else 10.0 ** -len(fraction)) - unit
    high = min(low + width, 1.0)
    # A printed value stands for what rounds to it.
    half = unit / 2
    if negative:
        return draft.mass(value, max(-high - half, -1.0), -low + half) if high > 0 else 0.0
    return draft.mass(value, low - half if low else 0.0, min(high + half, 1.0))
