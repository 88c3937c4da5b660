"""The loader benchmark: what it measures, and its command."""

import json

import numpy as np
import pytest
from rlds_data_sets import write_rlds
from robot_data_sets import make_episodes, write_lerobot

from gen_vla.commands.main import main
from gen_vla.evaluation.benchmarks.loader import loader_table, measure_loader, our_frames
from gen_vla.training.robot_data.source import open_robot_source


def test_pictures_are_decoded_resized_and_repeated(tmp_path):
    path = write_rlds(tmp_path, make_episodes(1, 3), name="mine")
    frames = our_frames(open_robot_source(path, key="x"), 32)
    pictures = [next(frames) for _ in range(4)]
    assert all(picture.shape == (32, 32, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert [round(picture.mean()) for picture in pictures] == [0, 5, 10, 0]


def test_every_turn_is_kept_and_the_median_reported(tmp_path):
    result = measure_loader(write_lerobot(tmp_path / "set", make_episodes(2, 4)), frames=20, repeats=3, size=32)
    ours = result["readers"]["gen-vla"]
    assert (result["data"], result["format"], result["camera"]) == ("set", "LeRobot", "observation.images.image_0")
    assert len(ours["runs"]) == 3
    assert ours["frames_per_core_second"] == sorted(ours["runs"])[1]
    assert ours["first_picture"] == 0.0
    assert loader_table({"results": [result]}).row_count == len(result["readers"])


def test_the_command_writes_results(tmp_path, capsys):
    path = write_rlds(tmp_path, make_episodes(2, 4, size=16))
    output = tmp_path / "loader.json"
    arguments = ["evaluate", "loader", str(path), "--frames", "10", "--repeats", "1", "--output", str(output)]
    assert main(arguments) == 0
    results = json.loads(output.read_text())
    assert results["results"][0]["format"] == "RLDS"
    assert results["machine"]["cores"] >= 1
    assert "bridge_orig" in capsys.readouterr().out


def test_a_path_that_is_no_data_set(tmp_path):
    with pytest.raises(ValueError, match="expected one of them"):
        measure_loader(tmp_path)
