"""The metric as a Space folder: loaded by `evaluate.load` offline, one rule with the lm-eval tasks, its page."""

import doctest
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import yaml

from gen_vla.evaluation.vqa.lm_eval_tasks.soft_accuracy import soft_accuracy


evaluate = pytest.importorskip("evaluate", reason="evaluate is not installed; run: pip install 'gen-vla[eval]'")

SPACE = Path(__file__).resolve().parents[3] / "spaces" / "vqa_accuracy"
TASKS = Path(__file__).resolve().parents[3] / "evaluation" / "vqa" / "lm_eval_tasks"


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    """Loaded from a copy without links, as it lies on the Hub."""
    folder = tmp_path_factory.mktemp("spaces") / "vqa_accuracy"
    folder.mkdir()
    for path in SPACE.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return evaluate.load(str(folder))


def test_one_rule_in_two_places():
    link = SPACE / "soft_accuracy.py"
    assert link.read_bytes() == (TASKS / "soft_accuracy.py").read_bytes()
    if link.is_symlink():  # a checkout without symbolic links has copies
        assert os.readlink(link) == "../../evaluation/vqa/lm_eval_tasks/soft_accuracy.py"


def test_scores(metric):
    people = [["cat"] * 3 + ["dog"] * 7, ["two"] * 10, ["yes"] * 10]
    result = metric.compute(predictions=["The cat", "2.", "no"], references=people)
    assert result["scores"] == pytest.approx([0.9, 1.0, 0.0])
    assert result["vqa_accuracy"] == pytest.approx(1.9 / 3)
    with pytest.raises(ValueError, match="got 1 annotations, expected at least 2"):
        metric.compute(predictions=["cat"], references=[["cat"]])
    assert result["scores"] == [soft_accuracy(a, p) for a, p in zip(("The cat", "2.", "no"), people, strict=True)]


def test_the_example_in_the_docs_is_right(metric):
    names = {"evaluate": type("Loaded", (), {"load": staticmethod(lambda name: metric)})}
    example = doctest.DocTestParser().get_doctest(metric.inputs_description, names, "example", None, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("name", ["vqa_accuracy", "action_error"])
def test_both_folders_are_spaces(name):
    folder = SPACE.parent / name
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = yaml.safe_load(front)
    pins = (SPACE.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"gradio=={settings['sdk_version']}" in pins
    assert settings["sdk"] == "gradio"
    assert (folder / settings["app_file"]).is_file()
    assert {"evaluate", "metric"} <= set(settings["tags"])
    assert f'evaluate.load("gen-vla/{name}")' in text
    assert not (folder / "__init__.py").exists()


def test_the_page_explains_a_score(monkeypatch):
    gradio = pytest.importorskip("gradio", reason="gradio is not installed; run: pip install 'gen-vla[demo]'")
    monkeypatch.syspath_prepend(str(SPACE))
    monkeypatch.delitem(sys.modules, "soft_accuracy", raising=False)
    spec = importlib.util.spec_from_file_location("vqa_accuracy_app", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    assert isinstance(app.build(), gradio.Blocks)
    text, rows = app.explain("The Cat.", "cat\ncat\ndog\n")
    assert text.startswith("## 0.44")  # (1/3 + 1/3 + 2/3) / 3
    assert rows[0] == ["cat", "cat", "yes", "1", "0.33"]
    assert rows[2] == ["dog", "dog", "", "2", "0.67"]
    with pytest.raises(gradio.Error, match="got 1 annotations"):
        app.explain("cat", "cat")
