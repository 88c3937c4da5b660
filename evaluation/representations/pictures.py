"""The figure of vision features before training, after plain fine-tuning and after the recipe."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from gen_vla.evaluation.representations.probes import JOINED


matplotlib.use("Agg")
import matplotlib.pyplot as plt


TITLES = {"before": "before robot training", "plain": "after plain fine-tuning", "after": "after the recipe"}


def embed(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """T-SNE of float [n, width], of its 50 principal components: float [n, 2] in -1..1."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)
    components = PCA(min(50, *scaled.shape), random_state=seed).fit_transform(scaled)
    perplexity = min(30.0, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(components)
    points -= points.mean(axis=0)
    return points / np.abs(points).max()


def draw_panels(
    features: dict[str, dict[str, np.ndarray]],
    labels: np.ndarray,
    classes: list[str],
    results: dict[str, Any],
    path: Path,
    points: int = 1000,
) -> Path:
    """A PNG with a panel per model that there is: points coloured by class, probe accuracy below.

    Args:
        features: by role, then by tower; drawn are those of all towers joined.
        results: of `compare_representations`.
        points: at most so many pictures are drawn.
    """
    roles = [role for role in TITLES if role in features]
    figure, panels = plt.subplots(1, len(roles), figsize=(4.2 * len(roles), 5.6), layout="constrained", squeeze=False)
    colours = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
    shown = np.linspace(0, len(labels) - 1, min(points, len(labels))).astype(int)
    for axes, role in zip(panels[0], roles, strict=True):
        plane = embed(features[role][JOINED])[shown]
        for index, name in enumerate(classes):
            rows = labels[shown] == index
            dots = {"s": 11, "color": colours(index % colours.N), "alpha": 0.8, "linewidths": 0}
            axes.scatter(plane[rows, 0], plane[rows, 1], label=name, **dots)
        axes.set(xticks=[], yticks=[], xlim=(-1.08, 1.08), ylim=(-1.08, 1.08))
        axes.set_title(TITLES[role], fontsize=12)
        axes.set_xlabel(_caption(results, role), fontsize=10)
        for spine in axes.spines.values():
            spine.set_color("#cccccc")
    handles, names = panels[0][0].get_legend_handles_labels()
    style = {"ncols": min(len(names), 5 * len(roles)), "frameon": False, "fontsize": 9, "markerscale": 2}
    style |= {"handletextpad": 0.1, "columnspacing": 1.2}
    figure.legend(handles, names, loc="outside lower center", **style)
    figure.suptitle(f"Vision features of {results['data']}: t-SNE of {len(shown)} pictures", fontsize=13)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path


def _caption(results: dict[str, Any], role: str) -> str:
    """Probe accuracy of all towers joined, and of each where there are several."""
    by_tower = {entry["tower"]: entry for entry in results["tasks"] if entry["role"] == role}
    joined = by_tower.pop(JOINED)
    low, high = (100 * bound for bound in joined["interval"])
    text = f"linear probe {100 * joined['value']:.1f} %  ({low:.1f}-{high:.1f})"
    if len(by_tower) < 2:
        return text
    parts = [f"{name} {100 * of['value']:.1f}{'*' if of['frozen'] else ''}" for name, of in by_tower.items()]
    return f"{text}\n{',  '.join(parts)}{'   (* frozen)' if any(of['frozen'] for of in by_tower.values()) else ''}"
