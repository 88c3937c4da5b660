"""What config.json says of actions that a flow makes."""

from typing import Any

import pytest

from gen_vla.processors import make_flow_action_config


def test_the_action_format() -> None:
    assert make_flow_action_config(7, 4, [6]) == {
        "representation": "flow",
        "action_dim": 7,
        "horizon": 4,
        "binary_dims": [6],
        "lead_in": "",
        "lead_in_ids": [],
    }
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"action_dim": 0}, "got action_dim=0"),
        ({"horizon": 1.5}, "got horizon=1.5"),
        ({"binary_dims": [7]}, r"got binary_dims=\[7\], expected dimensions from 0 to 6"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            make_flow_action_config(**settings)
