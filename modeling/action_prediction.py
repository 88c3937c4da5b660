"""`predict_actions`: from observations to robot actions, under the action grammar, by tree decoding or `generate`."""

import copy
import itertools
import statistics
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList

from .action_grammar import ActionGrammar, ActionLogitsProcessor, BinGrammar, grammar_from_action_config
from .action_statistics import statistics_per_row, unnormalize_actions
from .base_configuration import check_context
from .cpu_threads import limit_cpu_threads
from .draft_trees import action_tokens, allowed_columns
from .generation_options import checked_options
from .openvla_contract import ActionPrediction
from .prefix_actions import ForcedTokens, prefix_tokens
from .recorded_passes import WIDTH_STEP
from .tree_decoding import DecodingCost, TreeDecoder, longest_forced_run, padded_probabilities
from .verification_passes import prompt_positions


# What was fastest for one row (`gen-vla evaluate decoding`): tree nodes per pass on a CPU; on a GPU the width of a
# pass, accepted tokens included. Batches do best with fewer per row.
DEFAULT_NODES = 8
DEFAULT_WIDTH = 64
MIN_NODES = 4


class ActionPredictionMixin:
    """`predict_actions` for a model with `generate` and an `action_config`."""

    first_position = 0  # of a row's first token, as the language model counts
    lean_layers = False  # record passes with `fused_layers.py` in place of the layers of a Llama or Gemma 1
    picture_inputs: frozenset[str] = frozenset()  # what a processor returns besides ids, mask and pixel_values
    implied_inputs: frozenset[str] = frozenset()  # what it returns that follows from the ids
    windows_bound_blocks = False  # whether sliding windows hold within `prompt_blocks`, too

    # Takes ids [B, L] and what else the processor returned. Returns embeddings float [B, L, width] that contain the
    # features of pictures, and what else the language model takes, by name.
    embed_prompt: Any
    config: Any
    device: Any
    generate: Any
    generation_config: Any
    get_output_embeddings: Any
    check_weights: Any
    states_per_row: Any

    @torch.no_grad()
    @limit_cpu_threads
    def predict_actions(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        pixel_values: Any = None,
        unnorm_key: str | Sequence[str] | None = None,
        previous: Any = None,
        tree_nodes: int | None = None,
        prefix_actions: Any = None,
        state: Any = None,
        **kwargs: Any,
    ) -> ActionPrediction:
        """The actions for a batch of observations: those of choosing one allowed token after another.

        Unless an option asks for something only `generate` has (beams, other caches...), tree decoding takes a
        fraction of the forward passes (`tree_decoding.py`).

        Args:
            input_ids: int64 [B, L], left-padded; the lead-in is appended where it is missing.
            attention_mask: int64 [B, L], 0 on padding.
            pixel_values: float [pictures, C, H, W], as many for each row as its image tokens.
            unnorm_key: one data set for all rows, or one per row.
            previous: without effect; it used to save passes, and will be removed.
            tree_nodes: nodes of a draft tree per pass and row; 0 decodes token by token with `generate`. By default
                what suits the device; `calibrate_tree_nodes` measures it.
            prefix_actions: first steps of each chunk that are decided already, in the units of its data set: float
                [B, k, D], or B arrays [k, D] with a k of their own, below T. The model continues them: real-time
                chunking. They are clipped and rounded as an action string is.
            state: float [B, P], the robot's in the units of its data set, for a model that takes it: what relative
                actions are turned back with. The prompt has it as text already.
            kwargs: options of `generate` (`do_sample`, `temperature`, `num_beams`, `cache_implementation`...). A saved
                generation config has no effect, and `top_k` is off by default. With `cache_implementation="static"`
                passes have shapes that repeat and, on a GPU, run as CUDA graphs; this is the default where a GPU holds
                the whole model, and `"dynamic"` turns it off.

        Raises:
            ValueError: if the model lacks weights, an action format or statistics, inputs or options cannot give whole
                actions, or the model computes NaN.
        """
        self.check_weights()
        if previous is not None:
            warnings.warn("`previous` has no effect any more; leave it out", FutureWarning, stacklevel=4)
        grammar = self.action_grammar
        picture_inputs = {name: kwargs.pop(name) for name in self.picture_inputs & set(kwargs)}
        options = {name: value for name, value in kwargs.items() if name not in self.implied_inputs}
        options = checked_options(options, grammar.max_tokens)
        pictures = {"pixel_values": pixel_values, **picture_inputs}
        check_tensors(input_ids, pixel_values)
        rows = input_ids.shape[0]
        action_statistics = statistics_per_row(self.config.norm_stats, unnorm_key, rows)
        states = self.states_per_row(state, unnorm_key, rows)
        forced = prefix_tokens(grammar, prefix_actions, action_statistics, states)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        by_tree = self._decodes_by_tree(tree_nodes, options)
        if by_tree:  # which looks at tokens on the CPU: one copy is faster than many
            input_ids, mask = input_ids.cpu(), mask.cpu()
        check_prompts(input_ids, mask, self.config.image_token_id)
        lead_in_ids = self.config.action_config["lead_in_ids"]
        prompt, mask = append_lead_in(input_ids, mask, lead_in_ids, pad=grammar.eos_token_id)
        context = self.config.text_config.max_position_embeddings
        check_context(int(mask.sum(dim=1).max()), grammar.max_tokens, context)
        if by_tree:
            nodes = tree_nodes or self.default_tree_nodes(rows)
            if isinstance(grammar, BinGrammar) and nodes == 1:
                nodes = 0  # one of 256 bins is not worth a draft
            temperature = options.get("temperature", 1.0) if options.get("do_sample") else None
            cache = options.get("cache_implementation")
            static = None if cache is None else cache == "static"
            decoder = TreeDecoder(self, grammar, nodes, temperature, static)
            histograms = [entry.get("histogram") for entry in action_statistics]
            found, cost = decoder.decode(prompt, mask, pictures, histograms, forced)
            token_ids = padded_tokens(grammar, [row.tokens for row in found])
            probabilities = [row.probabilities for row in found]
        else:
            token_ids, probabilities = self._generate_action(grammar, prompt, mask, pictures, options, forced)
            cost = DecodingCost(passes=token_ids.shape[1])
        text = [grammar.text(row) for row in token_ids.tolist()]
        normalized = np.stack([grammar.strings.decode(line) for line in text])
        actions = [unnormalize_actions(*row) for row in zip(normalized, action_statistics, states, strict=True)]
        return ActionPrediction(
            np.stack(actions),
            normalized,
            text,
            token_ids,
            padded_probabilities(token_ids, probabilities),
            forward_passes=cost.passes,
            tree_nodes=cost.nodes,
        )

    def prompt_positions(
        self, input_ids: torch.Tensor, seen: torch.Tensor, **pictures: Any
    ) -> tuple[torch.Tensor, torch.Tensor | int]:
        """Positions of a prompt as the language model counts, int64 [..., B, L], and what it adds to those of text
        behind the prompt, [B, 1] or one number.
        """
        return prompt_positions(seen) + self.first_position, self.first_position

    def token_types(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What `generate` takes besides, one number per token of a prompt; by name."""
        return {}

    @property
    def generating_model(self) -> Any:
        """The model whose `generate` writes actions token by token."""
        return self

    def prompt_blocks(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Which tokens of a prompt attend to one another in both directions, bool [B, L, L]; `None` for none."""
        return None

    def default_tree_nodes(self, rows: int) -> int:
        """Tree nodes per pass and row for a batch of `rows`: as calibrated, else what suits most models on the device.

        One for bins: a draft among 256 of them is hardly ever accepted.
        """
        calibrated = self.__dict__.get("_tree_nodes", {}).get((str(self.device), rows))
        if calibrated is not None:
            return calibrated
        if isinstance(self.action_grammar, BinGrammar):
            return 1
        share = 1 / rows**0.5
        if self.device.type != "cuda":
            return max(round(DEFAULT_NODES * share), MIN_NODES)
        width = WIDTH_STEP * max(round(DEFAULT_WIDTH * share / WIDTH_STEP), 1)
        return max(width - 1 - longest_forced_run(self.action_grammar), MIN_NODES)

    def calibrate_tree_nodes(
        self, *, candidates: Sequence[int] = (2, 4, 8, 16, 24, 40, 64, 96, 128), repeats: int = 3, **inputs: Any
    ) -> dict[int, float]:
        """Measures which `tree_nodes` is fastest for typical `inputs` of `predict_actions`, and uses it from now on
        for batches of this size; returns median milliseconds per call, of `repeats`, for each candidate.
        """
        if not candidates or min(candidates) < 1:
            raise ValueError(f"got candidates={tuple(candidates)}, expected numbers of nodes, each at least 1")
        times: dict[int, list[float]] = {nodes: [] for nodes in candidates}
        for repeat in range(repeats + 1):
            for nodes, measured in times.items():
                began = time.perf_counter()
                self.predict_actions(**inputs, tree_nodes=nodes)  # ends with logits on the CPU: the GPU is idle
                if repeat:  # the first round warms up
                    measured.append(1000 * (time.perf_counter() - began))
        medians = {nodes: statistics.median(measured) for nodes, measured in times.items()}
        best = min(medians, key=medians.__getitem__)
        self.__dict__.setdefault("_tree_nodes", {})[str(self.device), len(inputs["input_ids"])] = best
        return medians

    @property
    def action_grammar(self) -> ActionGrammar | BinGrammar:
        """The grammar of `config.action_config`, compiled on first use."""
        if not self.config.action_config:
            raise ValueError(
                "got a model without config.action_config, expected one: it was not trained to act. "
                "make_action_config(codec, tokenizer) in gen_vla.processors writes it"
            )
        cached = self.__dict__.get("_action_grammar")
        if cached is None or cached[0] != self.config.action_config:
            cached = (dict(self.config.action_config), grammar_from_action_config(self.config.action_config))
            self.__dict__["_action_grammar"] = cached
        return cached[1]

    def _generate_action(
        self,
        grammar: ActionGrammar | BinGrammar,
        prompt: Any,
        mask: Any,
        pictures: dict[str, Any],
        options: dict[str, Any],
        forced: Sequence[list[int]],
    ) -> tuple[np.ndarray, list[list[float]]]:
        """Constrained decoding by `generate`: token ids int64 [B, L], and per row their probabilities."""
        length = prompt.shape[1]
        constraint = [ActionLogitsProcessor(grammar, length), ForcedTokens(forced, length)]
        sampling = bool(options.get("do_sample"))
        settings = {
            "do_sample": False,
            "max_new_tokens": grammar.max_tokens,
            "eos_token_id": grammar.eos_token_id,
            "pad_token_id": grammar.eos_token_id,  # what fills finished rows; the grammar allows EOS after EOS
            **({"top_k": 0} if sampling else {}),  # of generate's own defaults the one that changes the distribution
            **options,
        }
        # generate would take what is not set here from the model's generation_config, such as penalties saved with a
        # checkpoint. A shallow copy, which shares all weights, gets an empty one; other threads keep the model's.
        model = copy.copy(self.generating_model)
        model.generation_config = GenerationConfig()
        output = model.generate(
            input_ids=prompt,
            attention_mask=mask,
            **pictures,
            **self.token_types(prompt),
            generation_config=GenerationConfig(**settings, return_dict_in_generate=True, output_logits=True),
            logits_processor=LogitsProcessorList(constraint),
        )
        token_ids = output.sequences[:, prompt.shape[1] :]
        beams = getattr(output, "beam_indices", None)
        columns = torch.tensor(action_tokens(grammar), device=token_ids.device)
        steps = [
            (logits if beams is None else logits[beams[:, step].clamp(min=0)])[:, columns]
            for step, logits in enumerate(output.logits[: token_ids.shape[1]])
        ]
        logits, token_ids = torch.stack(steps, dim=1).float().cpu(), token_ids.cpu().numpy()
        lengths = (token_ids != grammar.eos_token_id).sum(axis=1)
        temperature = options.get("temperature", 1.0) if sampling else 1.0
        probabilities = [
            token_probabilities(grammar, row[:length].tolist(), logits[index, :length] / temperature, forced[index])
            for index, (row, length) in enumerate(zip(token_ids, lengths, strict=True))
        ]
        return token_ids, probabilities

    def _decodes_by_tree(self, tree_nodes: int | None, options: dict[str, Any]) -> bool:
        """Whether tree decoding can do what is asked; raises `ValueError` where it was asked for and cannot."""
        others = sorted(set(options) - {"do_sample", "temperature", "cache_implementation"})
        if options.get("cache_implementation") not in (None, "dynamic", "static"):
            others.append("cache_implementation")
        if not is_weight_only(self.get_output_embeddings()):
            others.append("an output layer that is more than its weight")
        if tree_nodes is not None and tree_nodes < 0:
            raise ValueError(f"got tree_nodes={tree_nodes}, expected 0 for token by token, or a number of nodes")
        if tree_nodes and others:
            raise ValueError(
                f"got tree_nodes={tree_nodes} with {', '.join(others)}, which only generate has; expected one or the "
                "other: leave tree_nodes out"
            )
        return tree_nodes != 0 and not others and self.get_output_embeddings().weight.device.type != "meta"


def token_probabilities(
    grammar: Any, tokens: Sequence[int], logits: torch.Tensor, forced: Sequence[int] = ()
) -> list[float]:
    """Probability of each token of an action, without EOS, among those the grammar allows in its place; 1 for forced
    ones. `logits` are float32 [L, G], of the `action_tokens`.
    """
    states = list(itertools.accumulate(tokens[:-1], lambda state, token: grammar.transitions[state][token], initial=0))
    forbidden = torch.from_numpy(~allowed_columns(grammar)[states])
    columns = torch.from_numpy(np.searchsorted(action_tokens(grammar), tokens))
    chosen = logits.masked_fill(forbidden, -torch.inf).softmax(dim=-1).gather(1, columns[:, None])[:, 0].tolist()
    return [1.0] * len(forced) + chosen[len(forced) :]


def padded_tokens(grammar: ActionGrammar | BinGrammar, rows: Sequence[list[int]]) -> np.ndarray:
    """Token ids int64 [B, L] as `generate` gives them: with EOS, unless the limit comes first."""
    length = min(max(map(len, rows)) + 1, grammar.max_tokens)
    eos = grammar.eos_token_id
    return np.array([tokens + [eos] * (length - len(tokens)) for tokens in rows], dtype=np.int64)


def check_tensors(input_ids: Any, pixel_values: Any) -> None:
    """Raises an error unless inputs are there, and tensors."""
    for name, given in {"input_ids": input_ids, "pixel_values": pixel_values}.items():
        if given is None:
            raise ValueError(f"got no {name}, expected those of processor.action_inputs(image, instruction)")
        if not isinstance(given, torch.Tensor):
            raise TypeError(f"got {name} of type {type(given).__name__}, expected a tensor: return_tensors='pt'")


def check_prompts(input_ids: Any, attention_mask: Any, image_token_id: int) -> None:
    """Raises `ValueError` for rows int64 [B, L] that are padded on the right or have no image token."""
    if not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "got a batch padded on the right, expected the left: an action continues the last token of its row; "
            "use processor.action_inputs or padding_side='left'"
        )
    blind = (input_ids != image_token_id).all(dim=1).nonzero()[:, 0].tolist()
    if blind:
        raise ValueError(
            f"got no image token in row {blind[0]} of {len(input_ids)}, expected a picture for every observation; use "
            "processor.action_inputs(images, instructions)"
        )


def is_weight_only(output_layer: Any) -> bool:
    """Whether an output layer is no more than its weight, of which tree decoding reads a few rows: no bias, no other
    kind of layer (quantised, scaled), no hook, no adapter of PEFT."""
    if "base_layer" in output_layer._modules:
        if not output_layer.disable_adapters and set(output_layer.active_adapters) - set(output_layer.merged_adapters):
            return False
        output_layer = output_layer.base_layer
    hooked = output_layer._forward_hooks or output_layer._forward_pre_hooks
    return type(output_layer).forward is torch.nn.Linear.forward and output_layer.bias is None and not hooked


def append_lead_in(input_ids: Any, attention_mask: Any, lead_in: list[int], pad: int) -> tuple[Any, Any]:
    """Rows and masks int64 [B, L] that all end in the lead-in, still left-padded; `pad` goes before those that did."""
    if not lead_in:
        return input_ids, attention_mask
    wanted = torch.tensor(lead_in, device=input_ids.device)
    has = (input_ids[:, -len(lead_in) :] == wanted).all(dim=1, keepdim=True)
    if bool(has.all()):
        return input_ids, attention_mask
    tail = wanted.expand(len(input_ids), -1)
    appended = torch.cat((input_ids, tail), dim=1)
    shifted = torch.cat((torch.full_like(tail, pad), input_ids), dim=1)
    masks = torch.cat((attention_mask, torch.ones_like(tail)), dim=1)
    shifted_masks = torch.cat((torch.zeros_like(tail), attention_mask), dim=1)
    return torch.where(has, shifted, appended), torch.where(has, shifted_masks, masks)
