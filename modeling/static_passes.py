"""Verification passes whose shapes repeat, recorded as CUDA graphs on a GPU (`static_plan.py`).

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
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as global_hooks

from .static_cache import cache_shape
from .static_plan import StaticPlan, rounded_up
from .verification_passes import PassInputs, Prompt, prompt_positions


PROMPT_STEP = 32  # lengths of static prompts are multiples of this
WIDTH_STEP = 16  # likewise static widths
CAPACITY_STEP = 64  # and static caches
MAX_PLANS = 8  # per model; each has a cache of its own
# Of a GPU's memory, what the plans may take together before the oldest are dropped. A plan that would take more by
# itself is not made unless requested, since it stays when the call is over, and recording it takes as much again.
MEMORY_SHARE = 1 / 16
PlanSizes = tuple[tuple[int, ...], int, int, int]  # token ids, rows, width, capacity


class StaticPasses:
    """As `DynamicPasses`, in shapes that repeat.

    Args:
        prompt: of one call.
        plan: what stays from call to call, for this batch size; see `get_plan`.
    """

    def __init__(self, model: Any, prompt: Prompt, plan: StaticPlan):
        self.model, self.plan = model, plan
        self.prompt: Prompt | None = padded_prompt(prompt, model.config.image_token_id)  # until it has been fed
        self.features: torch.Tensor | None = None  # of its pictures
        rows, scratch = len(prompt.ids), plan.cache.scratch
        # Int64 [B, 4 W + 1], the `numbers` of a decode pass. The last column is where a row's accepted tokens end.
        self.numbers = np.zeros((rows, 4 * scratch + 1), dtype=np.int64)
        self.numbers[:, -1] = scratch + self.prompt.ids.shape[1]

    def encode_pictures(self) -> None:
        """Starts the encoders, on a GPU without waiting for them; else the first pass does."""
        if self.prompt is not None:
            pixel_values = self.prompt.pictures["pixel_values"]
            self.model.model.check_pictures(self.prompt.ids, pixel_values)
            self.features = self.plan.run(self.plan.vision_pass, (pixel_values,))

    def width(self, widest: int) -> int:
        """The width of a pass in which the widest row feeds so many tokens."""
        if widest > self.plan.cache.scratch:
            raise RuntimeError(f"got {widest} tokens to feed, expected {self.plan.cache.scratch} at most")
        return self.plan.cache.scratch

    def run(self, fed: PassInputs) -> torch.Tensor:
        """Logits float32 [B, W, G]."""
        if self.prompt is not None:
            return self._run_prompt(self.prompt, fed)
        width, most = self.plan.cache.scratch, self.numbers[:, -1].max()
        if most > self.plan.cache.slots:
            raise RuntimeError(f"got {most} slots, expected {self.plan.cache.slots} at most")
        self.numbers[:, :width] = fed.ids
        self.numbers[:, width : 2 * width] = fed.positions
        return self.plan.run(self.plan.decode_pass, (torch.from_numpy(self.numbers), fed.tree_mask))

    def _run_prompt(self, prompt: Prompt, fed: PassInputs) -> torch.Tensor:
        if self.features is None:
            self.encode_pictures()
        ids = torch.cat((prompt.ids, fed.ids), dim=1)
        positions = torch.cat((prompt_positions(prompt.mask), fed.positions), dim=1)
        inputs = (torch.stack((ids, positions)), prompt.mask.bool(), fed.tree_mask)
        if self.features is not None:
            places = (ids == self.model.config.image_token_id).flatten().nonzero()[:, 0]
            inputs = (*inputs, places, self.features)
        return self.plan.run(self.plan.prompt_pass, inputs)

    def keep(self, paths: list[list[int]]) -> None:
        """Keeps the prompt of the prefill, and of the fed tokens those that each row accepted."""
        width = self.plan.cache.scratch
        self.numbers[:, 2 * width : 4 * width] = 0  # the same slot twice is no move
        for row, path in enumerate(paths):
            end, count = int(self.numbers[row, -1]), len(path)
            self.numbers[row, 2 * width : 2 * width + count] = path
            self.numbers[row, 3 * width : 3 * width + count] = range(end, end + count)
            self.numbers[row, -1] = end + count
        self.prompt = None

    def close(self) -> None:
        """Leaves the plan to the next call, perhaps on another stream: when the GPU has finished, errors or not."""
        try:
            if self.plan.head.is_cuda:
                torch.cuda.current_stream(self.plan.head.device).synchronize()
        finally:
            self.plan.lock.release()


class ModelFingerprint:
    """What makes a recording of a model stale: weights and buffers that lie elsewhere or are of another type, modules
    or their `forward` exchanged, adapters switched. A graph reads weights in place, so changes in place do not count.

    `holds` looks at some thousand modules in a fraction of a millisecond: it calls no module, but reads the
    dictionaries in which they keep their parts.
    """

    def __init__(self, model: Any):
        every = list(model.modules())
        self.modules = every[1:]  # kept, so that nothing new gets an address that was seen; the model itself may go
        self.own = [module.__dict__ for module in self.modules]
        self.parts = [module._modules for module in every if module._modules]
        tensors = [(module._parameters, module._buffers) for module in every]
        self.tensors = [those for those in chain.from_iterable(tensors) if those]
        hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in every]
        self.hooks = list(chain.from_iterable(hooks))
        # PEFT's layers; transformers' models have some of the same names, as methods.
        self.adapters = [module for module in self.modules if isinstance(getattr(module, "merged_adapters", 0), list)]
        self.seen = self._look()

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return self._look() == self.seen

    def has_hooks(self) -> bool:
        """Whether there are forward hooks, which a graph does not call."""
        everywhere = global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks
        return any(map(len, (*everywhere, *self.hooks)))

    def _look(self) -> tuple[Any, ...]:
        parts = map(id, chain.from_iterable(map(dict.values, self.parts)))
        tensors = [tensor for tensor in chain.from_iterable(map(dict.values, self.tensors)) if tensor is not None]
        dtypes = list(map(attrgetter("dtype"), tensors))
        addresses = list(map(torch.Tensor.data_ptr, tensors))
        if not all(addresses):  # a tensor that wraps others has none, and is identified by id
            addresses = [address or id(tensor) for address, tensor in zip(addresses, tensors)]
        # `forward` of a module itself, in place of its class's. Its id alone, since it might keep the model alive.
        forwards = [(index, id(own["forward"])) for index, own in enumerate(self.own) if "forward" in own]
        return list(parts), addresses, dtypes, forwards, [adapter_state(module) for module in self.adapters]


def adapter_state(module: Any) -> tuple[Any, ...]:
    """What of a PEFT layer's state decides what it computes, its weights excepted."""
    scaling = getattr(module, "scaling", None)
    return (
        str(module.active_adapters),
        bool(module.disable_adapters),
        str(module.merged_adapters),
        str(scaling) if isinstance(scaling, dict) else "",
    )


class Recordings:
    """The plans of a model, and its fingerprint when they were made."""

    def __init__(self, model: Any):
        self.fingerprint = ModelFingerprint(model)
        self.plans: dict[Any, StaticPlan] = {}  # the one used last comes last


# Kept per model and beside it, since a recorded graph can be neither copied nor pickled with it.
_RECORDINGS: "weakref.WeakKeyDictionary[Any, Recordings]" = weakref.WeakKeyDictionary()
_PLANS_LOCK = threading.Lock()  # held while the recordings or the plans of a model are looked up or changed


def recordings_of(model: Any) -> Recordings:
    """The recordings of a model as it is now: none, where its weights have moved or an adapter has changed."""
    known = _RECORDINGS.get(model)
    if known is None or not known.fingerprint.holds():
        known = _RECORDINGS[model] = Recordings(model)
    return known


def static_passes(
    model: Any, token_ids: tuple[int, ...], prompt: Prompt, widest: int, more: int, requested: bool = True
) -> StaticPasses | None:
    """Passes for a call, or `None` where they do not suit or the plan is in use by another thread.

    Widths and capacities are rounded up, so that prompts of different lengths share a plan. Under autocast they never
    suit: it casts weights anew in each call, and a graph would read cast weights that are gone.

    Args:
        token_ids: the needed rows of the output layer.
        widest: the most tokens a row will feed in a pass.
        more: the most tokens that will be accepted.
        requested: whether the caller wants them in any case.
    """
    device = model.get_output_embeddings().weight.device
    if not model.has_static_passes:
        return None
    if torch.is_autocast_enabled(device.type) or not (requested or suits_static_passes(model, device)):
        return None
    width = rounded_up(widest, WIDTH_STEP)
    capacity = rounded_up(width + rounded_up(prompt.ids.shape[1], PROMPT_STEP) + more, CAPACITY_STEP)
    with _PLANS_LOCK, torch.inference_mode(False):
        plan = get_plan(model, (token_ids, len(prompt.ids), width, capacity), device, requested)
    if plan is None:
        return None
    passes = StaticPasses(model, prompt, plan)
    return passes if plan.lock.acquire(blocking=False) else None


def get_plan(model: Any, sizes: PlanSizes, device: torch.device, requested: bool) -> StaticPlan | None:
    """The plan for a call, made where there is none; the oldest ones are dropped."""
    recordings = recordings_of(model)
    hooked, plans = recordings.fingerprint.has_hooks(), recordings.plans
    most = memory_of(device) * MEMORY_SHARE
    if not requested and (hooked or any(plan.failed for plan in plans.values()) or cache_bytes(model, sizes) > most):
        return None
    graphs = records_graphs(device) and not hooked  # a graph calls no hook
    key = (*sizes, graphs, model.training)
    plan = plans.pop(key, None) or StaticPlan(model, *sizes, graphs)
    plans[key] = plan
    while len(plans) > MAX_PLANS or (
        len(plans) > 1 and sum(each.cache.buffer.nbytes for each in plans.values()) > most
    ):
        del plans[next(iter(plans))]
    return plan


def records_graphs(device: torch.device) -> bool:
    """Whether passes on a device can be recorded."""
    return device.type == "cuda"


def suits_static_passes(model: Any, device: torch.device) -> bool:
    """Whether static passes are used without being requested: on a GPU that holds the whole model, unquantised.

    `get_plan` also leaves models with hooks, and those that could not be recorded, to dynamic passes.
    """
    if not records_graphs(device) or model.training or getattr(model, "hf_quantizer", None) is not None:
        return False
    return len(set(getattr(model, "hf_device_map", {"": device}).values())) <= 1


def cache_bytes(model: Any, sizes: PlanSizes) -> int:
    """Bytes that the cache of a plan takes."""
    _, rows, _, capacity = sizes
    numbers = 2 * math.prod(cache_shape(model.config.text_config, rows, capacity))
    return numbers * model.get_output_embeddings().weight.element_size()


def memory_of(device: torch.device) -> float:
    """Bytes of a GPU's memory; a CPU's are not counted."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else float("inf")


def padded_prompt(prompt: Prompt, image_token_id: int) -> Prompt:
    """A prompt on the CPU, padded on the left to a length that repeats; pictures stay where they are."""
    ids, mask = prompt.ids.cpu(), prompt.mask.cpu()
    more = rounded_up(ids.shape[1], PROMPT_STEP) - ids.shape[1]
    ids = torch.nn.functional.pad(ids, (more, 0), value=int(image_token_id == 0))  # any token but the image's
    return Prompt(ids, torch.nn.functional.pad(mask, (more, 0)), prompt.pictures)
