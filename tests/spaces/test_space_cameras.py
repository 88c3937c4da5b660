"""The Space for models of several cameras: a field for each, in a real browser, for programs, and word by word."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from motion_pictures import with_others
from PIL import Image
from policy import Policy
from robot_frames import is_on_the_hand, place_of_arrow
from space_browser import SPACE, RunningSpace, remove_button, running_space, save, shown_picture, shown_string, visitor
from space_models import save_arm_model
from tiny_models import picture, tiny_tokenizer


pytest.importorskip("gradio", reason="no gradio; pip install 'gen-vla[demo]'")
import gradio
from answers import Answers, check_pictures
from camera_fields import one_field_each, parameter_names, scene_pictures
from picture_input import read_upload


TWO = ["top", "wrist"]
THREE = ["wrist_image", "exterior_image_1_left", "exterior_image_2_left"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Folder, model and processor: of two cameras, the same two in another order, three cameras, and one."""
    made = {}
    for seed, (role, cameras) in enumerate(
        (("two", TWO), ("turned", TWO[::-1]), ("three", THREE), ("one", None)),
    ):
        folder = tmp_path_factory.mktemp(role)
        made[role] = (folder, *save_arm_model(tiny_tokenizer("llama_like"), folder, seed, cameras))
    return made


@pytest.fixture(scope="module")
def two(models: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSpace]:
    """A Space with a model of two cameras, compared with one that takes them in another order."""
    with running_space(models["two"][0], models["turned"][0], tmp_path_factory.mktemp("two_cameras")) as running:
        yield running


@pytest.fixture(scope="module")
def three(models: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSpace]:
    """A Space with a model of three cameras."""
    with running_space(models["three"][0], None, tmp_path_factory.mktemp("three_cameras")) as running:
        yield running


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as expected_of

    return expected_of(locator)


def written(models: dict[Any, Any], role: str, pictures: dict[str, Image.Image], instruction: str) -> str:
    """What a model writes in this process for what its cameras show."""
    _, model, processor = models[role]
    return model.predict_actions(**processor.action_inputs(pictures, instruction), unnorm_key="bridge_orig").text[0]


def scene(cameras: list[str]) -> dict[str, Image.Image]:
    paths = scene_pictures("drawer_half_open", cameras)
    return {camera: Image.open(path) for camera, path in zip(cameras, paths)}


def test_two_cameras_act_on_both_pictures(browser, two, models, tmp_path):
    shown = {"top": picture(3, (48, 32)), "wrist": picture(4, (40, 40))}
    text = written(models, "two", shown, "wipe the table")
    assert text != written(models, "two", dict(zip(TWO, reversed(shown.values()))), "wipe the table")
    with visitor(browser, two.url) as person:
        assert shown_string(person).text_content() == written(models, "two", scene(TWO), "close the drawer")
        person.screenshot("two_cameras_act")
        for index, camera in enumerate(TWO):
            assert person.page.locator(f"#act-picture-{index}").get_by_test_id("block-label").inner_text() == camera
            person.upload("act", save(shown[camera], tmp_path / f"{camera}.png"), index)
        person.write("act-instruction", "wipe the table")
        person.press("act-button")
        expect(shown_string(person)).to_have_text(text)
        assert shown_picture(person, "act-arrow").size == (640, 427)  # of "top": "wrist" moves with the hand
        expect(person.page.get_by_text("The arrow is on the picture of top,")).to_be_visible()


def test_a_missing_or_damaged_picture_is_named(browser, two, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with visitor(browser, two.url) as person:
        before = shown_string(person).text_content()
        person.clear_picture("act", 1)
        person.press("act-button")
        assert "Choose a picture of wrist first: this model looks through 2 cameras" in person.message()
        person.clear_picture("act", 0)
        person.press("act-button")
        toast = person.page.get_by_test_id("toast-body").last
        expect(toast).to_contain_text("Choose a picture of top and wrist first")
        person.screenshot("two_cameras_no_picture")
        person.page.locator("#act-picture-1 input[type=file]").first.set_input_files(str(tmp_path / "bad.png"))
        person.page.locator("#act-picture-1 img").wait_for()
        person.press("act-button")
        expect(toast).to_contain_text("wrist: This file is not a picture that can be read here")
        assert shown_string(person).text_content() == before


def test_models_with_the_same_cameras_in_another_order_are_compared(browser, two, models):
    with visitor(browser, two.url) as person:
        person.choose_tab("Compare")
        cards = person.page.get_by_test_id("compared")
        for index, role in enumerate(("two", "turned")):
            text = written(models, role, scene(TWO), "close the drawer")
            expect(cards.nth(index).get_by_test_id("action-string").first).to_have_text(text)
        assert shown_picture(person, "compare-original").size == (640, 640 + 8 + 40 + 316)  # "wrist" below "top"
        person.screenshot("two_cameras_compare")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_three_cameras_fit_a_phone_and_a_wide_screen(browser, three, dark):
    for width in (390, 1280):
        with visitor(browser, three.url, width=width, height=844, dark=dark) as person:
            assert person.page.evaluate("document.documentElement.scrollWidth") == width
            places = [person.page.locator(f"#act-picture-{index}").bounding_box() for index in range(3)]
            assert places[0]["y"] == places[1]["y"] < places[2]["y"]  # two beside each other, the third below
            assert min(place["width"] for place in places) >= 150
            for index, camera in enumerate(THREE):  # the whole name, not under the button that takes a picture away
                field = person.page.locator(f"#act-picture-{index}")
                label = field.get_by_test_id("block-label")
                name, beside = label.bounding_box(), remove_button(field).bounding_box()
                assert label.inner_text() == camera
                assert label.evaluate("label => label.scrollWidth <= label.clientWidth")
                assert name["x"] + name["width"] <= beside["x"]
            person.screenshot(f"three_cameras_{width}_{'dark' if dark else 'light'}")


def test_programs_run_the_example_of_the_readme(two, models, tmp_path, monkeypatch):
    shown = {camera: picture(seed, (40, 40)) for seed, camera in enumerate(TWO)}
    for camera, image in shown.items():
        save(image, tmp_path / f"{camera}.png")
    monkeypatch.chdir(tmp_path)
    code = (SPACE / "README.md").read_text(encoding="utf-8").split("```python\n")[2].split("```")[0]
    assert '"you/two-cameras"' in code
    names: dict[str, Any] = {}
    exec(code.replace('"you/two-cameras"', f'"{two.url}", verbose=False'), names)
    assert names["values"]["text"] == written(models, "two", shown, "close the drawer")
    api = names["space"].view_api(return_format="dict")["named_endpoints"]
    assert [one["parameter_name"] for one in api["/act"]["parameters"]] == [*TWO, "instruction", "data_set"]
    assert [one["parameter_name"] for one in api["/compare"]["parameters"]][:3] == [*TWO, "instruction"]


def test_models_that_see_otherwise_are_not_compared(models):
    two, one = (Policy(str(models[role][0])) for role in ("two", "one"))
    for pair, message in (
        ((two, one), r"two\d* with the cameras top, wrist and .*one\d* with a single one, expected the same ones"),
        ((one, two), r"one\d* with the cameras a single one and .*two\d* with top, wrist"),
    ):
        with pytest.raises(ValueError, match=message):
            Answers(*pair)
    other = Policy(one.name)
    other.data_sets = ["elsewhere"]
    with pytest.raises(ValueError, match=r"of bridge_orig, tiny and .* of elsewhere, expected a data set in common"):
        Answers(one, other)
    other.data_sets = ["tiny", "elsewhere"]
    assert Answers(one, other).shared_data_sets == ["tiny"]


def test_a_field_for_each_camera_by_its_name():
    def answer(pictures: Any, instruction: str, data_set: str) -> Any:
        return pictures, instruction, data_set

    spread = one_field_each(answer, TWO)
    assert list(inspect.signature(spread).parameters) == ["top", "wrist", "instruction", "data_set"]
    assert spread(1, 2, "go", "tiny") == ((1, 2), "go", "tiny")
    alone = one_field_each(answer, ())
    assert list(inspect.signature(alone).parameters) == ["picture", "instruction", "data_set"]
    assert alone(1, "go", "tiny") == ((1,), "go", "tiny")


def test_names_that_programs_can_write():
    assert parameter_names(["a.top", "a/top", "1", "for", "instruction"], ["instruction"]) == [
        "a_top",
        "camera_a_top",
        "camera_1",
        "camera_for",
        "camera_instruction",
    ]


def test_which_cameras_move_with_the_hand():
    names = ["cam_left_wrist", "eye_in_hand", "Wrist", "gripper_cam", "overhead_camera", "image_0", "third_person"]
    assert [is_on_the_hand(name) for name in names] == [True, True, True, True, False, False, False]
    assert [place_of_arrow(cameras) for cameras in (THREE, TWO, ["wrist"], ())] == [1, 0, 0, 0]


def test_which_view_of_a_scene_each_camera_has():
    views = [Path(path).name for path in scene_pictures("drawer_half_open", ["low", "wrist", "high", "third"])]
    assert views == [f"drawer_half_open{view}.png" for view in ("", "_from_the_hand", "_from_the_side", "")]
    assert [Path(path).name for path in scene_pictures("can_and_ball", ())] == ["can_and_ball.png"]


def test_pictures_of_other_cameras_come_below():
    drawn, other = Image.new("RGB", (640, 480), "red"), Image.new("RGB", (10, 10), "blue")
    assert with_others(drawn, []) is drawn
    sheet = with_others(drawn, [("wrist", other), ("left", other), ("right", other)])
    assert sheet.size == (640, 480 + 2 * (8 + 40 + 316))
    assert [sheet.getpixel(place) for place in ((5, 5), (100, 700), (500, 700), (100, 1060), (500, 1060))] == [
        (255, 0, 0),
        *[(0, 0, 255)] * 3,
        (255, 255, 255),
    ]


def test_what_is_said_of_one_picture_stays(monkeypatch):
    with pytest.raises(gradio.Error, match=r"^'Choose a picture first: upload one"):
        check_pictures([None])
    warnings: list[str] = []
    monkeypatch.setattr(gradio, "Warning", warnings.append)
    long = Image.new("RGB", (100, 20))
    check_pictures([long])
    check_pictures([picture(1, (20, 20)), long], TWO)
    assert [words.split(" is much")[0] for words in warnings] == ["This picture", "The picture of wrist"]
    assert read_upload(None, "wrist") is None
