"""Rows to prompts and answers: actions spelled exactly, questions asked as inference asks them, pictures decoded."""

import io
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_processor, tiny_statistics
from tiny_runs import noise

from gen_vla.processors import ActionGrammar, ActionStringProcessor
from gen_vla.training.mixing.prepared_rows import RowPreparer, augment_resized, row_generator


STATS = {"mine": tiny_statistics(3)}  # dimension d is mapped from [-(d + 1), d + 1] to [-1, 1]; the gripper stays


def encoded(seed: int) -> dict[str, Any]:
    file = io.BytesIO()
    noise(seed).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def robot_row(action: Any, instruction: str = "Open the drawer") -> dict[str, Any]:
    action = np.atleast_2d(np.asarray(action, dtype=np.float32))
    row = {"images": [encoded(1)], "instruction": instruction, "action": action, "identity": "file row 1"}
    return {**row, "action_is_pad": np.arange(len(action)) > 1}


def preparer(tokenizer: Any, strings: ActionStringProcessor, **settings: Any) -> RowPreparer:
    return RowPreparer(tiny_processor(tokenizer, strings), STATS, **settings)


def test_robot_rows_spell_normalised_actions(llama_like: Any) -> None:
    prepare = preparer(llama_like, ActionStringProcessor(action_dim=3, decimals=4, binary_dims=[2]))
    prepare = pickle.loads(pickle.dumps(prepare))  # as it travels to worker processes
    spelled = [prepare(robot_row(action), "robot/mine", 0)["completion"] for action in ([0.5, -1, 1], [1.5, -9, 1])]
    assert spelled == ["+0.5000-0.5000+1.0000", "+1.0000-1.0000+1.0000"]
    row = prepare(robot_row([-0.1234, 0, 0], "CLOSE it"), "robot/mine", 0)
    assert row["completion"] == "-0.1234+0.0000+0.0000"
    assert row["prompt"] == "In: What action should the robot take to close it?\nOut:\n"
    assert (row["source"], row["identity"], row["more_turns"]) == ("robot/mine", "file row 1", [])
    assert np.array_equal(np.asarray(row["images"][0]), np.asarray(noise(1)))


def test_chunks_are_spelled_step_by_step(llama_like: Any) -> None:
    prepare = preparer(llama_like, ActionStringProcessor(action_dim=3, horizon=2, decimals=2, binary_dims=[2]))
    row = prepare(robot_row([[0.5, -1, 1], [0.25, 0, 0]]), "robot/mine", 0)
    assert row["completion"] == "+0.50-0.50+1.00\n+0.25+0.00+0.00"
    assert row["action_is_pad"].tolist() == [False, False]
    with pytest.raises(ValueError, match=r"file row 1: got an action of shape \[1, 3\], expected actions.horizon=2"):
        prepare(robot_row([0.5, -1, 1]), "robot/mine", 0)


def test_label_decimals_round_and_keep_the_width(llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=3, decimals=4, binary_dims=[2])
    for decimals, expected in (
        (2, ["+0.5700+0.0000+1.0000", "+1.0000-0.2500+0.0000"]),
        (1, ["+0.6000+0.0000+1.0000", "+1.0000-0.2000+0.0000"]),
        (None, ["+0.5678-0.0045+1.0000", "+0.9990-0.2500+0.0000"]),
    ):
        prepare = preparer(llama_like, strings, label_decimals=decimals)
        rows = [robot_row([0.5678, -0.0090, 1]), robot_row([0.999, -0.5, 0])]
        assert [prepare(row, "robot/mine", 0)["completion"] for row in rows] == expected


@pytest.mark.parametrize("style", ["signed", "plain", "legacy"])
def test_what_a_robot_row_teaches_is_what_the_grammar_reads(style: str, llama_like: Any) -> None:
    strings = ActionStringProcessor(action_dim=3, decimals=4, style=style, binary_dims=[2])
    prepare = preparer(llama_like, strings)
    processor = prepare.processor
    grammar = ActionGrammar.from_action_config(processor.action_config)
    for action in ([-0.5, -1, 1], [0.25, 0, 0], [-0.1234, 2, 1]):
        row = prepare(robot_row(action), "robot/mine", 0)
        prompt = processor.encode_text(row["prompt"])
        whole = processor.encode_text(row["prompt"] + row["completion"])
        assert whole[: len(prompt)] == prompt
        answer = whole[len(prompt) :]
        grammar.advance([*answer, llama_like.eos_token_id])  # raises at a token that could never be generated
        assert strings.encode(strings.decode(grammar.text(answer))) == row["completion"].removeprefix(" ")


def test_questions_conversations_and_captions(llama_like: Any) -> None:
    prepare = RowPreparer(tiny_processor(llama_like), {})
    turns = [{"question": "Is it open? ", "answer": "yes"}, {"question": "Why?", "answer": " two"}]
    row = prepare({"images": [], "turns": turns, "identity": "i"}, "vision_language/scenes", 0)
    assert (row["prompt"], row["completion"]) == ("In: Is it open?\nOut:", " yes")
    assert row["more_turns"] == [{"prompt": "In: Why?\nOut:", "completion": " two"}]
    assert (row["images"], row["source"]) == ([], "vision_language/scenes")
    caption = {"images": [encoded(2)], "turns": [{"question": "", "answer": "a can"}], "identity": "i"}
    assert prepare(caption, "vision_language/scenes", 0)["prompt"] == "In: \nOut:"


def test_augmentation_sees_robot_rows_only_and_is_told_the_place(llama_like: Any) -> None:
    seen: list[Any] = []

    def augment(picture: Any, name: str) -> Any:
        seen.append((picture.size, name))
        return picture.rotate(90)

    strings = ActionStringProcessor(action_dim=3, decimals=2)
    picture = partial(augment_resized, size=8, augment=augment)
    prepare = preparer(
        llama_like, strings, augment_picture=picture, augment_instruction=lambda text, place: f"go {place}"
    )
    row = {**robot_row([0, 0, 1]), "images": [encoded(1), encoded(2)]}
    prepared = prepare(row, "robot/mine", 41)
    assert seen == [((8, 8), "41/0"), ((8, 8), "41/1")]
    assert prepared["prompt"] == "In: What action should the robot take to go 41?\nOut:\n"
    question = {"images": [encoded(1)], "turns": [{"question": "q", "answer": "a"}], "identity": "i"}
    plain = prepare(question, "vision_language/s", 0)
    assert len(seen) == 2
    assert plain["images"][0].size == (16, 16)


def test_the_same_row_draws_the_same_and_any_other_draws_something_else():
    drawn = [row_generator(0, "image", 3).random() for _ in range(2)]
    assert drawn[0] == drawn[1]
    others = [(1, "image", 3), (0, "instruction", 3), (0, "image", 4), (0, "image", "file row 3")]
    assert len({drawn[0], *(row_generator(*other).random() for other in others)}) == 5
