"""Every kind of picture through every door: the same pixels, and the right ones."""

import importlib.util
import io
import json
import struct
import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from tiny_models import IMAGE_SIZE, tiny_processor, tiny_statistics

from gen_vla.commands.predict import read_pictures
from gen_vla.evaluation.vqa.suite import TASKS_FOLDER
from gen_vla.processors.rgb_pictures import PictureError, to_rgb
from gen_vla.training.collator import CoTrainingCollator
from gen_vla.training.mixing.image_augmentation import ImageAugmentation, augment_image
from gen_vla.training.mixing.prepared_rows import RowPreparer, augment_resized


HEIGHT, WIDTH = 16, 24
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY, WHITE = RGB[:, :, 0], np.full_like(RGB, 255)
GREYS = GREY[:, :, None].repeat(3, axis=2)
CLEAR = np.zeros((HEIGHT, WIDTH), bool)
CLEAR[:4, :6] = True  # the transparent corner
ALPHA = np.where(CLEAR, 0, 255).astype(np.uint8)
FEW = (RGB // 128 * 255).astype(np.uint8)  # eight colours, for palettes
# What EXIF's orientations say to be done with the stored pixels.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
Kind = tuple[bytes, np.ndarray]  # an encoded picture, and its right pixels


def encoded(image: Image.Image | np.ndarray, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **how)
    return buffer.getvalue()


def turned(kind: str, orientation: int, image: np.ndarray = RGB, **how: Any) -> Kind:
    """A picture with an EXIF orientation; its stored pixels are what the file holds without one."""
    notes = Image.Exif()
    notes[ExifTags.Base.Orientation] = orientation
    stored = np.asarray(Image.open(io.BytesIO(encoded(image, kind, **how))))
    return encoded(image, kind, exif=notes, **how), UPRIGHT[orientation](stored)


def png(pixels: np.ndarray, colour: int, transparent: tuple[int, ...] = ()) -> bytes:
    """A PNG of 16 bits per channel, which Pillow does not write in colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    clear = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    parts = chunk(b"IHDR", header), clear, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def on_white(pixels: np.ndarray) -> np.ndarray:
    return np.where(CLEAR[:, :, None], 255, pixels).astype(np.uint8)


def deep(pixels: np.ndarray) -> np.ndarray:
    """uint16 whose higher byte is `pixels`."""
    return pixels.astype(np.uint16) * 256 + 77


def palette_with_one_clear_colour() -> Kind:
    image = Image.fromarray(np.where(CLEAR, 3, GREY % 3).astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    return encoded(image, "PNG", transparency=3), on_white(colours[GREY % 3])


def kinds() -> dict[str, Kind]:
    grey16, other = deep(GREY), 255 - RGB
    marked = grey16.copy()
    marked[CLEAR] = 12345  # no other value is odd in this way
    marked_colour = deep(RGB)
    marked_colour[CLEAR] = 256
    clear_rgb, few_clear = np.where(CLEAR[:, :, None], 7, RGB | 8).astype(np.uint8), np.dstack([FEW, ALPHA])
    clear_grey = np.where(CLEAR, 7, GREY | 8).astype(np.uint8)
    cmyk = Image.merge("CMYK", [*Image.fromarray(255 - RGB).split(), Image.new("L", (WIDTH, HEIGHT))])
    more = {"save_all": True, "append_images": [Image.fromarray(other)]}
    rgba, half = np.dstack([RGB, ALPHA]), np.full((HEIGHT, WIDTH), 51, np.uint8)  # 51: a fifth
    found = {f"JPEG, orientation {n}": turned("JPEG", n) for n in UPRIGHT}
    found |= {f"PNG, orientation {n}": turned("PNG", n) for n in UPRIGHT}
    return found | {
        "WebP, orientation 6": turned("WEBP", 6, lossless=True),
        "TIFF, orientation 6": turned("TIFF", 6),
        "PNG, 16-bit grey, orientation 6": (turned("PNG", 6, grey16)[0], UPRIGHT[6](GREYS)),
        "PNG, RGBA, orientation 8": (turned("PNG", 8, rgba)[0], UPRIGHT[8](on_white(RGB))),
        "RGBA": (encoded(rgba, "PNG"), on_white(RGB)),
        "RGBA, WebP": (encoded(rgba, "WEBP", lossless=True, exact=True), on_white(RGB)),
        "half transparent": (encoded(np.dstack([np.zeros_like(RGB), half]), "PNG"), np.full_like(RGB, 204)),
        "LA": (encoded(np.dstack([GREY, ALPHA]), "PNG"), on_white(GREYS)),
        "palette": (encoded(Image.fromarray(FEW).quantize(8), "PNG"), FEW),
        "palette, one clear colour": palette_with_one_clear_colour(),
        "palette with alpha": (encoded(Image.fromarray(few_clear).quantize(16, method=2), "PNG"), on_white(FEW)),
        "RGB, one clear colour": (encoded(clear_rgb, "PNG", transparency=(7, 7, 7)), on_white(clear_rgb)),
        "grey, one clear value": (encoded(clear_grey, "PNG", transparency=7), on_white(GREYS | 8)),
        "CMYK": (encoded(Image.new("CMYK", (WIDTH, HEIGHT), (0, 0, 0, 100)), "JPEG"), np.full_like(RGB, 155)),
        "CMYK, TIFF": (encoded(cmyk, "TIFF"), RGB),
        "16-bit grey": (encoded(grey16, "PNG"), GREYS),
        "16-bit grey, TIFF": (encoded(grey16, "TIFF"), GREYS),
        "16-bit grey, one clear value": (png(marked, 0, (12345,)), on_white(GREYS)),
        "16-bit RGB": (png(deep(RGB), 2), RGB),
        "16-bit RGB, one clear colour": (png(marked_colour, 2, (256, 256, 256)), on_white(RGB)),
        "16-bit RGBA": (png(np.dstack([deep(RGB), ALPHA.astype(np.uint16) * 257]), 6), on_white(RGB)),
        "1-bit": (encoded(GREY > 128, "PNG"), np.where(GREYS > 128, 255, 0).astype(np.uint8)),
        "8-bit grey": (encoded(GREY, "PNG"), GREYS),
        "GIF": (encoded(Image.fromarray(FEW).quantize(8), "GIF", **more), FEW),
        "animated WebP": (encoded(RGB, "WEBP", lossless=True, **more), RGB),
        "animated PNG": (encoded(RGB, "PNG", **more), RGB),
        "MPO": (encoded(WHITE, "MPO", save_all=True, append_images=[Image.fromarray(WHITE // 2)]), WHITE),
        "MPO, orientation 6": (turned("MPO", 6, WHITE)[0], WHITE.transpose(1, 0, 2)),
    }


KINDS = kinds()
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tiff", "GIF": ".gif", "WEBP": ".webp", "PNG": ".png"}
NOT_IN_THE_SPACE = (".tiff", ".gif")


@pytest.fixture(scope="module")
def processor(llama_like: Any, tiny_strings: Any) -> Any:
    return tiny_processor(llama_like, tiny_strings)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL under which its files are served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    folder = tmp_path_factory.mktemp("served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def doors(processor: Any, address: tuple[Path, str]) -> dict[str, Callable[[Path], Any]]:
    """Each way of giving a picture file to the model: path -> pixel values [1, C, H, W]."""

    def acting(picture: Any, words: Any = "go") -> Any:
        return processor.action_inputs(picture, words)["pixel_values"]

    def chat(part: dict[str, Any]) -> Any:
        turns = [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "What?"}]}]
        inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
        return inputs["pixel_values"]

    def base64(path: Path) -> str:
        return b64encode(path.read_bytes()).decode()

    return {
        "PIL image": lambda path: acting(Image.open(path)),
        "PIL image, asked": lambda path: processor.question_inputs(Image.open(path), "What?")["pixel_values"],
        "PIL image, called": lambda path: processor(images=[Image.open(path)], text=["What?"])["pixel_values"],
        "path": acting,
        "path as text": lambda path: acting(str(path)),
        "bytes": lambda path: acting(path.read_bytes()),
        "view of bytes": lambda path: acting(memoryview(path.read_bytes())),
        "bytes of datasets": lambda path: acting({"bytes": path.read_bytes(), "path": None}),
        "path of datasets": lambda path: acting({"bytes": None, "path": str(path)}),
        "rows of datasets": lambda path: acting([{"bytes": path.read_bytes(), "path": "a"}], ["go"]),
        "URL": lambda path: acting(f"{address[1]}/{path.name}"),
        "base64": lambda path: acting(base64(path)),
        "data URL": lambda path: acting(f"data:image/x;base64,{base64(path)}"),
        "chat, path": lambda path: chat({"path": str(path)}),
        "chat, URL": lambda path: chat({"url": f"{address[1]}/{path.name}"}),
        "chat, base64": lambda path: chat({"base64": base64(path)}),
        "chat, PIL image": lambda path: chat({"image": Image.open(path)}),
        "gen-vla predict": lambda path: acting(read_pictures([str(path)])),
        "gen-vla predict, by camera": lambda path: acting(read_pictures([f"front={path}"])),
        "lm-eval": lambda path: acting(asked_by_lm_eval(path)),
        **training_doors(processor),
    }


def training_doors(processor: Any) -> dict[str, Callable[[Path], Any]]:
    """What reaches the collator's batches: of robot data without and with augmentation, and of questions."""
    unchanged = ImageAugmentation(crop_area=1.0, brightness=0.0, contrast=[1.0, 1.0], saturation=[1.0, 1.0], hue=0.0)
    augment = partial(augment_resized, size=IMAGE_SIZE, augment=partial(augment_image, settings=unchanged))
    action = {"action": np.zeros((1, 3), np.float32), "action_is_pad": np.zeros(1, bool), "instruction": "go"}
    question = {"turns": [{"question": "What?", "answer": "two"}]}

    def door(source: str, row: dict[str, Any], changed: Any = None) -> Callable[[Path], Any]:
        prepare = RowPreparer(processor, {"k": tiny_statistics(3)}, augment_picture=changed)

        def pixel_values(path: Path) -> Any:
            whole = {**row, "images": [{"bytes": path.read_bytes(), "path": None}], "identity": "row 0"}
            return CoTrainingCollator(processor, None, 2048, [])([prepare(whole, source, 0)])["pixel_values"]

        return pixel_values

    return {
        "robot row": door("robot/k", action),
        "robot row, augmented": door("robot/k", action, augment),
        "vision-language row": door("vision_language/k", question),
    }


def asked_by_lm_eval(path: Path) -> Image.Image:
    """The picture of a question, by the file that lm-eval loads from the tasks' folder."""
    spec = importlib.util.spec_from_file_location("question_data", TASKS_FOLDER / "question_data.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = path.parent / "task" / path.stem
    folder.mkdir(parents=True)
    line = {"image": str(path.absolute()), "question": "What?", "answer": "two"}
    (folder / "questions.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    rows = module.load_questions(
        name=path.stem, files="none-*.parquet", columns=["question", "answer"], local=str(path.parent / "task")
    )
    (picture,) = module.picture(rows["test"][0])
    return picture


@pytest.fixture
def file(request: pytest.FixtureRequest, address: tuple[Path, str]) -> tuple[Path, np.ndarray]:
    """A kind of picture as a served file, and its right pixels."""
    data, pixels = KINDS[request.param]
    path = address[0] / f"{list(KINDS).index(request.param)}{SUFFIXES[str(Image.open(io.BytesIO(data)).format)]}"
    path.write_bytes(data)
    return path, pixels


@pytest.mark.parametrize("file", KINDS, indirect=True)
def test_a_file_gives_the_same_pixels_through_every_door(file: Any, doors: Any, processor: Any) -> None:
    path, pixels = file
    np.testing.assert_array_equal(np.asarray(to_rgb(path)), pixels)
    right = np.asarray(processor.image_processor(pixels.copy(), return_tensors="np")["pixel_values"])
    for name, door in doors.items():
        np.testing.assert_array_equal(np.asarray(door(path)), right, err_msg=name)


@pytest.mark.parametrize("file", KINDS, indirect=True)
def test_the_space_reads_them_alike(file: Any) -> None:
    pytest.importorskip("gradio", reason="no gradio; pip install 'gen-vla[demo]'")
    from picture_input import PictureError as Refused
    from picture_input import read_picture

    path, pixels = file
    if path.suffix in NOT_IN_THE_SPACE:
        with pytest.raises(Refused, match="Use a PNG, JPEG, WebP or BMP file"):
            read_picture(str(path))
    else:
        np.testing.assert_array_equal(np.asarray(read_picture(str(path))), pixels)


@pytest.mark.parametrize(
    ("array", "right"),
    [
        (GREY, GREYS),
        (GREY[:, :, None], GREYS),
        (RGB, RGB),
        (np.dstack([RGB, ALPHA]), on_white(RGB)),
        (np.dstack([GREY, ALPHA]), on_white(GREYS)),
        (deep(GREY), GREYS),
        (deep(GREY).astype(">u2"), GREYS),
        (deep(RGB), RGB),
        (np.dstack([deep(RGB), deep(ALPHA)]), on_white(RGB)),
        (CLEAR, np.where(CLEAR[:, :, None], WHITE, 0)),
        (np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint8)),
        (RGB[::-1, ::2], RGB[::-1, ::2]),
    ],
)
def test_arrays(array: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(to_rgb(array)), right)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16L", "I;16B"])
def test_sixteen_bits_use_their_full_range(mode: str) -> None:
    for value, right in ((0, 0), (0x7FFF, 127), (0x8000, 128), (65535, 255)):
        assert to_rgb(Image.new(mode, (2, 2), value)).getpixel((0, 0)) == (right,) * 3


@pytest.mark.parametrize(
    ("mode", "colour"), [("HSV", (0, 0, 90)), ("YCbCr", (90, 128, 128)), ("RGBX", (90, 90, 90, 0)), ("L", 90)]
)
def test_grey_in_other_colour_spaces(mode: str, colour: Any) -> None:
    assert to_rgb(Image.new(mode, (2, 2), colour)).getpixel((0, 0)) == (90, 90, 90)


def test_lab_is_converted() -> None:
    red, green, blue = np.asarray(to_rgb(Image.new("LAB", (2, 2), (137, 128, 128))))[0, 0].tolist()
    # L* of 53.7 is grey 128, a and b of 128 are none
    assert max(abs(value - 128) for value in (red, green, blue)) <= 3


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("F", (2, 2), 0.5), "floating-point numbers .*scale it to 0..255"),
        (Image.new("I", (2, 2), 70_000), r"mode 'I' with values 70000..70000, expected 0..65535"),
        (Image.new("I", (2, 2), -1), r"values -1..-1, expected 0..65535"),
        (np.full((2, 2), 255, np.uint16), "largest value is 255, .*make it uint8"),
        (np.full((2, 2, 3), 200, np.uint16), "largest value is 200, .*make it uint8"),
        (b"\x89PNG", "got a picture of 4 bytes that does not decode"),
        (KINDS["RGBA"][0][:200], "bytes that does not decode .*truncated.*expected a whole PNG"),
        ("no-such.png", "got 'no-such.png' as an image, which is no file here"),
        ("http://127.0.0.1:1/a.png", r"got http://127.0.0.1:1/a.png, which cannot be fetched"),
    ],
)
def test_what_cannot_be_read_is_named(picture: Any, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        to_rgb(picture)


def test_a_missing_file_and_other_things(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got no file at .*a\.png"):
        to_rgb(tmp_path / "a.png")
    for nothing in (None, 3, {"bytes": None, "path": None}, {"front": RGB}, object()):
        with pytest.raises(TypeError, match="as an image, expected a PIL image or a uint8 array"):
            to_rgb(nothing)
