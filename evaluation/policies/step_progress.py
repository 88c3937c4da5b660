"""A progress bar of the steps of episodes that run in lock step, since whole batches of episodes end at once."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm


class StepProgress:
    """Steps done of those that may come, and how many episodes have ended.

    An episode that ends early takes the rest of its steps out of the total: the time left is at most what is shown.

    Args:
        limits: the largest number of steps of each episode to run.
        done: episodes that ended in an earlier run, counted only.
        name: of the policy.
        progress: whether anything is shown.
    """

    def __init__(self, limits: Sequence[int], done: int = 0, name: str | None = None, progress: bool = True):
        self.episodes, self.ended = done + len(limits), done
        self.bar = tqdm(total=sum(limits), unit="step", desc=name, disable=not progress)
        self._show_episodes()

    def step(self, episodes: int = 1) -> None:
        """So many episodes advanced by a step."""
        self.bar.update(episodes)

    def end(self, left: int) -> None:
        """An episode ended `left` steps before its limit."""
        self.ended += 1
        self.more(-left)
        self._show_episodes()

    def more(self, steps: int) -> None:
        """Adds steps to the total, such as those of an episode that begins again."""
        self.bar.total += steps

    def _show_episodes(self) -> None:
        self.bar.set_postfix_str(f"{self.ended}/{self.episodes} episodes", refresh=False)

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.refresh()
        self.bar.close()
