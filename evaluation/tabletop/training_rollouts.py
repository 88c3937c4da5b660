"""Trials of the tabletop while a run trains (`training.rollouts` of a recipe), as figures in its log:

    eval_tabletop/success      mean over tasks of the share of trials that were done
    eval_tabletop/malformed    share of the trials that ended without an action

The layouts are neither in demonstrations nor among those that `gen-vla evaluate tabletop` judges by.
"""

from functools import partial
from typing import Any

from transformers import TrainerCallback

from gen_vla.evaluation.policies.rollout import VLAPolicy
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, TASKS
from gen_vla.evaluation.simulation.rollouts import run_episodes
from gen_vla.evaluation.simulation.simulators import Simulators
from gen_vla.evaluation.tabletop.episodes import EpisodeLog, plan_jobs
from gen_vla.evaluation.tabletop.scores import summarise
from gen_vla.processors import select_statistics
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.trainer import HELD_OUT_PREFIX, CoTrainer, unwrapped


SEEDS = EVALUATION_SEEDS[len(EVALUATION_SEEDS) // 2 :]


class TabletopRollouts(TrainerCallback):
    """Runs the trials in the main process, while the others wait; raises `ValueError` for a model that cannot act on
    the tabletop, or whose weights are spread over processes."""

    def __init__(self, recipe: Recipe, trainer: CoTrainer):
        assert recipe.training.rollouts is not None
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                "got training.rollouts of a model whose weights are spread over processes, expected whole weights in "
                "the main process, which runs them; use DDP or one process, or set training.rollouts to null"
            )
        self.settings, self.trainer, self.model = recipe.training.rollouts, trainer, unwrapped(trainer.model)
        select_statistics(self.model.config.norm_stats, self.settings.key)
        key = self.settings.key or next(iter(self.model.config.norm_stats))
        self.policy = VLAPolicy(self.model, trainer.processing_class, key)
        self.jobs = plan_jobs(("matching",), self.settings.tasks or TASKS, self.settings.trials, seeds=SEEDS)
        self.simulators = Simulators(1, partial(TabletopEnv, recipe.data.image_size))
        if trainer.is_world_process_zero():
            TabletopEnv(recipe.data.image_size).reset("pick_object", SEEDS[0])  # fails here where nothing can simulate

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step % self.settings.steps == 0:
            figures, should_log = self.run(), control.should_log
            self.trainer.log({f"{HELD_OUT_PREFIX}tabletop/{name}": value for name, value in figures.items()})
            control.should_log = should_log  # of the step's own figures, which `log` takes for written

    def run(self) -> dict[str, float]:
        log, training = EpisodeLog(None, {}), self.model.training
        self.model.eval()
        try:
            with self.trainer.compute_loss_context_manager():
                run_episodes(self.policy, self.jobs, self.simulators, log.finish, name="rollouts")
        finally:
            self.model.train(training)
        found = summarise(log.episodes)["matching"]
        malformed = found["all"]["malformed"] / max(found["all"]["n"], 1)
        return {"malformed": malformed} | ({} if found["mean"] is None else {"success": found["mean"]})
