"""The operations of `fused_layers.py` as Triton kernels, for GPUs.

Sums are formed in float32 and rounded where transformers rounds, so that only the order of sums differs. Each kernel
does in one launch what takes PyTorch five to ten, over numbers that fit a multiprocessor's registers.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
from typing import Any

import torch

from .fused_layers import TorchOperations, activation_name
from .verification_passes import TreeCache


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("got no Triton, which PyTorch for CUDA brings along; decoding works without it") from error

BLOCK_ROWS = 64  # queries of a block of attention
BLOCK_NUMBERS = 8192  # of the keys it looks at at a time: 64 keys of width 128
PARTS = 4  # blocks that share a head's keys
HEADS = 8  # of a token that a block rotates
NOTHING = tl.constexpr(-1e30)  # the score of a masked key


class TritonOperations(TorchOperations):
    """As `TorchOperations`, on a GPU.

    Args:
        attends: whether attention is one of the kernels; it asks for more memory on the chip than small GPUs have.
    """

    def __init__(self, attends: bool = True):
        self.attends = attends

    def add_norm(self, hidden: torch.Tensor, more: torch.Tensor | None, norm: Any) -> torch.Tensor:
        width, normed = hidden.shape[-1], torch.empty_like(hidden)
        gemma = type(norm).__name__ == "GemmaRMSNorm"
        epsilon = norm.eps if gemma else norm.variance_epsilon
        add_norm_kernel[(hidden.numel() // width,)](
            *(hidden, hidden if more is None else more, norm.weight, normed, width, epsilon),
            ADD=more is not None,
            GEMMA=gemma,
            BLOCK=triton.next_power_of_2(width),
            num_warps=8 if width >= 2048 else 4,
        )
        return normed

    def rotate_and_store(
        self, projected: list[torch.Tensor], cosines: torch.Tensor, sines: torch.Tensor, cache: TreeCache, layer: int
    ) -> torch.Tensor:
        query, key, value = projected
        rows, tokens, width = cosines.shape
        heads, key_heads = query.shape[-1] // width, key.shape[-1] // width
        rotated = query.new_empty(rows, heads, tokens, width)
        keys, values = cache.buffer[layer]
        together = min(HEADS, triton.next_power_of_2(key_heads))
        blocks = triton.cdiv(heads, together) + 2 * triton.cdiv(key_heads, together)
        rotate_and_store_kernel[(rows * tokens, blocks)](
            *(query, key, value, cosines, sines, cache.written, rotated, keys, values),
            *(tokens, heads, key_heads, cache.slots),
            WIDTH=width,
            HALF=triton.next_power_of_2(width // 2),
            HEADS=together,
            num_warps=2,
        )
        return rotated

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows, heads, tokens, width = query.shape
        key_heads, slots = keys.shape[1], keys.shape[2]
        group = heads // key_heads
        few = group * tokens <= 8 * BLOCK_ROWS and tokens <= 2 * BLOCK_ROWS
        if not self.attends or not few or width not in (64, 128, 256) or query.dtype == torch.float32:
            return super().attend(query, keys, values, mask, scale)
        blocks, together = triton.cdiv(group * tokens, BLOCK_ROWS), BLOCK_NUMBERS // width
        mixed = query.new_empty((PARTS, rows * heads * tokens, width), dtype=torch.float32)
        most, sums = mixed.new_empty(2, PARTS, rows * heads * tokens)
        attend_kernel[(blocks, rows * key_heads, PARTS)](
            *(query, keys, values, mask, mixed, most, sums, scale),
            *(group * tokens, tokens, slots, key_heads, keys.stride(0), keys.stride(1), rows * heads * tokens),
            TILES=triton.cdiv(slots, PARTS * together),
            WIDTH=width,
            ROWS=BLOCK_ROWS,
            SLOTS=together,
            num_warps=4,
            num_stages=2,
        )
        joined = query.new_empty(rows, tokens, heads * width)
        join_kernel[(rows * heads * tokens,)](
            *(mixed, most, sums, joined, heads, tokens, rows * heads * tokens), PARTS=PARTS, WIDTH=width, num_warps=2
        )
        return joined

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: Any) -> torch.Tensor:
        if (name := activation_name(activation)) is None:
            return super().gated(gate, up, activation)
        result = torch.empty_like(gate)
        count = gate.numel()
        gated_kernel[(triton.cdiv(count, 1024),)](gate, up, result, count, GELU=name != "silu", BLOCK=1024)
        return result

    def move(self, cache: TreeCache, source: torch.Tensor, target: torch.Tensor) -> None:
        layers, both, rows, heads, slots, width = cache.buffer.shape
        move_kernel[(layers * both * rows * heads,)](
            *(cache.buffer, source, target, source.shape[1], source.stride(0), rows, heads, slots),
            WIDTH=width,
            ROOM=triton.next_power_of_2(width),
            MOVES=16,
            TILES=triton.cdiv(source.shape[1], 16),
        )


@triton.jit
def add_norm_kernel(
    hidden, more, weight, normed, width, epsilon, ADD: tl.constexpr, GEMMA: tl.constexpr, BLOCK: tl.constexpr
):
    """A token: hidden += more, then normed = root mean square norm of it."""
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    rounded = tl.load(hidden + place, mask=inside, other=0.0)
    if ADD:
        added = tl.load(more + place, mask=inside, other=0.0).to(tl.float32)
        rounded = (rounded.to(tl.float32) + added).to(rounded.dtype)
        tl.store(hidden + place, rounded, mask=inside)
    exact = rounded.to(tl.float32)
    exact = exact * tl.rsqrt(tl.sum(exact * exact, axis=0) / width + epsilon)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if GEMMA:  # noqa: SIM108  # known when compiled
        exact = exact * (1.0 + scale)
    else:
        exact = exact.to(rounded.dtype).to(tl.float32) * scale
    tl.store(normed + place, exact.to(rounded.dtype), mask=inside)


@triton.jit
def rotate_and_store_kernel(
    query,
    key,
    value,
    cosines,
    sines,
    written,
    rotated,
    keys,
    values,
    tokens,
    heads,
    key_heads,
    slots,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Some heads of a token: queries and keys rotated by its position; keys and values to their slots."""
    token, block = tl.program_id(0), tl.program_id(1)
    row, place = token // tokens, token % tokens
    slot = tl.load(written + place)
    query_blocks, key_blocks = tl.cdiv(heads, HEADS), tl.cdiv(key_heads, HEADS)
    if block < query_blocks:
        head = block * HEADS + tl.arange(0, HEADS)
        count, source, target = heads, query, rotated
        start = ((row * heads + head) * tokens + place).to(tl.int64) * WIDTH
    elif block < query_blocks + key_blocks:
        head = (block - query_blocks) * HEADS + tl.arange(0, HEADS)
        count, source, target = key_heads, key, keys
        start = ((row * key_heads + head).to(tl.int64) * slots + slot) * WIDTH
    else:
        head = (block - query_blocks - key_blocks) * HEADS + tl.arange(0, HEADS)
        count, source, target = key_heads, value, values
        start = ((row * key_heads + head).to(tl.int64) * slots + slot) * WIDTH
    column = tl.arange(0, HALF)
    inside = (head < count)[:, None] & (column < WIDTH // 2)[None, :]
    asked = source + ((token * count + head).to(tl.int64) * WIDTH)[:, None] + column[None, :]
    first = tl.load(asked, mask=inside)
    second = tl.load(asked + WIDTH // 2, mask=inside)
    if block < query_blocks + key_blocks:
        angle = token * WIDTH + column
        there = column < WIDTH // 2
        rotated_first = rotated_part(first, -second, cosines, sines, angle, there)
        second = rotated_part(second, first, cosines, sines, angle + WIDTH // 2, there)
        first = rotated_first
    tl.store(target + start[:, None] + column[None, :], first, mask=inside)
    tl.store(target + start[:, None] + WIDTH // 2 + column[None, :], second, mask=inside)


@triton.jit
def rotated_part(straight, across, cosines, sines, angle, inside):
    """straight * cos + across * sin of [heads, half], each product and the sum rounded."""
    cosine = tl.load(cosines + angle, mask=inside).to(tl.float32)[None, :]
    sine = tl.load(sines + angle, mask=inside).to(tl.float32)[None, :]
    along = (straight.to(tl.float32) * cosine).to(straight.dtype).to(tl.float32)
    aside = (across.to(tl.float32) * sine).to(straight.dtype).to(tl.float32)
    return (along + aside).to(straight.dtype)


@triton.jit
def gated_kernel(gate, up, result, count, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """activation(gate) * up."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    rounded = tl.load(gate + place, mask=inside, other=0.0)
    exact = rounded.to(tl.float32)
    if GELU:  # 0.5 (1 + tanh(u)) is the logistic function of 2 u
        exact = exact * tl.sigmoid(1.5957691216057308 * (exact + 0.044715 * exact * exact * exact))
    else:
        exact = exact * tl.sigmoid(exact)
    other = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + place, (exact.to(rounded.dtype).to(tl.float32) * other).to(rounded.dtype), mask=inside)


@triton.jit
def move_kernel(
    buffer,
    source,
    target,
    moves,
    stride,
    rows,
    heads,
    slots,
    WIDTH: tl.constexpr,
    ROOM: tl.constexpr,
    MOVES: tl.constexpr,
    TILES: tl.constexpr,
):
    """A layer's keys or values of a head in a row: slots from `source` to `target`."""
    line = tl.program_id(0)
    row = (line // heads) % rows
    start = buffer + line.to(tl.int64) * slots * WIDTH
    column = tl.arange(0, ROOM)[None, :]
    for tile in range(TILES):
        move = tile * MOVES + tl.arange(0, MOVES)
        there = move < moves
        left = tl.load(source + row * stride + move, mask=there, other=0)
        right = tl.load(target + row * stride + move, mask=there, other=0)
        wanted = (left != right)[:, None] & (column < WIDTH)
        content = tl.load(start + left[:, None] * WIDTH + column, mask=wanted)
        tl.store(start + right[:, None] * WIDTH + column, content, mask=wanted)


@triton.jit
def attend_kernel(
    query,
    keys,
    values,
    mask,
    mixed,
    most,
    sums,
    scale,
    queries,
    tokens,
    slots,
    key_heads,
    row_stride,
    head_stride,
    lines,
    TILES: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Queries of the heads that share a key head, over a part of its slots: values mixed, not yet divided by sums."""
    block, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    number = block * ROWS + tl.arange(0, ROWS)
    inside = number < queries
    line = head.to(tl.int64) * queries + number
    row = head // key_heads
    start = row.to(tl.int64) * row_stride + (head % key_heads) * head_stride
    column = tl.arange(0, WIDTH)
    asked = tl.load(query + line[:, None] * WIDTH + column[None, :], mask=inside[:, None], other=0.0)
    highest = tl.full([ROWS], NOTHING, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    gathered = tl.zeros([ROWS, WIDTH], tl.float32)
    for tile in range(TILES):
        slot = (part * TILES + tile) * SLOTS + tl.arange(0, SLOTS)
        there = slot < slots
        content = start + slot[:, None] * WIDTH + column[None, :]
        key = tl.load(keys + content, mask=there[:, None], other=0.0)
        scores = tl.dot(asked, tl.trans(key)) * scale
        seen = inside[:, None] & there[None, :]
        place = (row * tokens + number % tokens)[:, None] * slots + slot[None, :]
        seen = seen & (tl.load(mask + place, mask=seen, other=0.0) == 0.0)
        scores = tl.where(seen, scores, NOTHING)
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        probabilities = tl.where(seen, tl.exp(scores - higher[:, None]), 0.0)
        shrunk = tl.exp(highest - higher)
        total = total * shrunk + tl.sum(probabilities, axis=1)
        value = tl.load(values + content, mask=there[:, None], other=0.0)
        gathered = gathered * shrunk[:, None] + tl.dot(probabilities.to(value.dtype), value)
        highest = higher
    at = part.to(tl.int64) * lines + line
    tl.store(mixed + at[:, None] * WIDTH + column[None, :], gathered, mask=inside[:, None])
    tl.store(most + at, highest, mask=inside)
    tl.store(sums + at, total, mask=inside)


@triton.jit
def join_kernel(mixed, most, sums, joined, heads, tokens, lines, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """A query's parts together, to where its head lies in [B, T, H D]."""
    line = tl.program_id(0)
    place, head, row = line % tokens, (line // tokens) % heads, line // (tokens * heads)
    at = tl.arange(0, PARTS).to(tl.int64) * lines + line
    column = tl.arange(0, WIDTH)
    highest = tl.load(most + at)
    share = tl.exp(highest - tl.max(highest, axis=0))
    total = tl.sum(share * tl.load(sums + at), axis=0)
    content = tl.load(mixed + at[:, None] * WIDTH + column[None, :])
    result = tl.sum(share[:, None] * content, axis=0) / tl.where(total > 0.0, total, 1.0)  # padding sees nothing
    target = joined + ((row * tokens + place) * heads + head).to(tl.int64) * WIDTH
    tl.store(target + column, result.to(joined.dtype.element_ty))
