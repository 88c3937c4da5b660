"""The Space of the metric: predicted and recorded action strings in, their errors out."""

from pathlib import Path
from typing import Any

import evaluate
import gradio as gr


METRIC = evaluate.load(str(Path(__file__).with_name("action_error.py")))
RECORDED = "+0.1200-0.0312+0.4000\n-0.2500+0.0000+1.0000\n+0.0100+0.7000-0.3300"
PREDICTED = "+0.1100-0.0312+0.4000\n-0.2500+0.0000+1.0000\n+0.0100+0.7000-0.33"
HEADERS = ["dimension", "mean absolute error", "within tolerance"]


def measure(
    predictions: str, references: str, action_dim: float, decimals: float, tolerance: float
) -> tuple[list[list[str]], dict[str, Any]]:
    written, recorded = (
        [line.strip() for line in text.split("\n") if line.strip()] for text in (predictions, references)
    )
    if len(written) != len(recorded):
        counts = f"{len(written)} predicted and {len(recorded)} recorded actions"
        raise gr.Error(f"got {counts}, expected one line for each")
    shape = {"action_dim": int(action_dim), "decimals": int(decimals), "tolerance": tolerance}
    try:
        result = METRIC.compute(predictions=written, references=recorded, **shape)
    except ValueError as error:
        raise gr.Error(str(error)) from error
    errors = result["l1_per_dimension"] or [None] * int(action_dim)
    rows = [
        [str(dim), "-" if error is None else f"{error:.4f}", f"{100 * share:.0f} %"]
        for dim, (error, share) in enumerate(zip(errors, result["within_tolerance_per_dimension"], strict=True))
    ]
    return rows, result


def build() -> gr.Interface:
    return gr.Interface(
        measure,
        [
            gr.Textbox(label="Predicted", value=PREDICTED, lines=6),
            gr.Textbox(label="Recorded", value=RECORDED, lines=6),
            gr.Number(label="Dimensions", value=3, precision=0, minimum=1),
            gr.Number(label="Decimals", value=4, precision=0, minimum=1),
            gr.Number(label="Tolerance (normalised)", value=0.05, minimum=0),
        ],
        [gr.Dataframe(headers=HEADERS), gr.JSON(label="Everything the metric returns")],
        title="Action error",
        description="How far are action strings from the recorded actions? One action per line.",
        api_name="measure",
        flagging_mode="never",
    )


if __name__ == "__main__":
    build().launch()
