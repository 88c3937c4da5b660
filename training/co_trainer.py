"""TRL's SFTTrainer for mixed robot and vision-language data.

Decides: the order of rows (`HalfAndHalfSampler`), the loss from per-token log-probabilities, and the figures logged
per source. Refuses to know: how rows become tokens, which model is trained, where results go.

Logged beside the trainer's own figures, each over the supervised tokens of the step:

    robot/loss, vision_language/loss                      mean negative log-likelihood, unweighted, in nats
    robot/token_accuracy, vision_language/token_accuracy  share of tokens that are the most likely one
    robot/exact, vision_language/exact                    share of rows with every token right
    robot/sign_accuracy                                   share of signs that are right, zeros included
"""

from typing import Any

import torch
from transformers.trainer_callback import ProgressCallback
from trl.trainer.sft_trainer import SFTTrainer

from gen_vla.training.mixture import HalfAndHalfSampler


class CoTrainer(SFTTrainer):
    """SFTTrainer with a sampler that mixes and a loss that can be balanced.

    Args:
        sampler: the order of rows over the whole run.
        balance: `"token"`, `"example"` or `"source"`, see `recipe.LossRecipe`.
        sign_ids: token ids that are signs.
        kwargs: as for `SFTTrainer`.
    """

    def __init__(self, *args: Any, sampler: HalfAndHalfSampler, balance: str, sign_ids: list[int], **kwargs: Any):
        self.sampler = sampler
        self.balance = balance
        self.sign_ids = torch.tensor(sign_ids or [-1])
        super().__init__(*args, **kwargs)
        # The loss below is a mean over the micro-batch, so Trainer divides by the accumulation steps itself.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> HalfAndHalfSampler:
        return self.sampler

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "source" not in self._signature_columns:
            self._signature_columns.append("source")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Reads a checkpoint's weights, every one of them.

        `save_pretrained` writes DINOv2's attention under the names of transformers 4. `from_pretrained` translates
        them back; Trainer's own way does not, and would go on with the weights of initialisation there.
        """
        if self.is_fsdp_enabled:  # its shards are written and read by accelerate, under the model's own names
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target: Any = model or self.model
        saved = type(target).from_pretrained(resume_from_checkpoint, config=target.config, dtype=target.dtype)
        target.load_state_dict(saved.state_dict(), strict=True)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The weighted negative log-likelihood of the answers. `inputs` are those of `CoTrainingCollator`."""
        if return_outputs:
            raise ValueError("got return_outputs=True, expected False; set prediction_loss_only for evaluation")
        weights = inputs.pop("token_weights")[:, 1:]
        is_robot = inputs.pop("is_robot")
        log_probs, is_top1 = score_answers(model, inputs)
        loss = balanced_loss(-log_probs, weights, is_robot, self.balance)
        with torch.no_grad():
            self._log_sources(log_probs, is_top1, inputs["labels"][:, 1:], is_robot)
        return loss

    def _log_sources(
        self, log_probs: torch.Tensor, is_top1: torch.Tensor, labels: torch.Tensor, is_robot: torch.Tensor
    ) -> None:
        """Sums over all processes of this step, turned into the means of the docstring above."""
        mode = "train" if self.model is not None and self.model.training else "eval"
        supervised = labels != -100
        right = is_top1 & supervised
        signs = torch.isin(labels, self.sign_ids.to(labels.device)) & supervised
        sums = []
        for rows in (is_robot, ~is_robot):
            exact = (right == supervised).all(dim=1) & rows
            for part in (-log_probs, right, supervised, signs & right, signs):
                sums.append(part[rows].sum())
            sums += [exact.sum(), rows.sum()]
        reduced: Any = self.accelerator.reduce(torch.stack([entry.float() for entry in sums]))
        totals = reduced.tolist()
        for name, offset in (("robot", 0), ("vision_language", 7)):
            loss, right_tokens, tokens, right_signs, sign_tokens, exact_rows, rows = totals[offset : offset + 7]
            if not rows:
                continue
            figures = {"loss": loss / tokens, "token_accuracy": right_tokens / tokens, "exact": exact_rows / rows}
            if name == "robot" and sign_tokens:
                figures["sign_accuracy"] = right_signs / sign_tokens
            for figure, value in figures.items():
                self._metrics[mode][f"{name}/{figure}"].append(value)


class SourceProgress(ProgressCallback):
    """Trainer's progress bar with the latest figures at its end, instead of a line of all figures at every log.

    Every figure is in the log history and goes to whatever `report_to` names.
    """

    SHOWN = {  # noqa: RUF012  # what stands behind the bar, under which name
        "robot/loss": "robot",
        "vision_language/loss": "vision-language",
        "robot/sign_accuracy": "signs right",
    }

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            shown = {name: f"{logs[key]:.3f}" for key, name in self.SHOWN.items() if key in logs}
            if shown:
                self.training_bar.set_postfix(shown)


def score_answers(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities float [B, L - 1] of the next-token labels, and bool [B, L - 1] whether each is the likeliest.

    Both are zero where nothing is supervised. On a GPU this is TRL's fused output layer, which never holds the logits
    and scores supervised positions only. On a CPU that layer scores every position, and twice, so there the plain one
    is asked for the columns in which any row is supervised: less than half the work.
    """
    labels = inputs["labels"][:, 1:]
    if labels.device.type != "cpu":
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        return outputs.log_probs, outputs.is_top1.bool()
    columns = (labels != -100).any(dim=0).nonzero().squeeze(1)
    unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**unlabelled, use_cache=False, logits_to_keep=columns).logits.float()
    kept = labels[:, columns]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), kept.flatten(), reduction="none")
    log_probs = losses.new_zeros(labels.shape).index_copy(1, columns, -losses.view(kept.shape))
    is_top1 = torch.zeros(labels.shape, dtype=torch.bool).index_copy(1, columns, logits.argmax(dim=-1) == kept)
    return log_probs, is_top1


def balanced_loss(
    token_losses: torch.Tensor, weights: torch.Tensor, is_robot: torch.Tensor, balance: str
) -> torch.Tensor:
    """One number from token losses.

    Args:
        token_losses: float [B, L], zero where nothing is supervised.
        weights: float [B, L], zero there too.
        is_robot: bool [B].
        balance: `"token"`: weighted mean over all tokens; `"example"`: mean over rows of each row's weighted mean;
            `"source"`: mean over the kinds present of each kind's weighted mean over its tokens.
    """
    weighted = token_losses * weights
    if balance == "token":
        return weighted.sum() / weights.sum().clamp(min=1e-8)
    if balance == "example":
        return (weighted.sum(dim=1) / weights.sum(dim=1).clamp(min=1e-8)).mean()
    if balance != "source":
        raise ValueError(f"got balance={balance!r}, expected 'token', 'example' or 'source'")
    kinds = [rows for rows in (is_robot, ~is_robot) if bool(rows.any())]
    return torch.stack([weighted[rows].sum() / weights[rows].sum().clamp(min=1e-8) for rows in kinds]).mean()
