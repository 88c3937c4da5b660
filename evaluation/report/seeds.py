"""Policies that differ by their training seed only, and the mean of what they reach.

A policy is a model and its training seed, where a file says it: a folder that was trained again is another policy. The
figure of a mean is like others, with the group as its `model`, and `seeds`: the figures of its runs in the order of
their seeds.
"""

import re
from collections.abc import Sequence

from gen_vla.evaluation.report.comparisons import seed_mean_of
from gen_vla.evaluation.report.figures import Figure
from gen_vla.evaluation.report.trials import TrialFiles
from gen_vla.training.provenance.origin import origin


Policy = tuple[str, int | None]
Groups = dict[str, list[Policy]]
RUN_KEYS = ("model", "mode", "task", "value", "n", "interval", "source")  # of a figure, kept in its mean's `seeds`
ON_SEEDS = (
    "Means over seeds are about a recipe, not about one run of it: how much the seeds differ is in their intervals "
    "(with Student's t), and so are the layouts, which all seeds share. With two seeds they are wide, and have to be: "
    "two runs say little about where a third would lie."
)


def policy_of(figure: Figure) -> Policy:
    return figure["model"], (figure["trained"] or {}).get("seed")


def find_groups(figures: Sequence[Figure]) -> tuple[Groups, list[str]]:
    """Runs of one recipe by the name of their mean, and notes about what was not put together."""
    groups: Groups = {}
    notes = []
    recorded: dict[str, dict[Policy, str]] = {}
    for figure in figures:
        if figure["trained"] and not figure["control"]:
            recorded.setdefault(figure["trained"]["settings"], {})[policy_of(figure)] = figure["trained"]["recipe"]
    for settings, recipes in recorded.items():
        policies = sorted(recipes, key=lambda policy: (policy[1], policy[0]))
        name = group_name(list(recipes.values()))
        if len({seed for _, seed in policies}) < len(policies):
            shown = ", ".join(f"{model} (seed {seed})" for model, seed in policies)
            notes.append(f"No mean over seeds of {name}: of {shown} two are the same run; leave one out.")
        elif len(policies) > 1:
            groups[name if name not in groups else f"{name}-{settings[:6]}"] = policies
    return groups, notes


def group_name(recipes: Sequence[str]) -> str:
    """What recipes of these names are called together: `x` of `x-seed0` and `x-seed1`."""
    names = recipes if len(set(recipes)) == 1 else [re.sub(r"[-_ ]*(seed|run|s)?[-_ ]*\d+$", "", n) for n in recipes]
    return names[0] if len(set(names)) == 1 and names[0] else recipes[0]


def seed_figures(figures: Sequence[Figure], groups: Groups, files: TrialFiles) -> tuple[list[Figure], list[str]]:
    """The means over seeds of everything that two or more runs of a group measured, and notes; figures of a mean are
    marked with its name, `mean`."""
    means, notes = [], []
    for name, policies in groups.items():
        cells: dict[tuple[str, ...], list[Figure]] = {}
        for figure in figures:
            if policy_of(figure) in policies and not figure["control"] and figure["value"] is not None:
                cell = tuple(figure[key] for key in ("benchmark", "mode", "task", "metric"))
                cells.setdefault(cell, []).append(figure)
        for cell, runs in cells.items():
            runs.sort(key=lambda run: policies.index(policy_of(run)))
            owners = [policy_of(run) for run in runs]
            if len(set(owners)) < len(owners):
                twice = next(model for model, seed in owners if owners.count((model, seed)) > 1)
                notes.append(f"No mean over seeds of {name}, {', '.join(filter(None, cell))}: two figures of {twice}.")
            elif len(runs) > 1:
                means.append(_mean_figure(name, runs, files))
                for run in runs:
                    run["mean"] = name
    return means, notes


def _mean_figure(name: str, runs: Sequence[Figure], files: TrialFiles) -> Figure:
    counts = {key: [run[key] for run in runs if run[key] is not None] for key in ("n", "malformed", "crashed")}
    found = {
        **runs[0],
        **origin(None),
        **{key: sum(known) if known else None for key, known in counts.items()},
        "source": "",
        "model": name,
        "value": round(sum(run["value"] for run in runs) / len(runs), 6),
        "seeds": [{key: run[key] for key in RUN_KEYS} | {"seed": policy_of(run)[1]} for run in runs],
        "hardware": ", ".join(dict.fromkeys(run["hardware"] for run in runs if run["hardware"])),
        "trained": None,
    }
    mean = seed_mean_of(found, files)
    found["interval"] = None if mean is None else [round(bound, 4) for bound in mean.interval]
    found["note"] = f"mean of {seed_text(found)}"
    if mean is not None and not files.of(found):
        found["note"] += "; without the trials, which tell how alike the seeds are"
    return found


def seed_text(figure: Figure, scale: float = 1, digits: int = 3) -> str:
    """`3 seeds: 0.740, 0.780, 0.820`."""
    values = ", ".join(f"{scale * run['value']:.{digits}f}" for run in figure["seeds"])
    return f"{len(figure['seeds'])} seeds: {values}"
