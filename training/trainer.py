"""TRL's SFTTrainer for mixed robot and vision-language data: rows from a mixture, a balanced loss, figures per source.

The loss is that of the whole step: sums over all processes and accumulated micro-batches, divided once, so that the
same rows give the same loss on any number of processes. Every process computes its part and multiplies it by their
number, since gradients are averaged over processes.
"""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_callback import ProgressCallback, TrainerState
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import maybe_gather_lm_head_ctx

from gen_vla.training.held_out import HeldOutRows
from gen_vla.training.learning_rates import parameter_groups
from gen_vla.training.mixing.mixture import MixedTables
from gen_vla.training.mixing.skipped_rows import receive_counts
from gen_vla.training.mixing.streaming_mixture import StreamingMixture
from gen_vla.training.provenance.training_record import RECIPE


HELD_OUT_PREFIX = "eval_"  # transformers' word, before the names of figures
SCORED_AT_ONCE = 1024  # positions whose logits a GPU holds at a time, for figures only


class CoTrainer(SFTTrainer):
    """SFTTrainer whose rows come from a mixture and whose loss can be balanced.

    Args:
        balance: `"token"`, `"example"` or `"source"`, see `LossRecipe`.
        rates: the largest learning rate of each part of the model (`learning_rates.py`).
    """

    def __init__(
        self,
        *args: Any,
        mixture: MixedTables | StreamingMixture,
        sampler: Sampler[Any] | None,
        balance: str,
        metrics: Any,
        held_out: HeldOutRows | None = None,
        vision_language_weight: float = 1.0,
        rates: dict[str, float] | None = None,
        **kwargs: Any,
    ):
        self.mixture = mixture
        self.sampler = sampler
        self.balance = balance
        self.source_metrics = metrics
        self.held_out, self.held_out_metrics = held_out, copy.deepcopy(metrics)
        self.vision_language_weight = vision_language_weight
        self.rates = rates
        self.positions = [0, 0]  # of batches since the last log: with a token, and all
        # SFTTrainer takes nothing but a `datasets` data set, of which it looks at one row to learn that there are
        # pictures. The rows themselves come from the mixture.
        shown = Dataset.from_list([{"images": [], "prompt": "", "completion": ""}])
        super().__init__(*args, train_dataset=shown, eval_dataset=shown if held_out else None, **kwargs)
        # `compute_loss` divides by the totals of the whole step, accumulated micro-batches included.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        if self.is_fsdp_enabled:
            reduce_in_float32(self.accelerator.state.fsdp_plugin)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; weights that were missing are trained, so that none is any longer; raises `ValueError`
        if it began without weights that are not trained.
        """
        wrapped: Any = self.model
        model: Any = wrapped.get_base_model() if isinstance(wrapped, PeftModel) else wrapped
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        trained = {name.replace(".modules_to_save.default", "") for name in names}  # peft's name of a whole layer
        frozen = [name for name in model.missing_weights if name not in trained]
        if frozen:
            raise ValueError(
                f"got a model to start from without the weights of {len(frozen)} tensors that are not trained "
                f"({', '.join(frozen[:3])}), expected them in its file: they would stay random numbers; take a "
                "complete file, or do not freeze them"
            )
        model.missing_weights = ()
        return super().train(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.rates is not None:
            trained: Any = self.model if model is None else model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            decayed = self.get_decay_parameter_names(trained)
            self.optimizer = kind(parameter_groups(trained, decayed, self.args.weight_decay, self.rates), **settings)
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the mixture. accelerate divides a table's among processes; a stream is divided already."""
        if isinstance(self.mixture, MixedTables):
            return self._get_dataloader(
                dataset=self.mixture,
                description="Training",
                batch_size=self._train_batch_size,
                sampler_fn=lambda _: self.sampler,  # type: ignore[arg-type, return-value]
                is_training=True,
            )
        return DataLoader(
            self.mixture,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        assert self.held_out is not None
        return DataLoader(
            self.held_out,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.held_out.collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # it would take a number from those of the training
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        training, self.source_metrics = self.source_metrics, self.held_out_metrics
        try:
            output: Any = super().evaluation_loop(*args, **kwargs)
            figures = self.source_metrics.read(self.accelerator)
        finally:
            self.source_metrics = training
        output.metrics.update({f"{HELD_OUT_PREFIX}{name}": value for name, value in figures.items()})
        return output

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[None, ...]:
        """Adds a batch to the figures. There is nothing to gather over processes, logits least of all."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            self.partial_loss(model, inputs, None)
        return None, None, None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As in transformers, among the steps that have a checkpoint, so that the best one is kept."""
        return self.control.should_save and super()._determine_best_metric(metrics, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As in transformers, with the run's recipe, and beside an adapter its model's configuration and statistics:
        a checkpoint can be evaluated and published like the finished model."""
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # other processes come by here, too
            return
        run: Any = self.args.output_dir
        recipe, folder = Path(run, RECIPE), Path(output_dir or run)
        if recipe.is_file() and folder != Path(run):
            shutil.copyfile(recipe, folder / RECIPE)
        if unwrapped(self.model) is not self.model:
            unwrapped(self.model).config.save_pretrained(folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL writes one for every checkpoint; `publishing/card.py` writes that of a repository."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Reads a checkpoint's weights, every one of them.

        `save_pretrained` writes DINOv2's attention under the names of transformers 4. `from_pretrained` translates
        them back; Trainer's own way does not, and would go on with the weights of initialisation there.
        """
        # Shards are written and read by accelerate, adapters by peft, both under the model's own names.
        if self.is_fsdp_enabled or isinstance(model or self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target: Any = model or self.model
        saved = type(target).from_pretrained(resume_from_checkpoint, config=target.config, dtype=target.dtype)
        saved.check_weights()
        target.load_state_dict(saved.state_dict(), strict=True)

    def load_finished(self, checkpoint: str) -> None:
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        totals: Any = torch.stack([self.batch_totals(batch) for batch in batch_samples]).sum(dim=0)
        return self.accelerator.reduce(totals.to(device))  # type: ignore[return-value]

    def batch_totals(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return step_totals(batch["token_weights"], batch["is_robot"])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """`partial_loss` of this micro-batch, times the number of processes.

        Args:
            num_items_in_batch: the sum of the step's `batch_totals`; by default the micro-batch is the step.
        """
        if return_outputs:
            raise ValueError("got return_outputs=True, expected False; set prediction_loss_only for evaluation")
        receive_counts(self.mixture, inputs)
        mask = inputs["attention_mask"]
        self.positions = [self.positions[0] + int(mask.sum()), self.positions[1] + mask.numel()]
        loss = self.partial_loss(model, inputs, num_items_in_batch)
        return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

    def partial_loss(self, model: Any, inputs: dict[str, Any], totals: torch.Tensor | None) -> torch.Tensor:
        """This micro-batch's part of the step's weighted negative log-likelihood.

        Args:
            totals: float [4], `step_totals` of the step; by default of this micro-batch.
        """
        weights = inputs.pop("token_weights")[:, 1:]
        is_robot, source_id, replaced = (inputs.pop(name) for name in ("is_robot", "source_id", "replaced"))
        log_probs, predicted = score_answers(model, inputs)
        loss = balanced_loss(-log_probs, weights, is_robot, self.balance, totals, self.vision_language_weight)
        with torch.no_grad():
            self.source_metrics.add(log_probs, predicted, inputs["labels"][:, 1:], source_id, replaced)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the figures per source since the last log and the share of `padding`; held-out figures are complete."""
        if any(name.startswith(HELD_OUT_PREFIX) for name in logs):
            super().log(logs, start_time)
            return
        local = torch.tensor(self.positions, dtype=torch.float32, device=self.accelerator.device)
        reduced: Any = self.accelerator.reduce(local)
        (filled, places), self.positions = reduced.tolist(), [0, 0]
        padding = {"padding": 1 - filled / places} if places else {}
        super().log({**logs, **padding, **self.source_metrics.read(self.accelerator)}, start_time)


def reduce_in_float32(plugin: Any) -> None:
    """Lets FSDP add up gradients over processes in float32, as DDP does; accelerate would do it in bfloat16.

    Weights and optimizer state are float32 in either, and the forward and backward passes compute in bfloat16.
    """
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


class SourceProgress(ProgressCallback):
    """Trainer's progress bar with the latest figures at its end, instead of a line of all figures at every log.

    Every figure is in the log history and goes to whatever `report_to` names.
    """

    SHOWN = {  # noqa: RUF012  # what stands behind the bar, under which name
        "robot/loss": "robot",
        "vision_language/loss": "vision-language",
        "robot/sign_accuracy": "signs right",
        "eval_robot/loss": "robot, held out",
        "eval_tabletop/success": "trials that succeed",
    }

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.shown |= {name: f"{logs[key]:.3f}" for key, name in self.SHOWN.items() if key in logs}
            if self.shown:
                self.training_bar.set_postfix(self.shown)


def score_answers(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities float [B, L - 1] of the next-token labels, and the most likely tokens, int64 [B, L - 1].

    Both are zero where nothing is supervised. On a GPU this is TRL's fused output layer, which never holds the logits
    and scores supervised positions only. On a CPU that layer scores every position, and twice, so there the plain one
    is asked for the columns in which any row is supervised: less than half the work.
    """
    labels = inputs["labels"][:, 1:]
    if labels.device.type != "cpu":
        return score_fused(model, inputs)
    columns = (labels != -100).any(dim=0).nonzero().squeeze(1)
    unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**unlabelled, use_cache=False, logits_to_keep=columns).logits.float()
    kept = labels[:, columns]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), kept.flatten(), reduction="none")
    log_probs = losses.new_zeros(labels.shape).index_copy(1, columns, -losses.view(kept.shape))
    predicted = torch.zeros_like(labels).index_copy(1, columns, logits.argmax(dim=-1))
    return log_probs, predicted.masked_fill(labels == -100, 0)


def score_fused(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What `score_answers` does on a GPU. The fused layer tells right from wrong, and not which token was likelier."""
    labels = inputs["labels"][:, 1:]
    with likeliest_tokens(model, labels != -100) as likeliest:
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    predicted = torch.zeros_like(labels).masked_scatter(labels != -100, likeliest[0])
    return outputs.log_probs, torch.where(outputs.is_top1.bool(), labels, predicted).masked_fill(labels == -100, 0)


@contextmanager
def likeliest_tokens(model: Any, supervised: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Collects the tokens int64 [n] that a forward pass inside finds likeliest behind the n supervised positions.

    They are looked up before the pass ends: there FSDP and ZeRO-3 hold the whole output layer for the loss, and behind
    it every process would have to gather it once more. `supervised` is bool [B, L], of all positions but the first.
    """
    kept: list[torch.Tensor] = []
    head = unwrapped(model).get_output_embeddings()

    def keep(module: Any, arguments: Any, output: Any) -> None:
        hidden = output.last_hidden_state.detach()[:, :-1][supervised]
        with torch.no_grad(), maybe_gather_lm_head_ctx(head.weight):
            weight = head.weight.full_tensor() if isinstance(head.weight, DTensor) else head.weight
            parts = [(part.to(weight.dtype) @ weight.T).argmax(dim=-1) for part in hidden.split(SCORED_AT_ONCE)]
        kept.append(torch.cat(parts))

    handle = unwrapped(model).base_model.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def unwrapped(model: Any) -> Any:
    """The model inside of what distributes it over processes and of adapters."""
    model = getattr(model, "module", model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def step_totals(token_weights: torch.Tensor, is_robot: torch.Tensor) -> torch.Tensor:
    """What a loss is divided by: float [4], the weights of robot and of vision-language tokens, rows of each.

    `token_weights` are float [B, L], zero where nothing is supervised; `is_robot` is bool [B].
    """
    per_row = token_weights.sum(dim=1)
    sums = [per_row[is_robot].sum(), per_row[~is_robot].sum(), is_robot.sum(), (~is_robot).sum()]
    return torch.stack([entry.float() for entry in sums])


def balanced_loss(
    token_losses: torch.Tensor,
    weights: torch.Tensor,
    is_robot: torch.Tensor,
    balance: str,
    totals: torch.Tensor | None = None,
    vision_language_weight: float = 1.0,
) -> torch.Tensor:
    """One number from token losses; the parts of a step add up to the step's.

    Args:
        token_losses: float [B, L], zero where nothing is supervised.
        weights: float [B, L], zero there too.
        is_robot: bool [B].
        balance: `"token"`: weighted mean over all tokens; `"example"`: mean over rows of each row's weighted mean;
            `"source"`: mean over the kinds present of each kind's weighted mean over its tokens.
        totals: float [4], `step_totals` of the whole step this is a part of; by default of these rows.
        vision_language_weight: what vision-language rows' part is multiplied by; nothing else changes.
    """
    robot_weight, other_weight, *rows = totals if totals is not None else step_totals(weights, is_robot)
    weighted = (token_losses * weights).sum(dim=1)
    weighted = torch.where(is_robot, weighted, weighted * vision_language_weight)
    if balance == "token":
        return weighted.sum() / (robot_weight + other_weight).clamp(min=1e-8)
    if balance == "example":
        return (weighted / weights.sum(dim=1).clamp(min=1e-8)).sum() / sum(rows)
    kinds = sum((count > 0).float() for count in rows)
    divisors = torch.where(is_robot, robot_weight, other_weight).clamp(min=1e-8)
    return (weighted / divisors).sum() / kinds
