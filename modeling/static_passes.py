"""Passes of tree decoding whose shapes repeat, recorded as CUDA graphs on a GPU.

Decides: to which sizes prompts, widths and caches are rounded up, what a recorded pass computes on the device itself,
when a recording is used. Refuses to know: what is in a tree, which tokens are accepted (`tree_decoding.py`).

A decode pass is a few hundred small kernels. Launched one by one they keep a GPU waiting for the CPU; a CUDA graph
launches them at once, but always with the same shapes at the same addresses:

    prompt pass     [B, L + W]  left-padded to a multiple of 16, W tokens of trees behind it
    decode pass     [B, W]      W a multiple of 16, over caches of a multiple of 128 slots

One plan holds the buffers of a batch size and capacity, and its recordings. Each is compared with the plain pass when
it is made. Where recording fails or gives something else, a warning says so and plain passes go on.
"""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch

from .tree_passes import Fed, Prompt, TreeCache, additive, padded, prompt_positions, with_prompt


PROMPT_STEP = 16  # static prompts are as long as multiples of this
WIDTH_STEP = 16  # static widths are multiples of this
CAPACITY_STEP = 128  # and static caches of this
CLOSE = 0.02  # how far a recorded pass may be from the plain one, as a share of the largest logit
# Per model, since a recorded graph can be neither copied nor pickled with it.
_PLANS: "weakref.WeakKeyDictionary[Any, dict[Any, StaticPlan]]" = weakref.WeakKeyDictionary()


class StaticPasses:
    """What `GrowingPasses` does, in shapes that repeat.

    Args:
        prompt: of one call.
        plan: what stays from call to call, for this batch size and capacity; see `static_plan`.
    """

    def __init__(self, model: Any, prompt: Prompt, plan: "StaticPlan"):
        self.model, self.plan = model, plan
        self.prompt: Prompt | None = lengthened(prompt, model.config.image_token_id)  # until it has been fed
        self.starts = torch.full((len(prompt.ids), 1), self.prompt.ids.shape[1])  # int64 [B, 1]: slots each row keeps
        self.source: torch.Tensor | None = None  # int64 [B, K]: kept slots of the last pass, not yet moved together
        self.target: torch.Tensor | None = None

    def width(self, widest: int) -> int:
        """How wide a pass is in which the widest row feeds so many tokens."""
        moving = 0 if self.source is None else self.source.shape[1]
        return rounded_up(max(widest, moving), WIDTH_STEP)

    def run(self, fed: Fed) -> torch.Tensor:
        """Logits float32 [B, W, G]; in the first pass [B, 1 + W, G], behind the prompt's last token, too."""
        width = fed.ids.shape[1]
        if int(self.starts.max()) + width > self.plan.cache.capacity:
            raise RuntimeError(f"got {self.starts.max()} + {width} slots, expected {self.plan.cache.capacity} at most")
        if self.prompt is not None:
            return self._run_prompt(self.prompt, fed)
        slots = self.starts + torch.arange(width)
        # What the last pass accepted moves together at the beginning of this one, in as many slots as a pass is wide.
        source, target = slots, slots
        if self.source is not None and self.target is not None:
            source = torch.cat((self.source, slots), dim=1)[:, :width]
            target = torch.cat((self.target, slots), dim=1)[:, :width]
        numbers = torch.stack((fed.ids, fed.positions, slots, source, target))
        return self.plan.run(self.plan.decode_pass, (numbers, fed.sight))

    def _run_prompt(self, prompt: Prompt, fed: Fed) -> torch.Tensor:
        self.model.model.check_pictures(prompt.ids, prompt.pixel_values)
        ids = torch.cat((prompt.ids, fed.ids), dim=1)
        positions = torch.cat((prompt_positions(prompt), fed.positions), dim=1)
        inputs = (torch.stack((ids, positions)), prompt.mask.bool(), fed.sight)
        if prompt.pixel_values is not None:
            places = (ids == self.model.config.image_token_id).flatten().nonzero()[:, 0]
            inputs = (*inputs, places, prompt.pixel_values)
        return self.plan.run(self.plan.prompt_pass, inputs)

    def keep(self, paths: list[list[int]]) -> None:
        """Keeps the prompt of the first pass, and of what was fed the places each row names."""
        kept, real = padded(paths)
        columns = self.starts + torch.arange(kept.shape[1])
        # Places a row has no use for stay where they are: behind its end, to be overwritten.
        self.source = torch.where(real, self.starts + kept, columns)
        self.target = columns
        self.starts = self.starts + real.sum(dim=1, keepdim=True)
        self.prompt = None


class StaticPlan:
    """Buffers of one batch size and capacity, kept for a model between calls, and the recorded passes over them.

    Args:
        head: float [G, width], the rows of the output layer that are wanted.
        capacity: slots per row.
        graphs: record each shape of a pass as a CUDA graph.

    Attributes:
        cache: keys and values.
        real: bool [B, slots], false where the prompt is padded.
    """

    def __init__(self, model: Any, head: torch.Tensor, batch: int, capacity: int, graphs: bool):
        self.model = weakref.ref(model)
        self.head = head.clone()
        self.cache = TreeCache(capacity)
        self.real = torch.ones(batch, capacity, dtype=torch.bool, device=head.device)
        self.graphs = graphs
        self.recorded: dict[Any, CapturedPass] = {}
        self.pool: Any = None  # memory that all recordings share; one runs at a time

    def run(self, function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """One pass of this plan; what it returns may be overwritten by the next one."""
        key = (function.__name__, *(tensor.shape for tensor in inputs))
        if self.graphs and key not in self.recorded:
            self._record(key, function, inputs)
        if key in self.recorded:
            return self.recorded[key](*inputs)
        return function(*(tensor.to(self.head.device) for tensor in inputs))

    @torch.no_grad()
    def prompt_pass(
        self,
        numbers: torch.Tensor,
        seen: torch.Tensor,
        sight: torch.Tensor,
        places: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Feeds a prompt of L tokens and a tree, into the first slots.

        Args:
            numbers: int64 [2, B, L + W], ids and positions.
            seen: bool [B, L], false on padding.
            sight: bool [B, W, W].
            places: int64 [image tokens of all rows], among the B (L + W) tokens.
            pixel_values: float [pictures, C, H, W].
        """
        ids, positions = numbers.unbind()
        model, length = self._model(), seen.shape[1]
        self.real.fill_(True)
        self.real[:, :length] = seen
        self.cache.length, self.cache.slots = 0, None
        embeds = model.get_input_embeddings()(ids)
        if places is not None:
            features = model.model.get_image_features(pixel_values).to(embeds.dtype)
            embeds = embeds.flatten(0, 1).index_copy(0, places, features.flatten(0, 1)).view_as(embeds)
        allowed = with_prompt(seen, sight, model.prompt_is_bidirectional)
        return self._logits(model, embeds, positions, allowed)[:, length - 1 :]

    @torch.no_grad()
    def decode_pass(self, numbers: torch.Tensor, sight: torch.Tensor) -> torch.Tensor:
        """Moves what was accepted together, then feeds a tree.

        Args:
            numbers: int64 [5, B, W]: ids, positions, the slots they go to, slots to be moved, and where to.
            sight: bool [B, W, W].
        """
        ids, positions, slots, source, target = numbers.unbind()
        model = self._model()
        self.cache.move(source, target)
        self.cache.slots = slots
        before = torch.arange(self.cache.capacity, device=slots.device) < slots[:, :1]
        allowed = (before & self.real)[:, None].repeat(1, slots.shape[1], 1)
        allowed.scatter_(2, slots[:, None].expand(-1, slots.shape[1], -1), sight)
        return self._logits(model, model.get_input_embeddings()(ids), positions, allowed)

    def _logits(
        self, model: Any, embeds: torch.Tensor, positions: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
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
        """Records a pass and compares it with the plain one; slots are afterwards as they were before."""
        saved = [(buffer, buffer.clone()) for buffer in (*self.cache.keys, *self.cache.values)]

        def restore() -> None:
            for buffer, content in saved:
                buffer.copy_(content)

        plain = function(*(tensor.to(self.head.device) for tensor in inputs)).clone()
        restore()
        try:
            captured = CapturedPass(function, inputs, self)
            difference = float((captured(*inputs) - plain).abs().max()) if plain.numel() else 0.0
            if not difference <= CLOSE * float(plain.abs().max()):
                raise RuntimeError(f"a recorded pass differs from the plain one by {difference:.3g}")
            self.recorded[key] = captured
        except RuntimeError as error:
            self.graphs = False
            self.recorded.clear()
            warnings.warn(f"CUDA graphs are not used for decoding: {error}", RuntimeWarning, stacklevel=2)
        restore()


class CapturedPass:
    """A function of tensors of fixed shapes, recorded as a CUDA graph.

    Args:
        function: what to record; it has run before, on other tensors of these shapes.
        examples: arguments.
        plan: whose memory and device it uses.
    """

    def __init__(self, function: Callable[..., torch.Tensor], examples: tuple[torch.Tensor, ...], plan: StaticPlan):
        plan.pool = plan.pool or torch.cuda.graph_pool_handle()
        self.inputs = [tensor.to(plan.head.device, copy=True) for tensor in examples]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=plan.pool):
            self.output = function(*self.inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the function returns; overwritten by the next call."""
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor if tensor.is_cuda else tensor.pin_memory(), non_blocking=True)
        self.graph.replay()
        return self.output


def static_plan(model: Any, head: torch.Tensor, token_ids: tuple[int, ...], batch: int, needed: int) -> StaticPlan:
    """The plan for a batch size and at least `needed` slots; kept while the model's weights stay where they are.

    A capacity is rounded up, so that prompts of different lengths share a plan.

    Args:
        head, token_ids: the wanted rows of the output layer and which they are.
    """
    graphs = records_graphs(head.device)
    # A recording reads weights where they lay: what is moved, or replaced as by an adapter, is recorded anew.
    place = (addresses(model) if graphs else head.device, head.dtype, model.training)
    plans = _PLANS.setdefault(model, {})
    for key in [key for key in plans if key[0] != place]:
        del plans[key]
    key = (place, token_ids, batch, rounded_up(needed, CAPACITY_STEP))
    if key not in plans:
        plans[key] = StaticPlan(model, head, batch, key[-1], graphs)
    plans[key].head.copy_(head)
    return plans[key]


def records_graphs(device: torch.device) -> bool:
    """Whether passes on a device can be recorded."""
    return device.type == "cuda"


def addresses(model: Any) -> int:
    """A number that changes when a weight is moved, added or replaced; `parameters()` takes several times as long."""
    modules, found = [model], []
    while modules:
        module = modules.pop()
        found.extend(weight.data_ptr() for weight in module._parameters.values() if weight is not None)
        modules.extend(part for part in module._modules.values() if part is not None)
    return hash(tuple(found))


def lengthened(prompt: Prompt, image_token_id: int) -> Prompt:
    """A prompt on the CPU, padded on the left to a length that repeats; pictures stay where they are."""
    ids, mask = prompt.ids.cpu(), prompt.mask.cpu()
    more = rounded_up(ids.shape[1], PROMPT_STEP) - ids.shape[1]
    ids = torch.nn.functional.pad(ids, (more, 0), value=int(image_token_id == 0))  # any token but the image's
    return Prompt(ids, torch.nn.functional.pad(mask, (more, 0)), prompt.pixel_values)


def rounded_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is no less than `number`."""
    return -(-number // step) * step
