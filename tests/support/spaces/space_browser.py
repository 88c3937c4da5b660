"""The Space, in a process without `gen_vla` and without a way out, and a browser in front of it.

What either asked of the outside is kept for tests to see.
"""

import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import urlsplit

from PIL import Image


ROOT = Path(__file__).resolve().parents[3]
SPACE = ROOT / "spaces" / "openvla_plus_demo"
SCREENSHOTS = ROOT / "build" / "screenshots"
CHROMIUM = os.environ.get("CHROMIUM") or which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
OUTSIDE = "connection to the outside:"
START = f"""
import runpy, socket, sys
sys.modules["gen_vla"] = None  # any import of it now fails
connect = socket.socket.connect
def connect_here(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print({OUTSIDE!r}, address, flush=True)
        raise ConnectionRefusedError(address)
    return connect(self, address)
socket.socket.connect = connect_here
sys.path.insert(0, "")
sys.argv = ["app.py"]
runpy.run_path("app.py", run_name="__main__")
"""
START_SECONDS = 180  # two processes that share a core with a test suite are slow to import torch


@dataclass
class RunningSpace:
    """Where it listens, and where its output goes."""

    url: str
    log: Path


@contextmanager
def running_space(model: Path | str, baseline: Path | str | None, folder: Path) -> Iterator[RunningSpace]:
    """A Space with these models; `folder` takes its output, its uploads and its copies of the models' code."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "GEN_VLA_MODEL": str(model),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if baseline:
        environment["GEN_VLA_BASELINE"] = str(baseline)
    space = RunningSpace(f"http://127.0.0.1:{port}", folder / "space.log")
    with open(space.log, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", START], cwd=SPACE, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until_it_answers(process, space)
            yield space
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_until_it_answers(process: subprocess.Popen[bytes], space: RunningSpace) -> None:
    """Returns once the page can be had; raises with the end of the log if that does not happen."""
    limit = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < limit:
        try:
            urllib.request.urlopen(f"{space.url}/config", timeout=5).read()
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"the Space did not start:\n{space.log.read_text(encoding='utf-8')[-3000:]}")


@dataclass
class Visitor:
    """One browser window of one person, which nobody shares; `hosts` are all the page asked anything of."""

    page: Any
    hosts: set[str] = field(default_factory=set)

    def choose_tab(self, name: str) -> None:
        """Opens a tab."""
        self.page.get_by_role("tab", name=name).click()

    def upload(self, tab: str, path: Path, camera: int | None = None) -> None:
        """Replaces the picture of a tab, that of one camera if there are several; waits until the server has it."""
        field = self.clear_picture(tab, camera)
        with self.page.expect_response(lambda response: "/upload" in response.url):
            field.locator("input[type=file]").first.set_input_files(str(path))
        field.locator("img").wait_for()

    def clear_picture(self, tab: str, camera: int | None = None) -> Any:
        """Takes the picture of a tab, or that of one of its cameras, away; returns its field."""
        field = self.page.locator(f"#{tab}-picture" if camera is None else f"#{tab}-picture-{camera}")
        remove_button(field).click()
        field.locator("img").wait_for(state="detached")
        return field

    def write(self, field_id: str, text: str) -> None:
        """Fills a text field."""
        self.page.locator(f"#{field_id} textarea, #{field_id} input").first.fill(text)

    def press(self, button: str) -> None:
        """Presses a button and returns at once."""
        self.page.locator(f"#{button}").click()

    def message(self) -> str:
        """What the page complains about."""
        toast = self.page.get_by_test_id("toast-body").last
        toast.wait_for()
        return toast.inner_text()

    def screenshot(self, name: str) -> None:
        """Keeps the whole page as a picture, for people."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(SCREENSHOTS / f"{name}.png"), full_page=True)


def remove_button(field: Any) -> Any:
    """What takes the picture of a field away."""
    return field.get_by_label("Remove").or_(field.get_by_label("Clear")).first


def shown_string(person: Visitor) -> Any:
    """Where the page shows the action that the model wrote."""
    return person.page.locator("#act-words").get_by_test_id("action-string")


def shown_picture(person: Visitor, elem_id: str) -> Image.Image:
    """A picture of the page, as the browser got it."""
    address = person.page.locator(f"#{elem_id} img").get_attribute("src")
    return Image.open(io.BytesIO(urllib.request.urlopen(address).read()))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    """Writes a picture and returns where."""
    image.save(path, **options)
    return path


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def visitor(browser: Any, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Visitor]:
    """Someone who has just opened the page."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, reduced_motion="reduce", color_scheme="dark" if dark else "light"
    )
    context.set_default_timeout(30_000)
    page = context.new_page()
    person = Visitor(page)
    page.on("request", lambda request: person.hosts.add(urlsplit(request.url).hostname or ""))
    try:
        page.goto(url)
        page.get_by_test_id("action-string").first.wait_for()
        yield person
    finally:
        context.close()
