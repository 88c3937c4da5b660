"""Verification passes whose shapes repeat, recorded as CUDA graphs on a GPU.

A pass is more than a thousand small kernels. Launched one by one they keep a GPU waiting for the CPU; a CUDA graph
launches them at once, but always with the same shapes at the same addresses:

    embed         all pictures of a batch among its words
    feed_prompt   [B, W + L]  a prompt left-padded to a multiple of 32, behind the first trees
    feed_tree     [B, W]      W a multiple of 16, the same in every pass, over a cache of a multiple of 64 slots
    verify        the walk through the trees

One plan holds the buffers of a batch size, a width and a capacity, and its recordings. Each is compared with the plain
function when it is made. Where recording fails or gives something else, a warning says so, and that function stays
plain.
"""

import math
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch.nn.modules import module as global_hooks
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .fused_layers import TorchOperations, input_scale, run_layers, supports_fused_layers
from .parallel_streams import stream_of
from .verification_passes import Forward, TreeCache, rounded_up


PROMPT_STEP = 32  # lengths of static prompts are multiples of this
WIDTH_STEP = 16  # likewise static widths
CAPACITY_STEP = 64  # and static caches
MAX_PLANS = 4  # per model; each has a cache of its own
# Of a GPU's memory, the largest cache of a plan that is made without being requested: it stays when the call is over,
# and recording takes as much again.
MEMORY_SHARE = 1 / 16
# How far a recording may be from the plain function: root mean square, as a share of the deviation of the result.
TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_IN_HALF_PRECISION = 0.06
OUTPUT_CAPTURING = "transformers.utils.output_capturing"
_RECORDING_LOCK = threading.Lock()  # a process can record one graph at a time


class StaticForward(Forward):
    """Functions of one batch size and capacity, kept for a model between calls, and their recordings.

    Args:
        shape: rows, width of a pass, slots per row.
        graphs: record each shape of a function as a CUDA graph.

    Attributes:
        lock: held by the call that uses the plan.
        operations: what layers are computed with; `None` for the model's own.
        recorded: by function and shapes; `None` where recording failed.
    """

    fixed = True
    prompt_step = PROMPT_STEP

    def __init__(self, model: Any, token_ids: Sequence[int], shape: tuple[int, int, int], graphs: bool):
        rows, width, slots = shape
        weight = model.get_output_embeddings().weight
        # Zeros, since a masked slot still takes part in a product, and 0 times an uninitialised number could be NaN.
        buffer = weight.new_zeros(cache_shape(model.config.text_config, rows, slots), requires_grad=False)
        super().__init__(model, token_ids, TreeCache(width, slots, buffer))
        self.graphs = graphs
        self.lock = threading.Lock()
        self.operations: TorchOperations | None = None
        self.recorded: dict[Any, CapturedPass | None] = {}
        self.pool: Any = None  # memory that all recordings share; one runs at a time

    @property
    def failed(self) -> bool:
        """Whether passes over trees could not be recorded, which are most of the work."""
        return any(entry is None for key, entry in self.recorded.items() if key[0] == "feed_tree")

    def call(self, function: Callable[..., Any], *inputs: Any, layout: Any = None) -> Any:
        """As `Forward.call`; what it returns may be overwritten by the next call."""
        tensors, structure = tree_flatten(inputs)
        # Buffers may be written to in any mode later, and kernels are launched on the current device.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(self.head):
            if not self.graphs or not all(isinstance(each, torch.Tensor) for each in tensors):
                return super().call(function, *inputs)
            key = (function.__name__, layout, *((tensor.shape, tensor.dtype) for tensor in tensors))
            if key not in self.recorded:
                with _RECORDING_LOCK:
                    self._record(key, lambda *flat: function(*tree_unflatten(flat, structure)), tensors)
            recorded = self.recorded.get(key)
            return super().call(function, *inputs) if recorded is None else recorded(*tensors)

    def layers(
        self, embeds: torch.Tensor, options: dict[str, Any], positions: torch.Tensor, allowed: list[torch.Tensor]
    ) -> torch.Tensor:
        """As `Forward.layers`; with `operations`, by fused layers."""
        if self.operations is None:
            return super().layers(embeds, options, positions, allowed)
        language_model = self.model.get_decoder()
        self.cache.written = torch.arange(self.cache.fed, device=embeds.device)
        embeds = embeds * input_scale(language_model, embeds.dtype)
        return run_layers(language_model, self.operations, embeds, positions, allowed[0], self.cache)

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        (self.operations or TorchOperations()).move(self.cache, source, target)

    def release(self) -> None:
        """Leaves the plan to the next call, perhaps on another stream: when the GPU has finished, errors or not."""
        try:
            if self.head.is_cuda:
                torch.cuda.current_stream(self.head.device).synchronize()
        finally:
            self.lock.release()

    def _record(self, key: Any, function: Callable[..., Any], inputs: list[torch.Tensor]) -> None:
        """Records a function and compares it with the plain one; slots are afterwards as they were before."""
        failures: list[str] = []
        saved, recorded = None, None
        try:
            saved, moved = self.cache.buffer.clone(), [tensor.to(self.head.device) for tensor in inputs]
            expected = [each.clone() for each in tree_leaves(function(*moved))]
            if not all(bool(each.isfinite().all()) for each in expected):
                return  # nothing to compare with: a later call records
            for operations in self._operations_for(key[0]):
                self.operations = operations
                self.cache.buffer.copy_(saved)
                try:
                    function(*moved)  # compiles what needs it
                    # Recorded with other numbers than it is compared with, to find what is computed only once.
                    captured = CapturedPass(function, [torch.zeros_like(each) for each in inputs], self)
                    self.cache.buffer.copy_(saved)
                    check_close(tree_leaves(captured(*inputs)), expected, self.head.dtype)
                    recorded = captured
                    break
                except Exception as error:  # whatever a compiler, a driver or an unknown layer may raise
                    failures.append(f"{type(error).__name__}: {error}")
            self.recorded[key] = recorded
        except torch.OutOfMemoryError as error:  # recording takes more of it than a pass
            failures.append(f"{type(error).__name__}: {error}")
            self.recorded[key] = None
        finally:
            self.operations = None
            if saved is not None:
                self.cache.buffer.copy_(saved)
        if failures:
            what = "A CUDA graph is" if recorded is None else "Some fused kernels are"
            reasons = "; then ".join(failures)
            warnings.warn(f"{what} not used for decoding ({key[0]}): {reasons}", RuntimeWarning, stacklevel=2)

    def _operations_for(self, name: str) -> list[TorchOperations | None]:
        """What a function may be recorded with, best first: the model's own layers, unless it has `lean_layers`."""
        lean = self.model.lean_layers and name.startswith("feed_")
        if not lean or not supports_fused_layers(self.model.get_decoder()):
            return [None]
        if self.head.is_cuda:
            try:
                from .triton_operations import TritonOperations

                return [TritonOperations(), TritonOperations(attends=False), None]
            except ImportError:
                pass
        return [TorchOperations(), None]


class CapturedPass:
    """A function of tensors of fixed shapes, those of examples, recorded as a CUDA graph in the memory of a plan; it
    has run before, on other tensors of these shapes.
    """

    def __init__(self, function: Callable[..., Any], examples: Sequence[torch.Tensor], plan: StaticForward):
        plan.pool = plan.pool or torch.cuda.graph_pool_handle()
        self.operations, device = plan.operations, plan.head.device
        # Arguments from the CPU are staged in one stretch of pinned memory, and arrive by one copy.
        sizes = [0 if tensor.is_cuda else rounded_up(tensor.nbytes, 16) for tensor in examples]
        self.staged = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True, device="cpu")
        self.arrived = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self.places = [
            tensor.to(device, copy=True) if tensor.is_cuda else viewed(self.staged, start, tensor)
            for tensor, start in zip(examples, starts)
        ]
        inputs = [
            place if place.is_cuda else viewed(self.arrived, start, place) for place, start in zip(self.places, starts)
        ]
        self._send(examples)
        self.graph, stream = torch.cuda.CUDAGraph(), stream_of(device)
        # Other threads may go on using the GPU meanwhile. The outer block leaves the stream even where `graph` fails
        # to end the recording, and itself does not.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(self.graph, pool=plan.pool, stream=stream, capture_error_mode="thread_local"),
        ):
            self.output = function(*inputs)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """What the function returns; overwritten by the next call."""
        self._send(inputs)
        self.graph.replay()
        return self.output

    def _send(self, inputs: Sequence[torch.Tensor]) -> None:
        for place, tensor in zip(self.places, inputs, strict=True):
            place.copy_(tensor)
        self.arrived.copy_(self.staged, non_blocking=True)  # read by the time a pass is over: before it is written to


def viewed(stretch: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """A part of uint8 [bytes] as a tensor like another one."""
    return stretch[start : start + like.nbytes].view(like.dtype).view(like.shape)


def check_close(found: list[torch.Tensor], expected: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Raises `RuntimeError` if a recording gives something else than the plain function."""
    for one, other in zip(found, expected, strict=True):
        one, other = one.float(), other.float()
        difference = float((one - other).square().mean().sqrt() / other.std().clamp(min=1e-6))
        if not difference <= TOLERANCE.get(dtype, TOLERANCE_IN_HALF_PRECISION):
            raise RuntimeError(f"a recorded pass differs from the plain one by {difference:.3g} of the deviation")


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
        """Whether there are forward hooks, which a graph does not call. Those of transformers for outputs that no pass
        asks for do not count."""
        everywhere = global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks
        hooks = chain.from_iterable(each.values() for each in (*everywhere, *self.hooks) if each)
        return any(getattr(hook, "__module__", None) != OUTPUT_CAPTURING for hook in hooks)

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
        self.plans: dict[Any, StaticForward] = {}  # the one used last comes last


# Kept per model and beside it, since a recorded graph can be neither copied nor pickled with it.
_RECORDINGS: "weakref.WeakKeyDictionary[Any, Recordings]" = weakref.WeakKeyDictionary()
_PLANS_LOCK = threading.Lock()  # held while the recordings or the plans of a model are looked up or changed


def recordings_of(model: Any) -> Recordings:
    """The recordings of a model as it is now: none, where its weights have moved or an adapter has changed."""
    known = _RECORDINGS.get(model)
    if known is None or not known.fingerprint.holds():
        known = _RECORDINGS[model] = Recordings(model)
    return known


def recorded_forward(
    model: Any, token_ids: Sequence[int], sizes: tuple[int, int, int, int], requested: bool = True
) -> StaticForward | None:
    """The plan for a call, or `None` where it does not suit or is in use by another thread.

    Widths and capacities are rounded up, so that prompts of different lengths share a plan. Under autocast none suits:
    it casts weights anew in each call, and a graph would read cast weights that are gone.

    Args:
        token_ids: the needed rows of the output layer.
        sizes: rows, the length of their prompts, the most tokens a row feeds in a pass and accepts in a call.
        requested: whether the caller wants it in any case.
    """
    rows, length, widest, most = sizes
    device = model.get_output_embeddings().weight.device
    if torch.is_autocast_enabled(device.type) or not (requested or suits_recording(model, device)):
        return None
    width = rounded_up(widest, WIDTH_STEP)
    shape = rows, width, rounded_up(width + rounded_up(length, PROMPT_STEP) + most, CAPACITY_STEP)
    with _PLANS_LOCK, torch.inference_mode(False):
        recordings = recordings_of(model)
        hooked, plans = recordings.fingerprint.has_hooks(), recordings.plans
        if not requested and (
            hooked
            or any(plan.failed for plan in plans.values())
            or cache_bytes(model, shape) > memory_of(device) * MEMORY_SHARE
        ):
            return None
        graphs = records_graphs(device) and not hooked  # a graph calls no hook
        key = (tuple(token_ids), shape, graphs, model.training, model.lean_layers)
        plan = plans.pop(key, None) or StaticForward(model, token_ids, shape, graphs)
        plans[key] = plan
        if len(plans) > MAX_PLANS:
            del plans[next(iter(plans))]
    return plan if plan.lock.acquire(blocking=False) else None


def records_graphs(device: torch.device) -> bool:
    """Whether passes on a device can be recorded."""
    return device.type == "cuda"


def suits_recording(model: Any, device: torch.device) -> bool:
    """Whether passes are recorded without being requested: on a GPU that holds the whole model, unquantised."""
    if not records_graphs(device) or model.training or getattr(model, "hf_quantizer", None) is not None:
        return False
    return len(set(getattr(model, "hf_device_map", {"": device}).values())) <= 1


def cache_shape(text_config: Any, rows: int, slots: int) -> tuple[int, ...]:
    """Layers, keys and values, rows, heads of keys, slots, width of a head."""
    width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return text_config.num_hidden_layers, 2, rows, text_config.num_key_value_heads, slots, width


def cache_bytes(model: Any, shape: tuple[int, int, int]) -> int:
    """Bytes that the cache of a plan takes."""
    numbers = math.prod(cache_shape(model.config.text_config, shape[0], shape[2]))
    return numbers * model.get_output_embeddings().weight.element_size()


def memory_of(device: torch.device) -> float:
    """Bytes of a GPU's memory; a CPU's are not counted."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else float("inf")
