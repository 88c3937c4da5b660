"""Controls: what each does with the moments it is given."""

import numpy as np
import pytest


try:
    from gen_vla.evaluation.policies import rollout as policies
    from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, other_instruction, sample_layout
except Exception as error:  # the extra is not installed
    pytest.skip(f"no simulator here: {error}; pip install 'gen-vla[sim]'", allow_module_level=True)


def moment(seed: int, step: int) -> policies.Moment:
    return policies.Moment("pick_object", seed, step, np.zeros(4), np.full(7, 1.0), np.full(7, 2.0), np.full(7, 3.0))


def test_experts_answer_with_what_the_moment_carries():
    moments = [moment(1, 0), moment(2, 0)]
    np.testing.assert_array_equal(policies.CONTROLS["expert"]([], [], moments), np.ones((2, 7)))
    np.testing.assert_array_equal(policies.CONTROLS["blind"]([], [], moments), np.full((2, 7), 2.0))
    np.testing.assert_array_equal(policies.CONTROLS["deaf"]([], [], moments), np.full((2, 7), 3.0))
    np.testing.assert_array_equal(policies.CONTROLS["zero"]([], [], moments), np.zeros((2, 7)))


def test_random_actions_depend_on_seed_and_step_and_not_on_the_batch():
    together = policies.random_policy([], [], [moment(1, 0), moment(2, 0), moment(1, 1)])
    np.testing.assert_array_equal(together[1], policies.random_policy([], [], [moment(2, 0)])[0])
    assert len({tuple(action) for action in together}) == 3
    assert np.abs(together[:, :3]).max() <= 0.05
    np.testing.assert_array_equal(together[:, 3:6], 0.0)


def test_a_helped_policy_acts_in_part_as_the_expert_does():
    own = [np.zeros(7), None]
    moments = [moment(1, 0), moment(2, 0)]
    for name, dims in (("expert_xy", [0, 1]), ("expert_z", [2]), ("expert_gripper", [6])):
        action, missing = policies.ALTERED[name](lambda *_: own)([], [], moments)
        assert action is not None
        assert (np.flatnonzero(action).tolist(), missing) == (dims, None)
    assert not own[0].any()  # the model's own action is left as it was


def test_a_hindered_policy_sees_or_hears_something_else():
    heard = []

    def policy(images, instructions, moments):
        heard.append((images[0].mean(), *instructions))
        return np.zeros((len(moments), 7))

    seed = EVALUATION_SEEDS[0]
    layout, other = sample_layout(seed), sample_layout(seed).objects[1 - sample_layout(seed).source]
    images, told = [np.zeros((4, 4, 3), np.uint8)], [f"pick up the {layout.objects[layout.source].name}"]
    for name in ("blank", "swapped", "nonsense"):
        policies.ALTERED[name](policy)(images, told, [moment(seed, 0)])
    assert heard == [(128, *told), (0, f"pick up the {other.name}"), (0, policies.NONSENSE)]
    assert [other_instruction(f"{verb}_drawer", seed) for verb in ("open", "close")] == [
        "close the drawer",
        "open the drawer",
    ]
