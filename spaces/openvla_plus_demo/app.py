"""The Space: a picture and an order become a robot's movement, on a page anyone can read.

    python app.py                                            # the model named in the front matter of README.md
    GEN_VLA_MODEL=FOLDER GEN_VLA_BASELINE=FOLDER python app.py      # local models

The page opens with a finished example, so that what it shows needs no explaining; `answers.py` has what its tabs do.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio loads
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch loads: threads that spin stop a busy computer
# isort: split

import gradio as gr
from answers import Answers
from camera_fields import camera_fields, one_field_each, scene_pictures
from changed_pictures import CHANGES, RECOLOUR
from gradio.themes import Base
from picture_input import MAX_FILE_SIZE, MAX_PIXELS, megapixels, picture_input, read_picture
from policy import Policy, model_names


FOLDER = Path(__file__).resolve().parent
EXAMPLES = [
    ("drawer_half_open", "close the drawer", "Is the drawer open or closed?"),
    ("five_objects", "open the drawer", "How many objects are there?"),
    ("can_and_ball", "pick up the blue can", "What colour is the ball?"),
]
FIRST_SCENE = EXAMPLES[0][0]
VISITORS_WAITING = 32  # others get the message that the queue is full
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
    "The arrow {where}starts in the middle, since the model does not say where the hand is, and assumes the camera "
    "that is usual for this data set; at full length it is the longest movement in the data. The gripper in space is "
    "not to scale."
)


def build_page(answers: Answers) -> gr.Blocks:
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
    act = one_field_each(answers.act, answers.cameras)
    opening = act(*opening_pictures(answers), EXAMPLES[0][1], answers.policy.data_sets[0])
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            inputs = observation_fields(answers, "act", answers.policy.data_sets)
            button = gr.Button("Predict the movement", variant="primary", elem_id="act-button")
            add_examples(inputs[:-1], answers.cameras, 1)
        with gr.Column(scale=6, min_width=280):
            sentence = gr.HTML(opening[1], elem_id="act-sentence")
            with gr.Row(elem_classes="pictures"):
                arrow = result_picture(opening[2], "On the picture", "act-arrow")
                space = result_picture(opening[3], "In space", "act-space")
            where = f"is on the picture of `{answers.cameras[answers.arrow_at]}`, " if answers.cameras else ""
            gr.Markdown(ARROW_NOTE.format(where=where), elem_classes="note")
            words = gr.HTML(opening[4], elem_id="act-words")
            plain = json_for_programs(opening[0], elem_id="act-json")
    ask_model(button, act, inputs, [plain, sentence, arrow, space, words], "act-sentence")


def add_ask_tab(answers: Answers) -> None:
    (path,) = scene_pictures(FIRST_SCENE, ())
    answer, cost = answers.ask(read_picture(path), EXAMPLES[0][2])
    about = " Questions are about one picture, of any camera." if answers.cameras else ""
    gr.Markdown(f"The model that moves the robot can still talk about what it sees. Ask it something.{about}")
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            picture = picture_input("Picture", "ask-picture", path)
            question = gr.Textbox(EXAMPLES[0][2], label="Question", elem_id="ask-question", lines=1, max_lines=4)
            button = gr.Button("Ask", variant="primary", elem_id="ask-button")
            add_examples([picture, question], (), 2)
        with gr.Column(scale=6, min_width=280):
            words = gr.Textbox(answer, label="Answer", elem_id="ask-answer", interactive=False, lines=2)
            took = gr.Markdown(cost, elem_classes="note")
    ask_model(button, answers.ask, [picture, question], [words, took], "ask-answer")


def add_compare_tab(answers: Answers) -> None:
    """Two models on a picture and on a changed copy; or how to get there."""
    if answers.baseline is None:
        gr.Markdown(NO_BASELINE, elem_id="no-baseline")
        return
    compare = one_field_each(answers.compare, answers.cameras)
    settings = (EXAMPLES[0][1], answers.shared_data_sets[0], RECOLOUR, 0.3)
    opening = compare(*opening_pictures(answers), *settings)
    gr.Markdown(
        f"Two models, `{'` and `'.join(answers.names())}`, on one scene in two looks. A robust policy keeps its "
        "movement when only the looks change; one that has learnt the looks by heart does not."
    )
    labels = ("The pictures", "The changed copies") if answers.cameras else ("The picture", "The changed copy")
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            inputs = observation_fields(answers, "compare", answers.shared_data_sets)
            change = gr.Radio(list(CHANGES), value=RECOLOUR, label="Change", elem_id="compare-change")
            strength = gr.Slider(0, 1, value=0.3, step=0.05, label="How much")
            button = gr.Button("Compare", variant="primary", elem_id="compare-button")
            add_examples(inputs[:-1], answers.cameras, 1)
        with gr.Column(scale=6, min_width=280):
            with gr.Row(elem_classes="pictures"):
                original = result_picture(opening[1], labels[0], "compare-original")
                copy = result_picture(opening[2], labels[1], "compare-changed")
            words = gr.HTML(opening[3], elem_id="compare-words")
            plain = json_for_programs(opening[0])
    ask_model(button, compare, [*inputs, change, strength], [plain, original, copy, words], "compare-original")


def ask_model(button: gr.Button, answer: Any, inputs: list[Any], outputs: list[Any], result: str) -> None:
    """Wires a button, and the key Enter in a text field, to the model, which answers one visitor after another.
    Programs call it by the method's name. `result` is the id of what is scrolled to where it is out of sight: on a
    phone it comes below the fields."""
    (words,) = (field for field in inputs if isinstance(field, gr.Textbox))
    event = gr.on(
        [button.click, words.submit],
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


def opening_pictures(answers: Answers) -> list[Any]:
    return [read_picture(path) for path in scene_pictures(FIRST_SCENE, answers.cameras)]


def observation_fields(answers: Answers, tab: str, data_sets: list[str]) -> list[Any]:
    pictures = camera_fields(answers.cameras, tab, FIRST_SCENE)
    label, elem_id = "What should be done", f"{tab}-instruction"
    instruction = gr.Textbox(EXAMPLES[0][1], label=label, elem_id=elem_id, lines=1, max_lines=4)
    data_set = gr.Dropdown(
        data_sets,
        value=data_sets[0],
        label="Robot and data set",
        info="The model writes numbers between -1 and 1; this decides how many millimetres and degrees they are.",
        elem_id=f"{tab}-data-set",
    )
    return [*pictures, instruction, data_set]


def result_picture(picture: Any, label: str, elem_id: str) -> gr.Image:
    shown = {"format": "png", "interactive": False, "buttons": ["fullscreen", "download"]}
    return gr.Image(picture, label=label, elem_id=elem_id, **shown)


def json_for_programs(values: Any, elem_id: str | None = None) -> gr.JSON:
    with gr.Accordion("The same for programs", open=False):
        return gr.JSON(values, elem_id=elem_id, show_label=False)


def add_examples(fields: list[Any], cameras: Sequence[str], column: int) -> None:
    """Scenes that come with the Space; choosing one fills the fields in. `gr.Examples` would create the fields again,
    without what `picture_input` changed in them."""
    scenes = [(scene_pictures(row[0], cameras), row[column]) for row in EXAMPLES]
    rows = [[*paths, text] for paths, text in scenes if all(map(os.path.isfile, paths))]  # not all have every view
    examples = gr.Dataset(
        label="Examples",
        components=fields,
        samples=rows,
        elem_id=f"{fields[0].elem_id}-examples",
        elem_classes="several-examples" if cameras else None,
    )
    examples.click(lambda row: row, examples, fields, show_progress="hidden", queue=False, api_visibility="private")


def footer(answers: Answers) -> str:
    models = " and ".join(f"`{name}`" for name in answers.names())
    return (
        f"Model: {models}. Pictures up to {MAX_FILE_SIZE.upper()} and {megapixels(MAX_PIXELS)}, as PNG, JPEG, WebP or "
        "BMP; they are deleted within two hours and used for nothing else."
    )


def main() -> None:
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
