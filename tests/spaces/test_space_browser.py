"""The Space in a real browser, against the same models in this process; screenshots are kept in build/screenshots."""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from space_browser import (
    OUTSIDE,
    SPACE,
    RunningSpace,
    Visitor,
    running_space,
    save,
    shown_picture,
    shown_string,
    visitor,
)
from space_models import save_arm_model
from tiny_models import picture, tiny_tokenizer


pytest.importorskip("gradio", reason="no gradio; pip install 'gen-vla[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; pip install 'gen-vla[dev]'")

SIGNED = re.compile(r"([+-][01]\.\d{4}){7}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two models by role, each with its folder and its processor."""
    made = {}
    for seed, role in enumerate(("model", "baseline")):
        folder = tmp_path_factory.mktemp(role)
        made[role] = (folder, *save_arm_model(tiny_tokenizer("llama_like"), folder, seed))
    return made


@pytest.fixture(scope="module")
def space(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSpace]:
    """One Space for all tests of this file."""
    with running_space(models["model"][0], models["baseline"][0], tmp_path_factory.mktemp("space")) as running:
        yield running


@pytest.fixture
def person(browser: Any, space: RunningSpace) -> Iterator[Visitor]:
    """A visitor; whatever they do, neither page nor server asks anyone else."""
    with visitor(browser, space.url) as arrived:
        yield arrived
    assert arrived.hosts <= {"127.0.0.1", ""}  # "": what a page keeps in itself
    assert OUTSIDE not in space.log.read_text(encoding="utf-8")


@pytest.fixture
def camera(tmp_path: Path) -> Path:
    """A picture file of 48 x 32 noisy pixels."""
    return save(picture(3, (48, 32)), tmp_path / "camera.png")


def expected(models: dict[str, Any], image: Image.Image, instruction: str, role: str = "model") -> Any:
    """The prediction of a model in this process."""
    _, model, processor = models[role]
    inputs = processor.action_inputs(image.convert("RGB"), instruction)
    return model.predict_actions(**inputs, unnorm_key="bridge_orig")


def answered(models: dict[str, Any], image: Image.Image, question: str) -> str:
    """The answer of the model in this process."""
    _, model, processor = models["model"]
    inputs = processor.question_inputs(image, question)
    output = model.generate(**inputs, max_new_tokens=48, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(output, skip_special_tokens=True)[0].strip()


def test_upload_and_predict(person, models, camera):
    prediction = expected(models, Image.open(camera), "wipe the table")
    person.upload("act", camera)
    person.write("act-instruction", "wipe the table")
    person.press("act-button")
    playwright.expect(shown_string(person)).to_have_text(prediction.text[0])
    assert shown_picture(person, "act-arrow").size == (640, 427)  # the picture's shape, 640 pixels on its longer side
    assert shown_picture(person, "act-space").size[0] > 500
    rows = person.page.get_by_test_id("action-table").locator("tbody tr").all_inner_texts()
    assert len(rows) == 7
    assert f"{1000 * prediction.actions[0, 0, 0]:+.1f} mm" in rows[0]
    assert ("open" if prediction.actions[0, 0, 6] > 0.5 else "closed") in rows[6]


def test_pointing_at_a_digit_tells_its_probability(person, models):
    prediction = expected(models, Image.open(SPACE / "examples" / "drawer_half_open.png"), "close the drawer")
    assert shown_string(person).text_content() == prediction.text[0]  # the page opens with a finished example
    assert SIGNED.fullmatch(prediction.text[0])
    digits = shown_string(person).locator(".chosen, .fixed")
    assert digits.count() == 49
    first = digits.nth(0)
    percent = 100 * prediction.digit_probabilities[0, 0]
    assert first.get_attribute("data-tip") == f"“{prediction.text[0][0]}”: {percent:.1f} %"
    first.hover()
    tip = first.evaluate("element => getComputedStyle(element, '::after').content")
    assert f"{percent:.1f} %" in tip
    assert digits.nth(2).get_attribute("class") == "fixed"  # the point
    person.screenshot("act_hover")


def test_compare_shows_both_models_on_both_pictures(person, models, camera):
    texts = [expected(models, Image.open(camera), "go", role).text[0] for role in ("model", "baseline")]
    assert texts[0] != texts[1]
    person.choose_tab("Compare")
    person.upload("compare", camera)
    person.write("compare-instruction", "go")
    person.page.get_by_label("Background removed").check()
    person.press("compare-button")
    cards = person.page.get_by_test_id("compared")
    for index, text in enumerate(texts):
        playwright.expect(cards.nth(index).get_by_test_id("action-string").first).to_have_text(text)
    assert cards.count() == 2
    assert shown_picture(person, "compare-changed").size == (640, 427)
    person.screenshot("compare")


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"no pixels")


def chunk(name: bytes, data: bytes) -> bytes:
    """One part of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_bad_files_get_a_message(person, camera, tmp_path):
    before = shown_string(person).text_content()
    files = {
        "is not a picture that can be read here": b"not a picture at all",
        "9000 x 5000 pixels, 45 megapixels; at most 40 megapixels": claiming(9000, 5000),
        "has far too many pixels": claiming(60000, 60000),
        "is damaged": camera.read_bytes()[:2000],
        "each side needs at least 16": claiming(300, 8),
    }
    for number, (message, content) in enumerate(files.items()):
        bad = tmp_path / f"{number}.png"
        bad.write_bytes(content)
        person.upload("act", bad)
        person.press("act-button")
        playwright.expect(person.page.get_by_test_id("toast-body").last).to_contain_text(message)
    assert shown_string(person).text_content() == before
    person.screenshot("bad_file")


def test_empty_instruction_and_no_picture_get_a_message(person):
    person.write("act-instruction", "   ")
    person.press("act-button")
    assert "The instruction is empty" in person.message()
    person.write("act-instruction", "go")
    person.clear_picture("act")
    person.press("act-button")
    playwright.expect(person.page.get_by_test_id("toast-body").last).to_contain_text("Choose a picture first")
    person.screenshot("no_picture")


def test_an_example_fills_the_fields_and_can_be_sent(person, models):
    prediction = expected(models, Image.open(SPACE / "examples" / "five_objects.png"), "open the drawer")
    person.page.locator("#act-picture-examples tbody tr").nth(1).click()
    shown = re.compile("five_objects")
    playwright.expect(person.page.locator("#act-picture img")).to_have_attribute("src", shown)
    playwright.expect(person.page.locator("#act-instruction textarea")).to_have_value("open the drawer")
    person.press("act-button")
    playwright.expect(shown_string(person)).to_have_text(prediction.text[0])
    person.choose_tab("Ask")
    person.page.locator("#ask-picture-examples tbody tr").nth(2).click()
    playwright.expect(person.page.locator("#ask-question textarea")).to_have_value("What colour is the ball?")
    person.press("ask-button")
    playwright.expect(person.page.locator("#ask-answer textarea")).to_have_value(
        answered(models, Image.open(SPACE / "examples" / "can_and_ball.png"), "What colour is the ball?")
    )


def test_a_double_click_asks_once(person):
    asked: list[str] = []
    person.page.on("request", lambda request: asked.append(request.url) if "/queue/join" in request.url else None)
    person.write("act-instruction", "wipe the table")
    before = shown_string(person).text_content()
    person.page.locator("#act-button").dblclick()
    playwright.expect(shown_string(person)).not_to_have_text(before)
    assert len(asked) == 1


def test_programs_run_the_example_of_the_readme(space, models, camera, monkeypatch):
    prediction = expected(models, Image.open(camera), "close the drawer")
    monkeypatch.chdir(camera.parent)
    code = (SPACE / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert '"gen-vla/openvla-plus-demo"' in code
    names: dict[str, Any] = {}
    exec(code.replace('"gen-vla/openvla-plus-demo"', f'"{space.url}", verbose=False'), names)
    values = names["space"].predict(names["picture"], "close the drawer", "bridge_orig", api_name="/act")[0]
    assert values["text"] == prediction.text[0]
    assert values["action"][0] == pytest.approx(prediction.actions[0, 0].tolist(), abs=1e-6)
    assert values["probabilities"] == pytest.approx(prediction.digit_probabilities[0][:49].tolist(), abs=1e-4)
    assert values["forward_passes"] == prediction.forward_passes
    compared = names["values"]["models"]
    assert compared[0]["picture"]["text"] == prediction.text[0]
    assert [model["name"] for model in compared] == [models[role][0].name for role in ("model", "baseline")]
    assert isinstance(names["answer"], str)


def test_programs_get_the_same_messages(space, camera):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(space.url, verbose=False)
    with pytest.raises(AppError, match="not in the list of choices"):
        client.predict(handle_file(camera), "go", "bridge", api_name="/act")
    with pytest.raises(AppError, match="Choose a picture first"):
        client.predict(None, "go", "bridge_orig", api_name="/act")
    with pytest.raises(AppError, match="300 characters; at most 200 fit"):
        client.predict(handle_file(camera), "g" * 300, "bridge_orig", api_name="/act")
    answer = httpx.post(
        f"{space.url}/gradio_api/upload", files={"files": ("large.bmp", bytes(11_000_000))}, timeout=60
    )
    assert answer.status_code == 413


def test_two_visitors_at_once_each_get_their_own(browser, space, models, tmp_path):
    with visitor(browser, space.url) as one, visitor(browser, space.url) as two:
        texts = []
        for number, person in enumerate((one, two)):
            image = picture(10 + number, (40, 40))
            person.upload("act", save(image, tmp_path / f"{number}.png"))
            person.write("act-instruction", f"go {number}")
            texts.append(expected(models, image, f"go {number}").text[0])
        assert texts[0] != texts[1]
        for person in (one, two):
            person.press("act-button")
        for person, text in zip((one, two), texts):
            playwright.expect(shown_string(person)).to_have_text(text)
