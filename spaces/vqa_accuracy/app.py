"""The Space of the metric: one answer beside what people answered, and how its score comes about."""

import gradio as gr
from soft_accuracy import normalize_answer, soft_accuracy


EXAMPLES = [
    ["The Cat.", "cat\n" * 3 + "dog\n" * 7],
    ["2", "two\n" * 4 + "2\n" * 2 + "three\n" * 4],
    ["unanswerable", "unanswerable\n" * 5 + "a stop sign\n" * 5],
]
HEADERS = ["answered", "compared as", "same", "matches among the others", "counts"]


def explain(answer: str, people: str) -> tuple[str, list[list[str]]]:
    annotations = [line.strip() for line in people.splitlines() if line.strip()]
    try:
        score = soft_accuracy(answer, annotations)
    except ValueError as error:
        raise gr.Error(str(error)) from error
    given = normalize_answer(answer)
    same = [normalize_answer(annotation) == given for annotation in annotations]
    rows = []
    for annotation, own in zip(annotations, same, strict=True):
        others, compared = sum(same) - own, normalize_answer(annotation)
        rows.append([annotation, compared, "yes" if own else "", str(others), f"{min(1, others / 3):.2f}"])
    return f"## {score:.2f}\n“{answer}” is compared as “{given}”; the score is the mean of the last column.", rows


def build() -> gr.Interface:
    return gr.Interface(
        explain,
        [
            gr.Textbox(label="The model's answer", value=EXAMPLES[0][0]),
            gr.Textbox(label="What people answered, one per line", value=EXAMPLES[0][1], lines=10),
        ],
        [gr.Markdown(), gr.Dataframe(headers=HEADERS, label="Each annotator is left out once")],
        examples=EXAMPLES,
        title="VQA accuracy",
        description="How many of the people who were asked gave the model's answer?",
        api_name="score",
        flagging_mode="never",
    )


if __name__ == "__main__":
    build().launch()
