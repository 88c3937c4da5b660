"""Rows whose actions stay numbers: what they hold, how noise and time are drawn, and batches of them."""

import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_statistics
from tiny_runs import noise

from gen_vla.training.flow.rows import FlowCollator, FlowRowPreparer, draw_noise


STATS = {"mine": tiny_statistics(3)}  # dimension d is mapped from [-(d + 1), d + 1] to [-1, 1]; the gripper stays
TIMES = {
    "time_sampling_beta_alpha": 1.5,
    "time_sampling_beta_beta": 1.0,
    "time_sampling_scale": 0.999,
    "time_sampling_offset": 0.001,
}


def draw(seed: int = 0, flow_dim: int = 3) -> Any:
    config = SimpleNamespace(action_config={"horizon": 2}, flow_dim=flow_dim, **TIMES)
    return partial(draw_noise, config=config, seed=seed)


class Words:
    """As much of a processor as rows and batches need: one token per character."""

    action_config = {"horizon": 2, "action_dim": 3}  # noqa: RUF012
    takes_state = False

    def action_prompt(self, instruction: str) -> str:
        return f"{instruction.lower()}\n"

    def __call__(self, images: list[Any], text: list[str], split_special_tokens: bool) -> dict[str, torch.Tensor]:
        ids = [torch.tensor([ord(letter) for letter in line]) for line in text]
        pixels = torch.stack([torch.tensor(np.asarray(picture)).float() for row in images for picture in row])
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        return {"input_ids": padded, "attention_mask": (padded > 0).long(), "pixel_values": pixels.movedim(-1, 1)}


def row(action: Any, padded: bool = False, pictures: int = 1) -> dict[str, Any]:
    return {
        "images": [noise(number) for number in range(pictures)],
        "instruction": "Go",
        "action": np.asarray(action, dtype=np.float32),
        "action_is_pad": np.array([False, padded]),
        "identity": "file row 1",
    }


CHUNK = [[0.5, -1, 1], [-9, 0.5, 0]]


def test_an_action_stays_numbers_normalised_and_clipped_and_says_where_it_is_padding() -> None:
    settings = {"augment_instruction": lambda text, place: f"{text} {place}", "draw_noise": draw()}
    prepared = FlowRowPreparer(Words(), STATS, **settings)(row(CHUNK, padded=True), "robot/mine", 7)
    np.testing.assert_allclose(prepared["actions"], [[0.5, -0.5, 1], [-1, 0.25, 0]], atol=1e-6)
    assert prepared["actions"].dtype == np.float32
    assert prepared["action_is_pad"].tolist() == [False, True]
    assert (prepared["prompt"], prepared["source"], "completion" in prepared) == ("go 7\n", "robot/mine", False)
    with pytest.raises(ValueError, match=r"got an action of shape \[1, 3\], expected actions.horizon=2 by"):
        FlowRowPreparer(Words(), STATS, draw_noise=draw())(row(CHUNK[:1]), "robot/mine", 0)


def test_noise_and_time_belong_to_a_place_of_the_run() -> None:
    first, again, other = draw()(3), pickle.loads(pickle.dumps(draw()))(3), draw()(4)
    assert np.array_equal(first["noise"], again["noise"])
    assert first["timestep"] == again["timestep"]
    assert not np.array_equal(first["noise"], other["noise"])
    assert draw(seed=1)(3)["timestep"] != first["timestep"]
    assert (first["noise"].shape, first["noise"].dtype) == ((2, 3), np.float32)
    wide = draw(flow_dim=32)(5)["noise"]  # of a model with noise behind the action's dimensions
    assert wide.shape == (2, 32)
    assert wide.all()


def test_times_are_those_the_model_would_draw() -> None:
    times = np.array([draw()(place)["timestep"] for place in range(4000)])
    assert times.min() > 0.001
    assert times.max() < 1.0
    assert times.mean() == pytest.approx(0.6 * 0.999 + 0.001, abs=0.015)  # Beta(1.5, 1) has a mean of 0.6


def test_a_batch() -> None:
    prepare = FlowRowPreparer(Words(), STATS, draw_noise=draw())
    rows = [prepare(row(CHUNK, padded=True), "robot/mine", 1)]
    rows += [{**prepare(row(CHUNK), "robot/mine", 2), "replaced": True}]
    batch = FlowCollator(Words(), ["robot/other", "robot/mine"])(rows)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (2, 3),
        "attention_mask": (2, 3),
        "pixel_values": (2, 3, 16, 16),
        "actions": (2, 2, 3),
        "action_is_pad": (2, 2),
        "noise": (2, 2, 3),
        "timestep": (2,),
        "is_robot": (2,),
        "replaced": (2,),
        "source_id": (2,),
    }
    assert batch["action_is_pad"].tolist() == [[False, True], [False, False]]
    assert batch["timestep"].tolist() == pytest.approx([rows[0]["timestep"], rows[1]["timestep"]])
    assert (batch["replaced"].tolist(), batch["source_id"].tolist()) == ([False, True], [1, 1])
    assert batch["is_robot"].all()


def test_every_camera_of_a_row_is_shown() -> None:
    rows = [FlowRowPreparer(Words(), STATS, draw_noise=draw())(row(CHUNK, pictures=2), "robot/mine", 0)] * 3
    pixels = FlowCollator(Words())(rows)["pixel_values"]
    assert pixels.shape == (6, 3, 16, 16)
    assert np.array_equal(pixels[3].movedim(0, -1).numpy(), np.asarray(noise(1)))
