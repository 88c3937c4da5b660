"""Random numbers of a row depend on seed, purpose and row, and on nothing else."""

from gen_vla.training.mixing.row_randomness import row_generator


def test_the_same_row_draws_the_same_and_any_other_draws_something_else():
    drawn = [row_generator(0, "image", 3).random() for _ in range(2)]
    assert drawn[0] == drawn[1]
    others = [(1, "image", 3), (0, "instruction", 3), (0, "image", 4), (0, "image", "file row 3")]
    assert len({drawn[0], *(row_generator(*other).random() for other in others)}) == 5


def test_rows_are_spread_evenly():
    drawn = [row_generator(7, "image", row).random() for row in range(2000)]
    assert abs(sum(drawn) / 2000 - 0.5) < 0.02
    assert abs(sum(value < 0.1 for value in drawn) / 2000 - 0.1) < 0.03
