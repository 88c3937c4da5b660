"""The passes of tree decoding over buffers that stay, for prompt, pictures and trees, each recorded as a CUDA graph.

`static_passes.py` decides on sizes and on the plan of a call, `fused_layers.py` computes the decoder layers.
"""

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch

from .fused_layers import TorchOperations, input_scale, run_layers, supports_fused_layers
from .parallel_streams import recording_stream
from .static_cache import StaticTreeCache, cache_shape
from .verification_passes import additive_mask, prompt_and_tree_mask


# How far a recorded pass may be from the model's own: root mean square, as a share of the deviation of the logits.
TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_IN_HALF_PRECISION = 0.06
_RECORDING_LOCK = threading.Lock()  # a process can record one graph at a time


class StaticPlan:
    """Buffers of one batch size and capacity, kept for a model between calls, and the recorded passes over them.

    Args:
        token_ids: the needed rows of the output layer, G of them.
        width: W, tokens of a row in each pass.
        capacity: slots per row.
        graphs: record each shape of a pass as a CUDA graph.

    Attributes:
        head: float [G, width], those rows; read anew in each prefill.
        cache: keys and values.
        not_padding: bool [B, slots], false where the prompt is padded.
        lock: held by the call that uses the plan.
        operations: what layers are computed with; `None` for the model's own forward pass.
        failed: whether recording was tried in vain.
    """

    def __init__(self, model: Any, token_ids: tuple[int, ...], batch: int, width: int, capacity: int, graphs: bool):
        self.model = weakref.ref(model)
        weight = model.get_output_embeddings().weight
        self.head_rows = torch.tensor(token_ids, device=weight.device)
        self.head = weight.new_empty(len(token_ids), weight.shape[1], requires_grad=False)
        shape = cache_shape(model.config.text_config, batch, capacity)
        self.cache = StaticTreeCache(shape, width, weight.dtype, weight.device)
        self.not_padding = torch.ones(batch, capacity, dtype=torch.bool, device=weight.device)
        self.graphs, self.failed = graphs, False
        self.lock = threading.Lock()
        self.operations: TorchOperations | None = None
        self.recorded: dict[Any, CapturedPass] = {}
        self.pool: Any = None  # memory that all recordings share; one runs at a time

    def run(self, function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """One pass of this plan; what it returns may be overwritten by the next one."""
        key = (function.__name__, *((tensor.shape, tensor.dtype) for tensor in inputs))
        # Buffers may be written to in any mode later, and kernels are launched on the current device.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(self.head):
            if self.graphs and key not in self.recorded:
                with _RECORDING_LOCK:
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
        tree_mask: torch.Tensor,
        places: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Feeds a prompt of L tokens and a tree (prefill).

        Args:
            numbers: int64 [2, B, L + W], ids and positions.
            seen: bool [B, L], false on padding.
            tree_mask: bool [B, W, W].
            places: int64 [image tokens of all rows], among the B (L + W) tokens.
            features: of the pictures, as of `vision_pass`.
        """
        ids, positions = numbers.unbind()
        model, length, width = self._model(), seen.shape[1], self.cache.scratch
        torch.index_select(model.get_output_embeddings().weight, 0, self.head_rows, out=self.head)
        self.not_padding.fill_(True)
        self.not_padding[:, width : width + length] = seen
        embeds = model.get_input_embeddings()(ids)
        if places is not None:
            assert features is not None
            features = features.to(embeds.dtype).flatten(0, 1)
            embeds = embeds.flatten(0, 1).index_copy(0, places, features).view_as(embeds)
        self.cache.feed_prompt(length)
        same_block = model.prompt_blocks(ids[:, : length + 1])
        allowed = prompt_and_tree_mask(seen, tree_mask, same_block).roll(width, dims=2)  # slots begin with the tree
        return self._logits(model, embeds, positions, allowed)[:, length:]

    @torch.no_grad()
    def decode_pass(self, numbers: torch.Tensor, tree_mask: torch.Tensor) -> torch.Tensor:
        """Moves accepted tokens behind the rest, then feeds a tree.

        Args:
            numbers: int64 [B, 4 W + 1]: ids, positions, slots to be moved, where to, and where accepted tokens end.
            tree_mask: bool [B, W, W].
        """
        model, width = self._model(), self.cache.scratch
        ids, positions, source, target, starts = numbers.split((width, width, width, width, 1), dim=1)
        (self.operations or TorchOperations()).move(self.cache, source, target)
        self.cache.feed_tree()
        allowed = self.cache.allowed(tree_mask, starts, self.not_padding)
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
                attention_mask=additive_mask(allowed, self.head.dtype),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
        return (hidden @ self.head.T).float()

    def _model(self) -> Any:
        model = self.model()
        assert model is not None  # it is the caller
        return model

    def _record(self, key: Any, function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> None:
        """Records a pass and compares it with the model's own; slots are afterwards as they were before."""
        failures: list[str] = []
        saved = None
        try:
            saved, on_device = self.cache.buffer.clone(), [tensor.to(self.head.device) for tensor in inputs]
            expected = function(*on_device).clone()
            if not bool(expected.isfinite().all()):  # nothing to compare with: a later call records
                return
            for operations in self._operations_for(function):
                self.operations = operations
                self.cache.buffer.copy_(saved)
                try:
                    self.recorded[key] = self._recording(function, on_device, inputs, saved, expected)
                    break
                except Exception as error:  # whatever a compiler, a driver or an unknown layer may raise
                    failures.append(f"{type(error).__name__}: {error}")
        except torch.OutOfMemoryError as error:  # recording takes more of it than a pass
            failures.append(f"{type(error).__name__}: {error}")
        finally:
            self.operations = None
            if saved is not None:
                self.cache.buffer.copy_(saved)
        if key not in self.recorded:
            self.graphs, self.failed = False, True
            self.recorded.clear()
        if failures:
            used = "CUDA graphs are" if not self.graphs else "Some fused kernels are"
            warnings.warn(f"{used} not used for decoding: {'; then '.join(failures)}", RuntimeWarning, stacklevel=2)

    def _recording(
        self,
        function: Callable[..., torch.Tensor],
        on_device: list[torch.Tensor],
        inputs: tuple[torch.Tensor, ...],
        saved: torch.Tensor,
        expected: torch.Tensor,
    ) -> "CapturedPass":
        """A recording with the current operations that gives what is expected where slots hold what was saved."""
        function(*on_device)  # compiles what needs it
        # Recorded with other numbers than it is compared with, to find out what is computed once and not recorded.
        captured = CapturedPass(function, tuple(torch.zeros_like(tensor) for tensor in inputs), self)
        self.cache.buffer.copy_(saved)
        check_close(captured(*inputs), expected, self.head.dtype)
        return captured

    def _operations_for(self, function: Callable[..., torch.Tensor]) -> list[TorchOperations | None]:
        """What a pass may be recorded with, best first; encoders have none of a decoder's layers."""
        if function.__name__ == "vision_pass":
            return [None]
        return possible_operations(self._model(), self.head.device)


class CapturedPass:
    """A function of tensors of fixed shapes, recorded as a CUDA graph in the memory of a plan.

    Args:
        function: what to record; it has run before, on other tensors of these shapes.
        examples: arguments.
    """

    def __init__(self, function: Callable[..., torch.Tensor], examples: tuple[torch.Tensor, ...], plan: StaticPlan):
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
        self.graph, stream = torch.cuda.CUDAGraph(), recording_stream(device)
        # Other threads may go on using the GPU meanwhile. The outer block leaves the stream even where `graph` fails
        # to end the recording, and itself does not.
        with (
            torch.cuda.stream(stream),
            torch.cuda.graph(self.graph, pool=plan.pool, stream=stream, capture_error_mode="thread_local"),
        ):
            self.output = function(*inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the function returns; overwritten by the next call."""
        self._send(inputs)
        self.graph.replay()
        return self.output

    def _send(self, inputs: tuple[torch.Tensor, ...]) -> None:
        for place, tensor in zip(self.places, inputs, strict=True):
            place.copy_(tensor)
        self.arrived.copy_(self.staged, non_blocking=True)  # read by the time a pass is over: before it is written to


def viewed(stretch: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """A part of uint8 [bytes] as a tensor like another one."""
    return stretch[start : start + like.nbytes].view(like.dtype).view(like.shape)


def rounded_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is no less than `number`."""
    return -(-number // step) * step


def possible_operations(model: Any, device: torch.device) -> list[TorchOperations | None]:
    """What layers may be computed with, best first; `None` is the model's own forward pass."""
    if not supports_fused_layers(model.model.language_model):
        return [None]
    if device.type == "cuda":
        try:
            from .triton_operations import TritonOperations

            return [TritonOperations(), TritonOperations(attends=False), None]
        except ImportError:
            pass
    return [TorchOperations(), None]


def check_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises `RuntimeError` if a recorded pass gives something else than the model's own."""
    found, expected = found.float(), expected.float()
    difference = float((found - expected).square().mean().sqrt() / expected.std().clamp(min=1e-6))
    if not difference <= TOLERANCE.get(dtype, TOLERANCE_IN_HALF_PRECISION):
        raise RuntimeError(f"a recorded pass differs from the plain one by {difference:.3g} of the deviation")
