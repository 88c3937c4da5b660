"""Passes of tree decoding whose shapes repeat, recorded as CUDA graphs on a GPU.

Decides: to which sizes prompts, widths and caches are rounded up, which recordings are kept and when they are used.
Refuses to know: what is in a tree, which tokens are accepted (`tree_decoding.py`), what a recorded pass computes
(`static_plan.py`).

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
import weakref
from typing import Any

import numpy as np
import torch

from .captured_pass import rounded_up
from .model_fingerprint import ModelFingerprint
from .slot_cache import cache_shape
from .static_plan import StaticPlan
from .tree_passes import Fed, Prompt, prompt_positions


PROMPT_STEP = 32  # static prompts are as long as multiples of this
WIDTH_STEP = 16  # static widths are multiples of this
CAPACITY_STEP = 64  # and static caches of this
PLANS_KEPT = 8  # per model; each has a cache of its own
# Of a GPU's memory, what they may take together before the oldest are dropped; nor is a plan that would take more by
# itself made without being asked for, since it stays when the call is over, and recording it takes as much again.
MEMORY_SHARE = 1 / 16
PlanSizes = tuple[tuple[int, ...], int, int, int]  # the wanted tokens, rows, width, capacity


class StaticPasses:
    """What `GrowingPasses` does, in shapes that repeat.

    Args:
        prompt: of one call.
        plan: what stays from call to call, for this batch size; see `kept_plan`.
    """

    def __init__(self, model: Any, prompt: Prompt, plan: StaticPlan):
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
            end, count = int(self.numbers[row, -1]), len(path)
            self.numbers[row, 2 * width : 2 * width + count] = path
            self.numbers[row, 3 * width : 3 * width + count] = range(end, end + count)
            self.numbers[row, -1] = end + count
        self.prompt = None

    def close(self) -> None:
        """Leaves the plan to the next call, perhaps on another stream: when nothing is under way, errors or not."""
        try:
            if self.plan.head.is_cuda:
                torch.cuda.current_stream(self.plan.head.device).synchronize()
        finally:
            self.plan.lock.release()


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


def lengthened(prompt: Prompt, image_token_id: int) -> Prompt:
    """A prompt on the CPU, padded on the left to a length that repeats; pictures stay where they are."""
    ids, mask = prompt.ids.cpu(), prompt.mask.cpu()
    more = rounded_up(ids.shape[1], PROMPT_STEP) - ids.shape[1]
    ids = torch.nn.functional.pad(ids, (more, 0), value=int(image_token_id == 0))  # any token but the image's
    return Prompt(ids, torch.nn.functional.pad(mask, (more, 0)), prompt.pixel_values)
