"""The metric as a Space folder: loaded by `evaluate.load` offline, three-value actions worked out by hand."""

import doctest
import importlib.util
import os
from pathlib import Path

import pytest


evaluate = pytest.importorskip("evaluate", reason="evaluate is not installed; run: pip install 'gen-vla[eval]'")

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "spaces" / "action_error"
FORMAT = {"action_dim": 3, "decimals": 2, "binary_dims": (2,)}
STATISTICS = {"q01": [-0.1, -1.0, 0.0], "q99": [0.1, 3.0, 1.0], "mask": [True, True, False]}


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    """Loaded from a copy without links, as it lies on the Hub."""
    folder = tmp_path_factory.mktemp("spaces") / "action_error"
    folder.mkdir()
    for path in SPACE.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return evaluate.load(str(folder))


@pytest.mark.parametrize("name", ["action_strings.py", "action_statistics.py", "relative_actions.py"])
def test_one_source_per_behaviour(name):
    link = SPACE / name
    assert link.read_bytes() == (ROOT / "processors" / name).read_bytes()
    if link.is_symlink():  # a checkout without symbolic links has copies
        assert os.readlink(link) == f"../../processors/{name}"


def test_four_predictions(metric):
    """The same; 0.20 off in the first value and 0.04 in the second; a wrong sign and gripper; no action."""
    recorded = ["+0.10-0.20+1.00"] * 4
    written = ["+0.10-0.20+1.00", "+0.30-0.24+1.00", "-0.10-0.20+0.00", "+0.10-0.20"]
    result = metric.compute(predictions=written, references=recorded, statistics=STATISTICS, **FORMAT)
    assert (result["n"], result["malformed"]) == (4, 1)
    assert result["exact_string_rate"] == 1 / 4
    assert result["sign_accuracy"] == 5 / 8  # of 4 x 2 values that have a sign: 2 + 2 + 1 + 0
    assert result["within_tolerance"] == 1 / 4
    assert result["within_tolerance_per_dimension"] == [1 / 4, 3 / 4, 2 / 4]
    # half the range is 0.1 and 2.0: errors 0, 0.02, 0.02 | 0, 0.08, 0 | 0, 0, 1, over three actions
    assert result["l1_per_dimension"] == pytest.approx([0.04 / 3, 0.08 / 3, 1 / 3], abs=1e-6)
    assert result["l1_normalized"] == pytest.approx((0.4 + 0.04 + 1.0) / 9, abs=1e-6)
    assert result["units"] is True
    assert result["first_malformed"].startswith("prediction 3: got the end of the text at position 10")


def test_tolerance_includes_its_bound(metric):
    result = metric.compute(predictions=["+0.35"], references=["+0.30"], action_dim=1, decimals=2, tolerance=0.05)
    assert result["within_tolerance"] == 1.0
    result = metric.compute(predictions=["+0.36"], references=["+0.30"], action_dim=1, decimals=2, tolerance=0.05)
    assert result["within_tolerance"] == 0.0


def test_without_any_action_there_is_no_distance(metric):
    result = metric.compute(predictions=["up!", ""], references=["+0.10-0.20+1.00"] * 2, **FORMAT)
    assert (result["malformed"], result["l1_per_dimension"], result["l1_normalized"]) == (2, None, None)
    assert (result["sign_accuracy"], result["within_tolerance"], result["units"]) == (0.0, 0.0, False)


def test_a_chunk_of_actions(metric):
    recorded = ["+0.10-0.20\n+0.30+0.40"]
    written = ["+0.10-0.20\n+0.30-0.40"]
    result = metric.compute(predictions=written, references=recorded, action_dim=2, decimals=2, horizon=2)
    assert result["l1_per_dimension"] == pytest.approx([0.0, 0.4])
    assert result["sign_accuracy"] == 3 / 4
    assert result["within_tolerance_per_dimension"] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": ["+0.10"]}, r"reference 0 is no action: .*check action_dim, horizon, decimals"),
        ({"tolerance": -1.0}, "got tolerance=-1.0, expected 0 or more"),
        ({"style": "pretty"}, "got style='pretty'"),
        ({"statistics": {"q01": [0.0], "q99": [1.0]}}, "the statistics belong to another robot"),
    ],
)
def test_mistakes(metric, changes, message):
    fine = {"predictions": ["+0.10-0.20+1.00"], "references": ["+0.10-0.20+1.00"], **FORMAT}
    with pytest.raises(ValueError, match=message):
        metric.compute(**{**fine, **changes})


def test_the_example_in_the_docs_is_right(metric):
    names = {"evaluate": type("Loaded", (), {"load": staticmethod(lambda name: metric)})}
    example = doctest.DocTestParser().get_doctest(metric.inputs_description, names, "example", None, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_page_measures():
    gradio = pytest.importorskip("gradio", reason="gradio is not installed; run: pip install 'gen-vla[demo]'")
    spec = importlib.util.spec_from_file_location("action_error_app", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    assert isinstance(app.build(), gradio.Blocks)
    rows, result = app.measure(app.PREDICTED, app.RECORDED, 3, 4, 0.05)
    assert rows[0] == ["0", "0.0050", "67 %"]  # 0.01 and 0 of two actions; the third string is none
    assert (result["malformed"], result["n"]) == (1, 3)
    with pytest.raises(gradio.Error, match="got 1 predicted and 3 recorded actions"):
        app.measure("+0.1", app.RECORDED, 3, 4, 0.05)
    with pytest.raises(gradio.Error, match="reference 0 is no action"):
        app.measure(app.PREDICTED, app.RECORDED, 2, 4, 0.05)
