"""Where the VQA tasks' rows come from: published layouts on disk, plain ones, saved data sets, and what is missing."""

import json

import pytest
from tiny_models import picture
from vqa_files import WORDS, write_all, write_gqa, write_parquet, write_scenes, write_soft, write_vsr

from gen_vla.evaluation.vqa.lm_eval_tasks.question_data import load_questions
from gen_vla.evaluation.vqa.lm_eval_tasks.question_data import picture as open_picture


SOFT = {"name": "textvqa", "files": "data/validation-*.parquet", "columns": ["question", "answers"]}
GQA = {
    "name": "gqa",
    "files": "testdev_balanced_instructions/testdev-*.parquet",
    "picture_files": "testdev_balanced_images/testdev-*.parquet",
    "columns": ["question", "answer"],
}
VSR = {"name": "vsr", "files": "test.jsonl", "columns": ["caption", "label"], "obtain": "See DIR/vsr/images."}
SCENES = {"name": "scenes", "files": "data/*.parquet", "columns": ["question", "answer"], "obtain": "See DIR/scenes."}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_published_layout_keeps_its_pictures(tmp_path):
    write_soft(tmp_path / "textvqa", "validation", 3)
    write_soft(tmp_path / "textvqa", "train", 5)  # another split, not to be read
    rows = load_questions(**SOFT, local=str(tmp_path), version=1.0, pretrained="x")["test"]
    assert len(rows) == 3
    assert rows[2]["answers"] == ["two"] * 10
    (image,) = open_picture(rows[2])
    assert image.mode == "RGB"
    assert image.tobytes() == picture(2).tobytes()


def test_gqa_joins_pictures_by_their_id(tmp_path):
    write_gqa(tmp_path / "gqa", 3)
    rows = load_questions(**GQA, local=str(tmp_path))["test"]
    assert [rows[place]["imageId"] for place in range(3)] == ["n0", "n1", "n0"]
    for place, number in enumerate((0, 1, 0)):
        assert open_picture(rows[place])[0].tobytes() == picture(number).tobytes()


def test_gqa_questions_about_other_pictures(tmp_path):
    write_gqa(tmp_path / "gqa", 2)
    other = [{"id": "0", "imageId": "n7", "question": "Which?", "answer": "two"}]
    types = {"id": WORDS, "imageId": WORDS, "question": WORDS, "answer": WORDS}
    write_parquet(tmp_path / "gqa/testdev_balanced_instructions/testdev-00000-of-00001.parquet", other, **types)
    with pytest.raises(FileNotFoundError, match=r"about 1 pictures that are not in the table of pictures \(n7\)"):
        load_questions(**GQA, local=str(tmp_path))


def test_vsr_finds_its_pictures(tmp_path):
    write_vsr(tmp_path / "vsr", 3)
    rows = load_questions(**VSR, local=str(tmp_path))["test"]
    assert list(rows["label"]) == [1, 0, 1]
    assert open_picture(rows[1])[0].size == (12, 10)


def test_every_picture_that_is_missing_is_counted_before_anything_runs(tmp_path):
    write_vsr(tmp_path / "vsr", 5)
    for row in (1, 2, 3, 4):
        (tmp_path / f"vsr/images/{row:012}.jpg").unlink()
    with pytest.raises(FileNotFoundError) as stop:
        load_questions(**VSR, local=str(tmp_path))
    message = str(stop.value)
    assert (
        "got 4 of 5 pictures of task vsr missing (000000000001.jpg, 000000000002.jpg, 000000000003.jpg, ...)"
        in message
    )
    assert f"expected them in {tmp_path}/vsr/images. See {tmp_path}/vsr/images." in message


def test_the_real_text_of_vsr(data_dir, tmp_path):
    (tmp_path / "vsr/images").mkdir(parents=True)
    source = data_dir / "vsr_zeroshot" / "test.jsonl"
    (tmp_path / "vsr/test.jsonl").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"got 715 of 715 pictures"):
        load_questions(**VSR, local=str(tmp_path))
    for name in {json.loads(line)["image"] for line in source.read_text(encoding="utf-8").splitlines()}:
        picture(1).save(tmp_path / "vsr/images" / name)
    rows = load_questions(**VSR, local=str(tmp_path))["test"]
    assert len(rows) == 1222
    assert rows[0]["caption"] == "The car is behind the suitcase."


def test_a_missing_column_is_named(tmp_path):
    write_all(tmp_path, 2)
    with pytest.raises(ValueError, match=r"got columns .*question.* for task gqa, expected question, reply, imageId"):
        load_questions(**{**GQA, "columns": ["question", "reply"]}, local=str(tmp_path))
    with pytest.raises(ValueError, match="missing: reply"):
        load_questions(**{**SOFT, "columns": ["question", "reply"]}, local=str(tmp_path))


@pytest.mark.parametrize("broken", ["questions.jsonl", "questions.parquet", "state.json"])
def test_an_empty_file(tmp_path, broken):
    folder = tmp_path / "scenes"
    if broken == "state.json":
        write_scenes(folder, 2)
    folder.mkdir(exist_ok=True)
    (folder / broken).write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"got {folder}.*, which could not be read .*; fetch it again"):
        load_questions(**SCENES, local=str(tmp_path))


def test_nothing_here_and_nothing_published(tmp_path):
    with pytest.raises(FileNotFoundError) as stop:
        load_questions(**SCENES, local=str(tmp_path))
    assert f"expected {tmp_path}/scenes to hold data/*.parquet or questions.parquet" in str(stop.value)
    assert str(stop.value).endswith(f"See {tmp_path}/scenes.")


def test_nothing_here_and_no_hub():
    with pytest.raises(FileNotFoundError) as stop:
        load_questions(**SOFT, repository="lmms-lab/textvqa")
    message = str(stop.value)
    assert "nor an answer from the Hub for lmms-lab/textvqa" in message
    assert "DIR/<task> of --local DIR to hold data/validation-*.parquet" in message


@pytest.mark.parametrize("name", ["data [v2]", "a*b", "what?"])
def test_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name / "textvqa"
    (folder / "images").mkdir(parents=True)
    picture(3).save(folder / "images/a.png")
    line = {"image": "a.png", "question": "how\u2028many?", "answers": ["two"] * 10}
    (folder / "questions.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = load_questions(**SOFT, local=str(tmp_path / name))["test"]
    assert rows["question"][:] == ["how\u2028many?"]
    assert open_picture(rows[0])[0].tobytes() == picture(3).tobytes()
