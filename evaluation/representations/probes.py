"""What a vision tower still knows: linear probes of its features, and how far training moved them.

Features are what the model itself uses (OpenVLA's second-to-last block, PaliGemma's last), averaged over a picture's
patches, or those of the patch that a label is about; of a vision-language model whose encoder does not take plain
pictures (Qwen's, SmolVLM's, tiles), those behind its projector. `joined` are those of all towers side by side.

    linear probe  logistic regression on standardised features, stratified 5-fold cross-validation; accuracy over all
                  held-out predictions with Wilson's interval
    CKA           linear, 1 where features are the same up to rotation and scale
    cosine drift  mean of 1 - cos(before, after), 0 where nothing moved
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.policies.flow import FLOW
from gen_vla.evaluation.representations.data import LabelledPictures
from gen_vla.evaluation.statistics.intervals import wilson_interval
from gen_vla.evaluation.tables import percent, percent_range, results_table


JOINED = "joined"
FOLDS = 5


@torch.no_grad()
def tower_features(
    model: Any, processor: Any, images: Sequence[Image.Image], places: np.ndarray | None = None, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Features by tower, float32 [n, width], and `joined`, float32 [n, sum of widths]; with `places` float [n, 2],
    those of the patches that hold them."""
    encoders = encoders_of(model)
    found: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for first in tqdm(range(0, len(images), batch_size), unit="batch", desc="features"):
        batch = list(images[first : first + batch_size])
        if model.config.model_type == "vla_plus":
            inputs = processor.question_inputs(batch, ["?"] * len(batch)).to(model.device)
        else:
            inputs = processor.image_processor(batch, return_tensors="pt").to(model.device)
        for name, encode in encoders.items():
            tokens = [each.float() for each in encode(inputs)]
            if places is None:
                chosen = [each.mean(dim=0) for each in tokens]
            else:
                chosen = [
                    each[patch_at(place, len(each))] for each, place in zip(tokens, places[first:], strict=False)
                ]
            found[name].append(torch.stack(chosen).cpu().numpy())
    features = {name: np.concatenate(batches) for name, batches in found.items()}
    return {**features, JOINED: np.concatenate(list(features.values()), axis=1)}


def patch_at(place: np.ndarray, patches: int) -> int:
    """Which of a square picture's patches, row by row, holds a place (right, down) 0..1; `ValueError` if they are no
    square."""
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"got {patches} patches, expected a square of them, to find where an object is")
    right, down = (int(value * side) for value in place)
    return down * side + right


def encoders_of(model: Any) -> dict[str, Callable[[Any], Iterable[torch.Tensor]]]:
    """By name, functions of what the processor returns that give the features of each picture, [N, width]."""
    if model.config.model_type == FLOW:
        return {"siglip": partial(last_block, model.model.vlm.vision_tower)}
    if model.config.model_type == "vla_plus":
        base = model.vlm.model
        parts = {"vision": base.frozen_vision, "vision_copy": base} if model.config.frozen else {"vision": base}
        return {name: partial(stock_features, model, part) for name, part in parts.items()}
    tower = model.model.vision_tower

    def encode(number: int, name: str, inputs: Any) -> torch.Tensor:
        return tower.encode(name, inputs["pixel_values"].split(3, dim=1)[number])

    return {name: partial(encode, number, name) for number, name in enumerate(tower.names)}


def stock_features(model: Any, part: Any, inputs: Any) -> Iterable[torch.Tensor]:
    """Features [N, width] of each picture by a stock encoder, the frozen or the trained one."""
    if hasattr(part, "vision_tower") and inputs["pixel_values"].ndim == 4:
        return last_block(part.vision_tower, inputs)
    base = model.vlm.model
    stock = base.frozen_vision.stock_class if model.config.frozen else type(base)
    taken = {name: inputs[name] for name in inputs if name == "pixel_values" or name in model.picture_inputs}
    found = stock.get_image_features(part, **taken, return_dict=True).pooler_output
    return (each.flatten(0, -2) for each in found)


def last_block(encoder: Any, inputs: Any) -> torch.Tensor:
    """A stock encoder's features float [B, N, width]."""
    return encoder(inputs["pixel_values"].to(encoder.dtype)).last_hidden_state


def linear_probe(features: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How well a linear classifier reads the labels off held-out features: accuracy `value`, `n`, `interval`; raises
    `ValueError` if a class has fewer pictures than there are folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rarest = int(np.unique(labels, return_counts=True)[1].min())
    if rarest < FOLDS:
        raise ValueError(f"got a class of {rarest} pictures, expected at least {FOLDS} each: one for every fold")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    right = int(np.sum(cross_val_predict(classifier, features, labels, cv=folds) == labels))
    interval = [round(bound, 4) for bound in wilson_interval(right, len(labels))]
    return {"value": round(right / len(labels), 4), "n": len(labels), "interval": interval}


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Centred kernel alignment of float [n, p] and float [n, q] with linear kernels (Kornblith et al., 2019)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    both = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if both == 0:
        raise ValueError("got features that are the same for all pictures, expected some that tell them apart")
    return float(np.linalg.norm(x.T @ y) ** 2 / both)


def cosine_drift(before: np.ndarray, after: np.ndarray) -> float:
    """Mean of 1 - cos over the rows of float [n, width] twice."""
    if before.shape != after.shape:
        raise ValueError(f"got features of shapes {before.shape} and {after.shape}, expected the same tower twice")
    x, y = before.astype(np.float64), after.astype(np.float64)
    cosines = (x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return max(0.0, float(np.mean(1 - cosines)))  # rounding can leave a cosine a little above 1


def drift_by_tower(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    pairs = {name: (before[name], of) for name, of in after.items() if name in before}
    return {
        name: {"cka": round(linear_cka(old, new), 4), "cosine": round(cosine_drift(old, new), 4)}
        for name, (old, new) in pairs.items()
        if old.shape == new.shape
    }


def compare_representations(
    features: dict[str, dict[str, np.ndarray]], pictures: LabelledPictures, frozen: dict[str, str | None]
) -> dict[str, Any]:
    """Probes of every model and tower, and drift from `before` to each of the others. `features` are by role
    (`before`, `plain`, `after`), then by tower; `frozen` is by role the tower that was not trained.

    Returns:
        `{"data", "classes", "tasks": [{"role", "tower", "frozen", "task", "metric", "value", "n", "interval"}],
        "drift": {role: {tower: {"cka", "cosine"}}}}`.
    """
    tasks = [
        {
            "role": role,
            "tower": tower,
            "frozen": tower == frozen[role],
            "task": f"linear probe on {pictures.name}, {tower}, {role}",
            "metric": "accuracy",
            **linear_probe(values, pictures.labels),
        }
        for role, towers in features.items()
        for tower, values in towers.items()
    ]
    others = [role for role in features if role != "before"] if "before" in features else []
    drift = {role: drift_by_tower(features["before"], features[role]) for role in others}
    return {"data": pictures.name, "classes": pictures.classes, "tasks": tasks, "drift": drift}


def representations_table(results: dict[str, Any], title: str) -> Table:
    rows = []
    for entry in results["tasks"]:
        moved = results["drift"].get(entry["role"], {}).get(entry["tower"])
        shown = ("-", "-") if moved is None else (f"{moved['cka']:.3f}", f"{moved['cosine']:.4f}")
        tower = entry["tower"] + " (frozen)" * entry["frozen"]
        measured = (f"{percent(entry['value'], 1)} %", f"{percent_range(entry['interval'], 1)} %", entry["n"])
        rows.append((entry["role"], tower, *measured, *shown))
    title = f"{title}\nlinear probe on {results['data']}, {len(results['classes'])} classes"
    return results_table(
        title, ("model", "tower", "accuracy", "95 %", "n", "CKA", "cosine drift"), rows, left=2, no_wrap=True
    )
