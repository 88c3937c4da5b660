"""Passes of tree decoding whose shapes repeat, recorded as CUDA graphs on a GPU.

Decides: to which sizes prompts, widths and caches are rounded up, what a recorded pass computes on the device itself,
when a recording is used. Refuses to know: what is in a tree, which tokens are accepted (`tree_decoding.py`), how a
decoder layer is computed (`lean_layers.py`).

A decode pass is more than a thousand small kernels. Launched one by one they keep a GPU waiting for the CPU; a CUDA
graph launches them at once, but always with the same shapes at the same addresses:

    vision pass     all pictures of a batch; by itself, so that the encoders begin while the first trees are grown
    prompt pass     [B, L + W]  left-padded to a multiple of 32, W tokens of trees behind it
    decode pass     [B, W]      W a multiple of 16, the same in every pass, over caches of a multiple of 64 slots

One plan holds the buffers of a batch size, a width and a capacity, and its recordings. Each is compared with the
model's own pass when it is made. Where recording fails or gives something else, a warning says so, and plain passes
go on.
"""

import math
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .captured_pass import CapturedPass, rounded_up
from .decoder_operations import PlainOperations
from .lean_layers import can_be_lean, input_scale, run_layers
from .model_fingerprint import ModelFingerprint
from .slot_cache import SlotCache, cache_shape
from .tree_passes import Fed, Prompt, additive, prompt_positions, with_prompt


PROMPT_STEP = 32  # static prompts are as long as multiples of this
WIDTH_STEP = 16  # static widths are multiples of this
CAPACITY_STEP = 64  # and static caches of this
PLANS_KEPT = 8  # per model; each has a cache of its own
# Of a GPU's memory, what they may take together before the oldest are dropped; nor is a plan that would take more by
# itself made without being asked for, since it stays when the call is over, and recording it takes as much again.
MEMORY_SHARE = 1 / 16
PlanSizes = tuple[tuple[int, ...], int, int, int]  # the wanted tokens, rows, width, capacity
# How far a recorded pass may be from the model's own: root mean square, as a share of the deviation of what it gives.
CLOSE = {torch.float32: 1e-3}
CLOSE_IN_HALF_PRECISION = 0.06
_ONE_RECORDS = threading.Lock()  # a process can record one graph at a time


class StaticPasses:
    """What `GrowingPasses` does, in shapes that repeat.

    Args:
        prompt: of one call.
        plan: what stays from call to call, for this batch size; see `kept_plan`.
    """

    def __init__(self, model: Any, prompt: Prompt, plan: "StaticPlan"):
        self.model, self.plan = model, plan
        self.prompt: Prompt | None = lengthened(prompt, model.config.image_token_id)  # until it has been fed
        self.features: torch.Tensor | None = None  # of its pictures
        rows, scratch = len(prompt.ids), plan.cache.scratch
        # Int64 [B, 4 W + 1]: what a decode pass is told, see there. The last column is where a row's kept slots end.
        self.numbers = np.zeros((rows, 4 * scratch + 1), dtype=np.int64)
        self.numbers[:, -1] = scratch + self.prompt.ids.shape[1]

    def encode_pictures(self) -> None:
        """Sets the encoders to work, on a GPU without waiting for them; what the first pass would do otherwise."""
        if self.prompt is not None:
            self.model.model.check_pictures(self.prompt.ids, self.prompt.pixel_values)
            if self.prompt.pixel_values is not None:
                self.features = self.plan.run(self.plan.vision_pass, (self.prompt.pixel_values,))

    def width(self, widest: int) -> int:
        """How wide a pass is in which the widest row feeds so many tokens."""
        if widest > self.plan.cache.scratch:
            raise RuntimeError(f"got {widest} tokens to feed, expected {self.plan.cache.scratch} at most")
        return self.plan.cache.scratch

    def run(self, fed: Fed) -> torch.Tensor:
        """Logits float32 [B, W, G]; in the first pass [B, 1 + W, G], behind the prompt's last token, too."""
        if self.prompt is not None:
            return self._run_prompt(self.prompt, fed)
        width, most = self.plan.cache.scratch, self.numbers[:, -1].max()
        if most > self.plan.cache.slots:
            raise RuntimeError(f"got {most} slots, expected {self.plan.cache.slots} at most")
        self.numbers[:, :width] = fed.ids
        self.numbers[:, width : 2 * width] = fed.positions
        return self.plan.run(self.plan.decode_pass, (torch.from_numpy(self.numbers), fed.sight))

    def _run_prompt(self, prompt: Prompt, fed: Fed) -> torch.Tensor:
        if self.features is None:
            self.encode_pictures()
        ids = torch.cat((prompt.ids, fed.ids), dim=1)
        positions = torch.cat((prompt_positions(prompt), fed.positions), dim=1)
        inputs = (torch.stack((ids, positions)), prompt.mask.bool(), fed.sight)
        if self.features is not None:
            places = (ids == self.model.config.image_token_id).flatten().nonzero()[:, 0]
            inputs = (*inputs, places, self.features)
        return self.plan.run(self.plan.prompt_pass, inputs)

    def keep(self, paths: list[list[int]]) -> None:
        """Keeps the prompt of the first pass, and of what was fed the places each row names."""
        width = self.plan.cache.scratch
        self.numbers[:, 2 * width : 4 * width] = 0  # the same slot twice is no move
        for row, path in enumerate(paths):
            end = self.numbers[row, -1]
            self.numbers[row, 2 * width : 2 * width + len(path)] = path
            self.numbers[row, 3 * width : 3 * width + len(path)] = range(end, end + len(path))
        self.numbers[:, -1] += [len(path) for path in paths]
        self.prompt = None

    def close(self) -> None:
        """Leaves the plan to the next call, perhaps on another stream: when nothing is under way, errors or not."""
        try:
            if self.plan.head.is_cuda:
                torch.cuda.current_stream(self.plan.head.device).synchronize()
        finally:
            self.plan.lock.release()


class StaticPlan:
    """Buffers of one batch size and capacity, kept for a model between calls, and the recorded passes over them.

    Args:
        token_ids: the wanted rows of the output layer, G of them.
        width: W, tokens of a row in each pass.
        capacity: slots per row.
        graphs: record each shape of a pass as a CUDA graph.

    Attributes:
        head: float [G, width], those rows; read anew in each prompt's pass.
        cache: keys and values.
        real: bool [B, slots], false where the prompt is padded.
        lock: held by the call that uses the plan.
        operations: what layers are computed with; `None` for the model's own forward pass.
        failed: whether recording was tried in vain.
    """

    def __init__(self, model: Any, token_ids: tuple[int, ...], batch: int, width: int, capacity: int, graphs: bool):
        self.model = weakref.ref(model)
        weight = model.get_output_embeddings().weight
        self.wanted = torch.tensor(token_ids, device=weight.device)
        self.head = weight.new_empty(len(token_ids), weight.shape[1], requires_grad=False)
        shape = cache_shape(model.config.text_config, batch, capacity)
        self.cache = SlotCache(shape, width, weight.dtype, weight.device)
        self.real = torch.ones(batch, capacity, dtype=torch.bool, device=weight.device)
        self.graphs, self.failed = graphs, False
        self.lock = threading.Lock()
        self.operations: PlainOperations | None = None
        self.recorded: dict[Any, CapturedPass] = {}
        self.pool: Any = None  # memory that all recordings share; one runs at a time

    def run(self, function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """One pass of this plan; what it returns may be overwritten by the next one."""
        key = (function.__name__, *((tensor.shape, tensor.dtype) for tensor in inputs))
        # What is kept may be written to in any mode later, and kernels are launched on the device that is current.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(self.head):
            if self.graphs and key not in self.recorded:
                with _ONE_RECORDS:
                    self._record(key, function, inputs)
            if key in self.recorded:
                return self.recorded[key](*inputs)
            return function(*(tensor.to(self.head.device) for tensor in inputs))

    @torch.no_grad()
    def vision_pass(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image features [pictures, N, width of the language model] of float [pictures, C, H, W]."""
        return self._model().model.get_image_features(pixel_values)

    @torch.no_grad()
    def prompt_pass(
        self,
        numbers: torch.Tensor,
        seen: torch.Tensor,
        sight: torch.Tensor,
        places: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Feeds a prompt of L tokens and a tree.

        Args:
            numbers: int64 [2, B, L + W], ids and positions.
            seen: bool [B, L], false on padding.
            sight: bool [B, W, W].
            places: int64 [image tokens of all rows], among the B (L + W) tokens.
            features: of the pictures, as of `vision_pass`.
        """
        ids, positions = numbers.unbind()
        model, length, width = self._model(), seen.shape[1], self.cache.scratch
        torch.index_select(model.get_output_embeddings().weight, 0, self.wanted, out=self.head)
        self.real.fill_(True)
        self.real[:, width : width + length] = seen
        embeds = model.get_input_embeddings()(ids)
        if places is not None:
            assert features is not None
            features = features.to(embeds.dtype).flatten(0, 1)
            embeds = embeds.flatten(0, 1).index_copy(0, places, features).view_as(embeds)
        self.cache.feed_prompt(length)
        # Slots begin with the tree, tokens with the prompt.
        allowed = with_prompt(seen, sight, model.prompt_is_bidirectional).roll(width, dims=2)
        return self._logits(model, embeds, positions, allowed)[:, length - 1 :]

    @torch.no_grad()
    def decode_pass(self, numbers: torch.Tensor, sight: torch.Tensor) -> torch.Tensor:
        """Moves what was accepted behind what is kept, then feeds a tree.

        Args:
            numbers: int64 [B, 4 W + 1]: ids, positions, slots to be moved, where to, and where kept slots end.
            sight: bool [B, W, W].
        """
        model, width = self._model(), self.cache.scratch
        ids, positions, source, target, starts = numbers.split((width, width, width, width, 1), dim=1)
        (self.operations or PlainOperations()).move(self.cache, source, target)
        self.cache.feed_tree()
        allowed = self.cache.allowed(sight, starts, self.real)
        return self._logits(model, model.get_input_embeddings()(ids), positions, allowed)

    def _logits(
        self, model: Any, embeds: torch.Tensor, positions: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        if self.operations is not None:
            language_model = model.model.language_model
            embeds = embeds * input_scale(language_model, embeds.dtype)
            positions = positions + model.first_position
            hidden = run_layers(language_model, self.operations, embeds, positions, allowed, self.cache)
        else:
            hidden = model.model(
                inputs_embeds=embeds,
                attention_mask=additive(allowed, self.head.dtype),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
        return (hidden @ self.head.T).float()

    def _model(self) -> Any:
        model = self.model()
        assert model is not None  # it is what called
        return model

    def _record(self, key: Any, function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> None:
        """Records a pass and compares it with the model's own; slots are afterwards as they were before."""
        saved, on_device = self.cache.buffer.clone(), [tensor.to(self.head.device) for tensor in inputs]
        expected = function(*on_device).clone()
        if not bool(expected.isfinite().all()):  # nothing to compare with: a later call records
            self.cache.buffer.copy_(saved)
            return
        # Recorded with other numbers than it is compared with: what is computed once and not recorded is found out.
        others = tuple(torch.zeros_like(tensor) for tensor in inputs)
        failures = []
        try:
            for operations in possible_operations(self._model(), self.head.device):
                self.operations = operations
                self.cache.buffer.copy_(saved)
                try:
                    function(*on_device)  # compiles what needs it
                    captured = CapturedPass(function, others, self)
                    self.cache.buffer.copy_(saved)
                    check_close(captured(*inputs), expected, self.head.dtype)
                    self.recorded[key] = captured
                    break
                except Exception as error:  # whatever a compiler, a driver or an unknown layer may raise
                    failures.append(f"{type(error).__name__}: {error}")
        finally:
            self.operations = None
            self.cache.buffer.copy_(saved)
        if key not in self.recorded:
            self.graphs, self.failed = False, True
            self.recorded.clear()
        if failures:
            used = "CUDA graphs are" if not self.graphs else "Some fused kernels are"
            warnings.warn(f"{used} not used for decoding: {'; then '.join(failures)}", RuntimeWarning, stacklevel=2)


class Recordings:
    """The plans of a model, and what it was like when they were made."""

    def __init__(self, model: Any):
        self.fingerprint = ModelFingerprint(model)
        self.plans: dict[Any, StaticPlan] = {}  # the one used last comes last


# Kept per model and beside it, since a recorded graph can be neither copied nor pickled with it.
_RECORDINGS: "weakref.WeakKeyDictionary[Any, Recordings]" = weakref.WeakKeyDictionary()
_BOOKS = threading.Lock()  # held by whoever looks into the recordings or the plans of a model, and no longer


def recordings_of(model: Any) -> Recordings:
    """What was recorded of a model as it is now; nothing, where its weights have moved or an adapter has changed."""
    known = _RECORDINGS.get(model)
    if known is None or not known.fingerprint.holds():
        known = _RECORDINGS[model] = Recordings(model)
    return known


def static_passes(
    model: Any, token_ids: tuple[int, ...], prompt: Prompt, widest: int, more: int, asked: bool = True
) -> StaticPasses | None:
    """Passes for a call, or `None` where they do not suit or another call, of another thread, uses the plan.

    Widths and capacities are rounded up, so that prompts of different lengths share a plan. Under autocast they never
    suit: what it computes in is decided anew in each call, and a graph would read weights that it has cast and let go.

    Args:
        token_ids: the wanted rows of the output layer.
        widest: the most tokens a row will feed in a pass.
        more: the most tokens that will be accepted.
        asked: whether the caller wants them in any case.
    """
    device = model.get_output_embeddings().weight.device
    if torch.is_autocast_enabled(device.type) or not (asked or suits_static_passes(model, device)):
        return None
    width = rounded_up(widest, WIDTH_STEP)
    capacity = rounded_up(width + rounded_up(prompt.ids.shape[1], PROMPT_STEP) + more, CAPACITY_STEP)
    with _BOOKS, torch.inference_mode(False):
        plan = kept_plan(model, (token_ids, len(prompt.ids), width, capacity), device, asked)
    if plan is None:
        return None
    passes = StaticPasses(model, prompt, plan)
    return passes if plan.lock.acquire(blocking=False) else None


def kept_plan(model: Any, sizes: PlanSizes, device: torch.device, asked: bool) -> StaticPlan | None:
    """The plan for a call, made where there is none; the oldest ones go."""
    recordings = recordings_of(model)
    hooked, plans = recordings.fingerprint.has_hooks(), recordings.plans
    most = memory_of(device) * MEMORY_SHARE
    if not asked and (hooked or any(plan.failed for plan in plans.values()) or cache_bytes(model, sizes) > most):
        return None
    graphs = records_graphs(device) and not hooked  # a graph calls no hook
    key = (*sizes, graphs, model.training)
    plan = plans.pop(key, None) or StaticPlan(model, *sizes, graphs)
    plans[key] = plan
    while len(plans) > PLANS_KEPT or (len(plans) > 1 and held(plans) > most):
        del plans[next(iter(plans))]
    return plan


def records_graphs(device: torch.device) -> bool:
    """Whether passes on a device can be recorded."""
    return device.type == "cuda"


def suits_static_passes(model: Any, device: torch.device) -> bool:
    """Whether static passes are the better way without being asked for: on a GPU that holds the whole model, as it is.

    Quantised layers are left to plain passes, and, in `static_passes`, hooks and models that could not be recorded.
    """
    if not records_graphs(device) or model.training or getattr(model, "hf_quantizer", None) is not None:
        return False
    return len(set(getattr(model, "hf_device_map", {"": device}).values())) <= 1


def held(plans: dict[Any, StaticPlan]) -> int:
    """Bytes of the caches of plans."""
    return sum(plan.cache.buffer.nbytes for plan in plans.values())


def cache_bytes(model: Any, sizes: PlanSizes) -> int:
    """Bytes that the cache of a plan takes."""
    _, rows, _, capacity = sizes
    numbers = 2 * math.prod(cache_shape(model.config.text_config, rows, capacity))
    return numbers * model.get_output_embeddings().weight.element_size()


def memory_of(device: torch.device) -> float:
    """Bytes of a GPU's memory; a CPU's are not counted."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else float("inf")


def possible_operations(model: Any, device: torch.device) -> list[PlainOperations | None]:
    """What layers may be computed with, best first; `None` is the model's own forward pass."""
    if not can_be_lean(model.model.language_model):
        return [None]
    if device.type == "cuda":
        try:
            from .triton_operations import TritonOperations

            return [TritonOperations(), TritonOperations(attends=False), None]
        except ImportError:
            pass
    return [PlainOperations(), None]


def check_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises `RuntimeError` if what a recorded pass gives is not what the model's own does."""
    found, expected = found.float(), expected.float()
    difference = float((found - expected).square().mean().sqrt() / expected.std().clamp(min=1e-6))
    if not difference <= CLOSE.get(dtype, CLOSE_IN_HALF_PRECISION):
        raise RuntimeError(f"a recorded pass differs from the plain one by {difference:.3g} of the deviation")


def lengthened(prompt: Prompt, image_token_id: int) -> Prompt:
    """A prompt on the CPU, padded on the left to a length that repeats; pictures stay where they are."""
    ids, mask = prompt.ids.cpu(), prompt.mask.cpu()
    more = rounded_up(ids.shape[1], PROMPT_STEP) - ids.shape[1]
    ids = torch.nn.functional.pad(ids, (more, 0), value=int(image_token_id == 0))  # any token but the image's
    return Prompt(ids, torch.nn.functional.pad(mask, (more, 0)), prompt.pixel_values)
