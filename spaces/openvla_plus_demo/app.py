"""The Space: a picture and an order become a robot's movement, on a page anyone can read.

    python app.py                                            # the model named in the front matter of README.md
    GEN_VLA_MODEL=FOLDER GEN_VLA_BASELINE=FOLDER python app.py      # local models

Decides: the page, its words, what runs at the same time, what programs can call. Refuses to know: how models work
(`policy.py`), what pictures are accepted (`picture_input.py`), how a result is drawn (`action_html.py`,
`motion_pictures.py`).

The page opens with a finished example, so that what it shows needs no explaining.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio loads
# isort: split

import gradio as gr
from action_html import Compared, action_card, comparison, headline, seconds
from changed_pictures import CHANGES, RECOLOUR, changed
from gradio.themes import Base
from motion_pictures import ORANGE, TEAL, Arrow, draw_arrows, draw_in_space
from picture_input import MAX_FILE_SIZE, MAX_PIXELS, is_squeezed, megapixels, picture_input, read_picture
from policy import DIMENSIONS, MAX_CHARACTERS, Policy, PredictedAction, model_names
from robot_frames import frame_of


FOLDER = Path(__file__).resolve().parent
EXAMPLES = [
    ("drawer_half_open.png", "close the drawer", "What colour is the cabinet?"),
    ("drawer_and_blocks.png", "open the drawer", "How many blocks are on the table?"),
    ("can_and_ball.png", "pick up the blue can", "Is the gripper open or closed?"),
]
FIRST_EXAMPLE = str(FOLDER / "examples" / EXAMPLES[0][0])
UNITS = ("m", "m", "m", "rad", "rad", "rad", "0 closed .. 1 open")
VISITORS_WAITING = 32  # more are told that the queue is full
KEPT_SECONDS = 3600  # uploads and results
TITLE = "From a picture and an order to a movement"
INTRODUCTION = """\
# From a picture and an order to a movement
Show the model what a robot's camera sees and say what should be done. It answers with the robot's **next small
movement**, written out digit by digit, and shows how sure it is of every digit."""
SAFETY = (
    '<p class="safety" role="note"><strong>A prediction, not a command.</strong> Robots move with force. Do not send '
    "these numbers to one without limits on speed and reach, an emergency stop, and someone beside it.</p>"
)
NO_BASELINE = """\
### Nothing to compare with yet
This tab shows two models side by side, for example one trained with the recipe and one without, on a picture and on a
changed copy of it. To fill it, name a second model:

- on a Space: as the second entry of `models:` in the front matter of `README.md`
- on your computer: in `GEN_VLA_BASELINE`, or with `gen-vla demo --space --baseline FOLDER_OR_NAME`
"""
SCROLL_TO = """() => {
  const result = document.getElementById("%s"), place = result.getBoundingClientRect();
  if (place.top < 0 || place.bottom > window.innerHeight) result.scrollIntoView({behavior: "smooth"});
}"""
ARROW_NOTE = (
    "The arrow starts in the middle, since the model does not say where the hand is, and assumes the camera that is "
    "usual for this data set; at full length it is the longest movement in the data. The gripper in space is not to "
    "scale."
)


def for_visitors(answer: Callable[..., Any]) -> Callable[..., Any]:
    """What is wrong with a visitor's input becomes a message on the page; it is written to be read."""

    @functools.wraps(answer)
    def answered(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answered


class Answers:
    """What each tab of the page does."""

    def __init__(self, policy: Policy, baseline: Policy | None):
        self.policy, self.baseline = policy, baseline

    @for_visitors
    def act(self, picture: Any, instruction: str, data_set: str) -> tuple[dict[str, Any], str, Any, Any, str]:
        """An action: as plain values, as a sentence, as an arrow on the picture, in space, digit by digit."""
        check_picture(picture)
        action = self.policy.act(picture, instruction, data_set)
        frame = frame_of(data_set)
        on_picture = draw_arrows(picture, [Arrow(path_of(action), TEAL)], frame, self._longest(action))
        in_space = draw_in_space(action.steps, frame)
        return plain_values(action), headline(action), on_picture, in_space, action_card(action)

    @for_visitors
    def ask(self, picture: Any, question: str) -> tuple[str, str]:
        """An answer, and what it cost."""
        check_picture(picture)
        answer, milliseconds = self.policy.ask(picture, question)
        return answer or "(the model wrote nothing)", f"Answered in {seconds(milliseconds)}."

    @for_visitors
    def compare(
        self, picture: Any, instruction: str, data_set: str, change: str, strength: float
    ) -> tuple[dict[str, Any], Any, Any, str]:
        """Two models on a picture and on a changed copy: as plain values, as two pictures, as a table."""
        assert self.baseline is not None, "the tab is only there with a second model"
        check_picture(picture)
        copy = changed(picture, change, strength)
        models = [
            Compared(name, colour, *(policy.act(image, instruction, data_set) for image in (picture, copy)))
            for name, colour, policy in zip(self.names(), (TEAL, ORANGE), (self.policy, self.baseline))
        ]
        frame, longest = frame_of(data_set), self._longest(models[0].original)
        originals = [Arrow(path_of(model.original), model.colour, model.name) for model in models]
        copies = [Arrow(path_of(model.changed), model.colour, model.name) for model in models]
        plain = [
            {"name": m.name, "picture": plain_values(m.original), "changed_copy": plain_values(m.changed)}
            for m in models
        ]
        return (
            {"models": plain},
            draw_arrows(picture, originals, frame, longest),
            draw_arrows(copy, copies, frame, longest),
            comparison(models),
        )

    def names(self) -> list[str]:
        """What the models are called on the page: the last part of their names, told apart if need be."""
        short = [Path(policy.name).name for policy in (self.policy, self.baseline) if policy]
        return short if len(set(short)) == len(short) else [f"{name} ({i})" for i, name in enumerate(short, start=1)]

    def _longest(self, action: PredictedAction) -> float:
        """Metres that the longest arrow stands for: the longest movement of the data set, for each step."""
        statistics = self.policy.model.get_action_stats(action.data_set)
        ends = np.maximum(np.abs(statistics["q01"][:3]), np.abs(statistics["q99"][:3]))
        return max(float(np.linalg.norm(ends)), 1e-6) * len(action.steps)


def check_picture(picture: Any) -> None:
    """Says what is missing, or what will be hard to see."""
    if picture is None:
        raise gr.Error("Choose a picture first: upload one, take one, or tap an example.", print_exception=False)
    if is_squeezed(picture):
        gr.Warning("This picture is much longer than it is wide. The model sees it squeezed to a square.")


def path_of(action: PredictedAction) -> np.ndarray:
    """Where the hand is after each step, float [T, 3] in metres from where it was."""
    return np.cumsum(action.steps[:, :3], axis=0)


def plain_values(action: PredictedAction) -> dict[str, Any]:
    """An action for programs."""
    return {
        "text": action.text,
        "action": np.round(action.steps.astype(float), 6).tolist(),
        "standard_deviation": np.round(action.deviations.astype(float), 6).tolist(),
        "names": list(DIMENSIONS),
        "units": list(UNITS),
        "data_set": action.data_set,
        "tokens": [piece.text for piece in action.pieces],
        "probabilities": [round(piece.probability, 4) for piece in action.pieces],
        "milliseconds": round(action.milliseconds, 1),
        "forward_passes": action.forward_passes,
    }


def build_page(answers: Answers) -> gr.Blocks:
    """The page with its three tabs."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        gr.HTML(SAFETY)
        with gr.Tab("Act", id="act"):
            add_act_tab(answers)
        with gr.Tab("Ask", id="ask"):
            add_ask_tab(answers)
        with gr.Tab("Compare", id="compare"):
            add_compare_tab(answers)
        gr.Markdown(footer(answers), elem_id="about")
    return page.queue(max_size=VISITORS_WAITING, default_concurrency_limit=1)


def add_act_tab(answers: Answers) -> None:
    """A picture and an order in; a movement out."""
    opening = answers.act(read_picture(FIRST_EXAMPLE), EXAMPLES[0][1], answers.policy.data_sets[0])
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            picture, instruction, data_set = observation_fields(answers, "act")
            button = gr.Button("Predict the movement", variant="primary", elem_id="act-button")
            add_examples([picture, instruction], 1)
        with gr.Column(scale=6, min_width=280):
            sentence = gr.HTML(opening[1], elem_id="act-sentence")
            with gr.Row(elem_classes="pictures"):
                arrow = result_picture(opening[2], "On the picture", "act-arrow")
                space = result_picture(opening[3], "In space", "act-space")
            gr.Markdown(ARROW_NOTE, elem_classes="note")
            words = gr.HTML(opening[4], elem_id="act-words")
            with gr.Accordion("The same for programs", open=False):
                plain = gr.JSON(opening[0], elem_id="act-json", show_label=False)
    ask_model(
        [button.click, instruction.submit],
        answers.act,
        [picture, instruction, data_set],
        [plain, sentence, arrow, space, words],
        "act-sentence",
    )


def add_ask_tab(answers: Answers) -> None:
    """A picture and a question in; words out."""
    answer, cost = answers.ask(read_picture(FIRST_EXAMPLE), EXAMPLES[0][2])
    gr.Markdown("The model that moves the robot can still talk about what it sees. Ask it something.")
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            picture = picture_input("Picture", "ask-picture", FIRST_EXAMPLE)
            question = gr.Textbox(
                EXAMPLES[0][2], label="Question", max_length=MAX_CHARACTERS, elem_id="ask-question", lines=1
            )
            button = gr.Button("Ask", variant="primary", elem_id="ask-button")
            add_examples([picture, question], 2)
        with gr.Column(scale=6, min_width=280):
            words = gr.Textbox(answer, label="Answer", elem_id="ask-answer", interactive=False, lines=2)
            took = gr.Markdown(cost, elem_classes="note")
    ask_model([button.click, question.submit], answers.ask, [picture, question], [words, took], "ask-answer")


def add_compare_tab(answers: Answers) -> None:
    """Two models on a picture and on a changed copy; or how to get there."""
    if answers.baseline is None:
        gr.Markdown(NO_BASELINE, elem_id="no-baseline")
        return
    settings = (EXAMPLES[0][1], answers.policy.data_sets[0], RECOLOUR, 0.3)
    values, original_picture, changed_picture, table = answers.compare(read_picture(FIRST_EXAMPLE), *settings)
    gr.Markdown(
        f"Two models, `{'` and `'.join(answers.names())}`, on one scene in two looks. A robust policy keeps its "
        "movement when only the looks change; one that has learnt the looks by heart does not."
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            picture, instruction, data_set = observation_fields(answers, "compare")
            change = gr.Radio(list(CHANGES), value=RECOLOUR, label="Change", elem_id="compare-change")
            strength = gr.Slider(0, 1, value=0.3, step=0.05, label="How much")
            button = gr.Button("Compare", variant="primary", elem_id="compare-button")
            add_examples([picture, instruction], 1)
        with gr.Column(scale=6, min_width=280):
            with gr.Row(elem_classes="pictures"):
                original = result_picture(original_picture, "The picture", "compare-original")
                copy = result_picture(changed_picture, "The changed copy", "compare-changed")
            words = gr.HTML(table, elem_id="compare-words")
            with gr.Accordion("The same for programs", open=False):
                plain = gr.JSON(values, show_label=False)
    ask_model(
        [button.click, instruction.submit],
        answers.compare,
        [picture, instruction, data_set, change, strength],
        [plain, original, copy, words],
        "compare-original",
    )


def ask_model(triggers: list[Any], answer: Any, inputs: list[Any], outputs: list[Any], result: str) -> None:
    """Wires a button to the model, which answers one visitor after another; programs call it by the method's name.

    Args:
        result: the id of what is scrolled to where it is out of sight: on a phone it comes below the fields.
    """
    event = gr.on(
        triggers,
        answer,
        inputs,
        outputs,
        api_name=answer.__name__,
        concurrency_id="model",
        concurrency_limit=1,
        trigger_mode="once",
        show_progress_on=[output for output in outputs if not isinstance(output, gr.JSON)],
    )
    event.success(None, js=SCROLL_TO % result, api_visibility="private")


def observation_fields(answers: Answers, tab: str) -> tuple[gr.Image, gr.Textbox, gr.Dropdown]:
    """What a policy needs to know: picture, order, whose units."""
    picture = picture_input("What the robot's camera sees", f"{tab}-picture", FIRST_EXAMPLE)
    instruction = gr.Textbox(
        EXAMPLES[0][1], label="What should be done", max_length=MAX_CHARACTERS, elem_id=f"{tab}-instruction", lines=1
    )
    data_set = gr.Dropdown(
        answers.policy.data_sets,
        value=answers.policy.data_sets[0],
        label="Robot and data set",
        info="The model writes numbers between -1 and 1; this decides how many millimetres and degrees they are.",
        elem_id=f"{tab}-data-set",
    )
    return picture, instruction, data_set


def result_picture(picture: Any, label: str, elem_id: str) -> gr.Image:
    """A picture that only shows."""
    return gr.Image(
        picture,
        label=label,
        elem_id=elem_id,
        format="png",
        interactive=False,
        buttons=["fullscreen", "download"],
    )


def add_examples(inputs: list[Any], column: int) -> None:
    """Pictures that come with the Space; choosing one fills the fields in."""
    rows = [[str(FOLDER / "examples" / row[0]), row[column]] for row in EXAMPLES]
    gr.Examples(rows, inputs, label="Examples", cache_examples=False, elem_id=f"{inputs[0].elem_id}-examples")


def footer(answers: Answers) -> str:
    """What runs here, and what happens to uploads."""
    models = " and ".join(f"`{name}`" for name in answers.names())
    return (
        f"Model: {models}. Pictures up to {MAX_FILE_SIZE.upper()} and {megapixels(MAX_PIXELS)}, as PNG, JPEG, WebP or "
        "BMP; they are deleted within two hours and used for nothing else."
    )


def main() -> None:
    """Loads the models and opens the page."""
    name, baseline = model_names(FOLDER)
    try:
        answers = Answers(Policy(name), Policy(baseline) if baseline else None)
    except (OSError, ValueError) as error:
        sys.exit(f"No model could be loaded: {error}\nName another in README.md or in GEN_VLA_MODEL.")
    build_page(answers).launch(
        max_file_size=MAX_FILE_SIZE,
        theme=theme(),
        css_paths=FOLDER / "style.css",
        footer_links=["api"],
        ssr_mode=False,  # needs Node, and gives a page of this size nothing
    )


def theme() -> Base:
    """Teal and slate, in the visitor's own fonts, with letters dark or light enough to read everywhere."""
    base = Base(
        primary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
    return base.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl+C while the page is still being opened
        main()
