"""What `gen-vla train --list` shows."""

from rich.console import Console

from gen_vla.training.recipes.loading import load_recipe, recipe_names
from gen_vla.training.recipes.table import data, marks, recipes_table, size


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
        "mini_vlm": ("···", "·", "scenes", "mini"),
        "smol_openvla_plus": ("●●●", "tabletop", "scenes", "137M"),
    }
    for name, row in expected.items():
        recipe = load_recipe(name)
        assert ("".join(marks(recipe)), *data(recipe), size(recipe)) == row, name


def test_every_recipe_has_a_line_that_fits_a_wide_screen() -> None:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(recipes_table())
    lines = captured.get().splitlines()
    for name in recipe_names():
        assert len([line for line in lines if f" {name} " in line]) == 1
