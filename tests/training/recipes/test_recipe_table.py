"""What `gen-vla train --list` shows."""

from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.table import data, marks, size


def test_d_s_c_data_and_size_of_some_rows() -> None:
    expected = {
        "openvla_rt1": ("···", "fractal20220817_data", "·", "7.5B"),
        "openvla_rt1_ds": ("●●·", "fractal20220817_data", "·", "7.5B"),
        "openvla_bridge_c": ("··●", "bridge_orig", "llava, vqasynth, onevision, robopoint", "7.5B"),
        "openvla_bridge_inst_aug": ("···", "bridge_orig, paraphrased", "·", "7.5B"),
        "pi0_plus_bridge": ("●●●", "bridge_orig", "llava, vqasynth, onevision, robopoint", "3.3B"),
        "pi0_rt1": ("···", "fractal20220817_data, paraphrased", "·", "3.2B"),
        "pi0_rt1_sc": ("·●●", "fractal20220817_data", "llava, vqasynth, onevision, robopoint", "2.9B"),
        "openvla_plus_rt1_only_llava": ("●●●", "fractal20220817_data", "llava", "7.5B"),
        "mini_vlm": ("···", "·", "scenes, attributes, relations, gripper", "mini"),
        "smol_openvla_plus": ("●●●", "tabletop", "scenes", "137M"),
    }
    for name, row in expected.items():
        recipe = load_recipe(name)
        assert ("".join(marks(recipe)), *data(recipe), size(recipe)) == row, name
