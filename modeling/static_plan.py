"""The passes of tree decoding over buffers that stay: prompt, pictures, trees, each recorded as a CUDA graph.

Decides: what a pass computes on the device itself, how it is recorded and compared. Refuses to know: sizes, which call
uses a plan (`static_passes.py`), how a decoder layer is computed (`lean_layers.py`).
"""

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch

from .captured_pass import CapturedPass
from .decoder_operations import PlainOperations
from .lean_layers import can_be_lean, input_scale, run_layers
from .slot_cache import SlotCache, cache_shape
from .tree_passes import additive, with_prompt


# How far a recorded pass may be from the model's own: root mean square, as a share of the deviation of what it gives.
CLOSE = {torch.float32: 1e-3}
CLOSE_IN_HALF_PRECISION = 0.06
_ONE_RECORDS = threading.Lock()  # a process can record one graph at a time


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
    ) -> CapturedPass:
        """A recording with the operations in use that gives what is expected where slots hold what was saved."""
        function(*on_device)  # compiles what needs it
        # Recorded with other numbers than it is compared with: what is computed once and not recorded is found out.
        captured = CapturedPass(function, tuple(torch.zeros_like(tensor) for tensor in inputs), self)
        self.cache.buffer.copy_(saved)
        check_close(captured(*inputs), expected, self.head.dtype)
        return captured

    def _operations_for(self, function: Callable[..., torch.Tensor]) -> list[PlainOperations | None]:
        """What a pass may be recorded with, best first; encoders have none of a decoder's layers."""
        if function.__name__ == "vision_pass":
            return [None]
        return possible_operations(self._model(), self.head.device)


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
