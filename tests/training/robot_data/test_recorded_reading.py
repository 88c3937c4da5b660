"""Recordings of this project: their episodes, what is checked at opening, and steps without a picture."""

import pytest
from datasets import load_from_disk
from robot_data_sets import make_episodes, write_recording
from robot_rows import places, read_rows

from gen_vla.training.robot_data.recorded import RecordedReader
from gen_vla.training.storage.data_folder import DataFolder


@pytest.fixture
def folder(tmp_path):
    return write_recording(tmp_path / "recording", make_episodes(3, 4, size=16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.remove_columns(["instruction"]), "expected also instruction"),
        (lambda rows: rows.select([0, 4, 1, 5]), "rows of one episode in several places"),
    ],
)
def test_what_is_refused(tmp_path, folder, change, message):
    change(load_from_disk(str(folder))).save_to_disk(str(tmp_path / "changed"))
    with pytest.raises(ValueError, match=message):
        RecordedReader(DataFolder(tmp_path / "changed"))


def test_a_step_without_a_picture(tmp_path, folder):
    rows = load_from_disk(str(folder))
    emptied = rows.map(lambda row, number: {"image": None if number == 1 else row["image"]}, with_indices=True)
    emptied.save_to_disk(str(tmp_path / "emptied"))
    read, dataset = read_rows(tmp_path / "emptied")
    assert places(read) == [(0, 0), (0, 2), (0, 3), *((n, step) for n in (1, 2) for step in range(4 + n))]
    assert dataset.problems.report()["by_reason"] == {"step without a picture": 1}
