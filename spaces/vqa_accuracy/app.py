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


def build() -> gr.Blocks:
    with gr.Blocks(title="VQA accuracy") as page:
        gr.Markdown("# VQA accuracy\nHow many of the people who were asked gave the model's answer?")
        with gr.Row():
            answer = gr.Textbox(label="The model's answer", value=EXAMPLES[0][0])
            people = gr.Textbox(label="What people answered, one per line", value=EXAMPLES[0][1], lines=10)
        button = gr.Button("Score", variant="primary")
        score = gr.Markdown()
        table = gr.Dataframe(headers=HEADERS, label="Each annotator is left out once", interactive=False)
        gr.Examples(EXAMPLES, [answer, people])
        button.click(explain, [answer, people], [score, table], api_name="score")
    return page


if __name__ == "__main__":
    build().launch()
