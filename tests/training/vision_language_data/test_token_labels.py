"""Labels per image token."""

import time

import numpy as np
import pytest

from gen_vla.training.vision_language_data.token_labels import token_labels


CAN = {"colour": 0, "shape": 0, "u": 0.30, "v": 0.55}
MUG = {"colour": 2, "shape": 2, "u": 0.80, "v": 0.95}


def test_a_patch_says_whose_middle_lies_in_it():
    labels = token_labels([[CAN, MUG], []], 4)
    assert labels.colours[0].nonzero()[0].tolist() == labels.shapes[0].nonzero()[0].tolist() == [9, 15]
    assert labels.colours[0, [9, 15]].tolist() == labels.shapes[0, [9, 15]].tolist() == [1, 3]
    np.testing.assert_allclose(labels.offsets[0, [9, 15]], [(0.2, 0.2), (0.2, 0.8)], atol=1e-6)
    assert not labels.colours[1].any()
    assert labels.colours.dtype == np.int64
    assert labels.offsets.dtype == np.float32


def test_of_two_in_one_patch_the_nearer_counts_and_none_outside_the_picture():
    labels = token_labels([[CAN, {**MUG, "u": 0.3, "v": 0.6}, {**MUG, "u": 1.0}, {**MUG, "v": -0.1}]], 2)
    assert labels.colours[0].tolist() == [0, 0, 3, 0]


def test_it_takes_no_time_beside_a_training_step():
    began = time.process_time()
    token_labels([[CAN, MUG]] * 1000, 8)
    assert time.process_time() - began < 0.2


def test_a_grid_without_patches_is_refused():
    with pytest.raises(ValueError, match="got a grid of 0 patches a side, expected at least 1"):
        token_labels([[CAN]], 0)
