"""Scores of tabletop episodes: rates and means worked out by hand."""

from __future__ import annotations

from typing import Any

import needs_simulator  # noqa: F401  # skips this file without one
import pytest
from printed_tables import printed

from gen_vla.evaluation.tabletop.episodes import TabletopEpisode
from gen_vla.evaluation.tabletop.scores import family_weights, rate, summarise, tabletop_table, variants_table


def episodes(outcomes: str, mode: Any = "matching", variant="ordinary/ordinary", task: Any = "pick_object"):
    """One per letter: s success, f failure, m malformed, c crashed."""
    names: dict[str, Any] = {"s": "success", "f": "failure", "m": "malformed", "c": "crashed"}
    return [
        TabletopEpisode(mode, variant, task, 1_000_000 + i, "go", str(i), names[letter], 10 + i, 1)
        for i, letter in enumerate(outcomes)
    ]


def test_malformed_counts_as_failure_and_a_crash_as_nothing():
    found = rate(episodes("ssfmc"))
    assert found == {
        "successes": 2,
        "n": 4,
        "rate": 0.5,
        "interval": [0.15, 0.85],
        "malformed": 1,
        "crashed": 1,
        "median_steps": 10.5,
    }
    assert rate(episodes("cc"))["rate"] is None


def test_the_mean_is_over_tasks_not_over_episodes():
    summary = summarise([*episodes("ssss"), *episodes("fs", task="open_drawer")])
    assert summary["matching"]["mean"] == 0.75
    assert summary["matching"]["all"]["rate"] == pytest.approx(5 / 6, abs=1e-4)


def test_variants_are_averaged_within_their_family_then_over_families():
    lighting = [("lighting/dim", "ss"), ("lighting/bright", "sf"), ("lighting/warm", "ff")]
    found = [e for key, letters in lighting for e in episodes(letters, "variants", key)]
    found += episodes("ss", "variants", "background/brick") + episodes("ff", "variants", "camera/left")
    summary = summarise(found)["variants"]
    assert {name: family["mean"] for name, family in summary["families"].items()} == {
        "background": 1.0,
        "lighting": 0.5,
        "camera": 0.0,
    }
    assert summary["mean"] == 0.5
    assert summary["mean_without_camera"] == 0.75
    assert summary["families"]["lighting"]["variants"]["bright"]["tasks"]["pick_object"]["successes"] == 1
    low, high = summary["interval"]
    assert low < 0.2 < 0.8 < high  # ten episodes, but only two layouts


def test_the_mean_over_families_weighs_families_alike():
    found = [
        *episodes("sf", "variants", "lighting/dim"),
        *episodes("f", "variants", "lighting/dim", task="open_drawer"),
        *episodes("f", "variants", "lighting/warm"),
        *episodes("s", "variants", "camera/left"),
    ]
    weights = family_weights(found)
    assert weights == [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    won = [e.outcome == "success" for e in found]
    mean = summarise(found)["variants"]["mean"]
    assert sum(w * s for w, s in zip(weights, won, strict=True)) == mean == pytest.approx(0.5625, abs=1e-4)


def test_tables_show_malformed_and_crashed_in_columns_of_their_own():
    found = summarise([*episodes("ssfmc"), *episodes("sm", "variants", "lighting/dim")])
    text = printed(tabletop_table({"policy": found}), variants_table(found["variants"]), width=100)
    for expected in ("formed", "crashed", "2/4", "15-85 %", "dim", "without camera"):
        assert expected in text
