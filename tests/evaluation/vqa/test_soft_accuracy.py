"""Soft accuracy against cases worked out by hand, with the official rule's oddities among them."""

import pytest

from gen_vla.evaluation.vqa.lm_eval_tasks.soft_accuracy import (
    CORRECTIONS,
    normalize_answer,
    process_results,
    soft_accuracy,
)


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("The Two dogs!", "2 dogs"),
        ("A cat, an owl and the dog", "cat owl and dog"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),  # the table ends at ten
        ("1,000", "1000"),
        ("1.5", "1.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("e.g.", "eg"),
        ("St. John", "st john"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("wouldn'tve", "wouldn't've"),
        ("yall'd've", "y'all'd've"),
        ("thats", "that's"),
        ("that's", "that 's"),  # the rule takes "'s" apart, but puts it back together only when misspelt
        ("somebody'd", "somebodyd"),
        ("well", "well"),  # words that are not misspellings
        ("wed", "wed"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("x-ray", "x ray"),
        ("x-ray -", "xray"),  # one mark beside a space, and all of its kind are dropped instead of replaced
        ("10:30", "10:30"),  # a colon is no punctuation here
        ("what?", "what"),
        ('"stop"', "stop"),
        ("two\nthree\tfour", "2 3 4"),
        ("  ", ""),
        ("The", ""),
    ],
)
def test_normalisation(answer, normalized):
    assert normalize_answer(answer) == normalized


def test_the_official_table_of_contractions():
    """All its entries but three capitalised ones, which no lower-case word can match, and two that change nothing."""
    assert len(CORRECTIONS) == 114
    assert CORRECTIONS["hed've"] == CORRECTIONS["he'dve"] == "he'd've"
    assert CORRECTIONS["ow's'at"] == CORRECTIONS["'ows'at"] == CORRECTIONS["'ow'sat"] == "'ow's'at"
    assert CORRECTIONS["twas"] == "'twas"
    for word in ("were", "ill", "shell", "hell", "shed", "its", "lets", "wed", "well", "id", "im", "ive"):
        assert word not in CORRECTIONS


@pytest.mark.parametrize(
    ("answer", "annotations", "score"),
    [
        ("yes", ["yes"] * 10, 1.0),
        ("no", ["yes"] * 10, 0.0),
        # one of ten says so: left out once, it finds no other; the nine others each find one match
        ("cat", ["cat"] + ["dog"] * 9, 0.3),  # (0 + 9 * 1/3) / 10
        ("cat", ["cat"] * 2 + ["dog"] * 8, 0.6),  # (2 * 1/3 + 8 * 2/3) / 10
        ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9),  # (3 * 2/3 + 7 * 1) / 10
        ("cat", ["cat"] * 4 + ["dog"] * 6, 1.0),
        ("The Cat.", ["cat", "a cat", "CAT!", "the cat"] + ["dog"] * 6, 1.0),
        ("2", ["two"] * 3 + ["2"] + ["three"] * 6, 1.0),
        ("", ["unanswerable"] * 10, 0.0),
        ("Unanswerable", ["unanswerable"] * 3 + ["no"] * 7, 0.9),
        ("a", ["b", "a"], 1 / 6),  # two annotators: (1/3 + 0) / 2
    ],
)
def test_leave_one_out(answer, annotations, score):
    assert soft_accuracy(answer, annotations) == pytest.approx(score, abs=1e-12)
    assert process_results({"answers": annotations}, [answer]) == {"soft_accuracy": pytest.approx(score)}


def test_one_annotation_leaves_none_to_compare_with():
    with pytest.raises(ValueError, match=r"got 1 annotations, expected at least 2.*drop the question"):
        soft_accuracy("yes", ["yes"])
