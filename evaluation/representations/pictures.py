"""The figure of vision features before training, after plain fine-tuning and after the recipe."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gen_vla.evaluation.representations.probes import JOINED
from gen_vla.evaluation.tables import percent, percent_range


POINTS = 1000  # at most
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
) -> Path:
    """A PNG with a panel per model that there is: points of all towers joined coloured by class, probe accuracy below;
    `features` are by role, then by tower, `results` of `compare_representations`."""
    roles = [role for role in TITLES if role in features]
    figure = Figure(figsize=(4.2 * len(roles), 5.6), layout="constrained")
    shown = np.linspace(0, len(labels) - 1, min(POINTS, len(labels))).astype(int)
    panels = figure.subplots(1, len(roles), squeeze=False)[0]
    for axes, role in zip(panels, roles, strict=True):
        plane = embed(features[role][JOINED])[shown]
        for index, name in enumerate(classes):
            rows = labels[shown] == index
            axes.scatter(plane[rows, 0], plane[rows, 1], s=11, color=f"C{index}", label=name)
        axes.set(xticks=[], yticks=[], title=TITLES[role], xlabel=_caption(results, role))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 5 * len(roles)))
    figure.suptitle(f"Vision features of {results['data']}: t-SNE, {len(shown)} points")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    return path


def _caption(results: dict[str, Any], role: str) -> str:
    by_tower = {entry["tower"]: entry for entry in results["tasks"] if entry["role"] == role}
    joined = by_tower.pop(JOINED)
    text = f"linear probe {percent(joined['value'], 1)} %  ({percent_range(joined['interval'], 1)})"
    if len(by_tower) < 2:
        return text
    parts = [f"{name} {percent(of['value'], 1)}{' (frozen)' * of['frozen']}" for name, of in by_tower.items()]
    return f"{text}\n{', '.join(parts)}"
