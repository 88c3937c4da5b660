"""Soft accuracy of TextVQA and VizWiz: how many of ten annotators gave the model's answer.

Answers are compared after the VQA evaluation's normalisation, as EvalAI's servers, TextVQA and lmms-eval do.

    annotators                         answer      matches among the nine others      score
    "two" x 2, "three" x 8             "2"         1 (twice), 2 (eight times)         (2 * 1/3 + 8 * 2/3) / 10 = 0.6

`spaces/vqa_accuracy/` links to this file. It imports nothing of this project, so that plain lm-eval can load it.
"""

import re
import statistics
from collections.abc import Sequence
from typing import Any


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# A point goes unless a digit follows it: "1.5" stays, "1." and "e.g" lose theirs.
POINT = re.compile(r"\.(?!\d)")
# Each form is also written with one of its apostrophes left out, which is what gets corrected: "dont", "couldnt've".
CONTRACTION_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


CORRECTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in CONTRACTION_FORMS.split()
    for place, character in enumerate(form)
    if character == "'"
}
CORRECTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round


def normalize_answer(answer: str) -> str:
    """An answer as the VQA evaluation compares it: "The two dogs!" becomes "2 dogs". Lower case, no articles, number
    words as digits, apostrophes of contractions restored; punctuation that touches a space anywhere in the answer is
    dropped, other punctuation becomes a space."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    at_a_space = {mark for mark in PUNCTUATION if f"{mark} " in text or f" {mark}" in text}
    text = text.translate({ord(mark): "" if mark in at_a_space else " " for mark in PUNCTUATION})
    words = [NUMBER_WORDS.get(word, word) for word in POINT.sub("", text).split()]
    return " ".join(CORRECTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, annotations: Sequence[str]) -> float:
    """Mean over annotators of min(1, matches among the others / 3), all answers normalised; raises `ValueError` with
    fewer than two annotations (usually ten), since each is left out once."""
    if len(annotations) < 2:
        raise ValueError(f"got {len(annotations)} annotations, expected at least 2, usually 10; drop the question")
    given = normalize_answer(answer)
    same = [normalize_answer(annotation) == given for annotation in annotations]
    return statistics.mean(min(1.0, (sum(same) - own) / 3) for own in same)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's call for one question: `doc["answers"]` against the one answer in `results`."""
    return {"soft_accuracy": soft_accuracy(results[0], doc["answers"])}
