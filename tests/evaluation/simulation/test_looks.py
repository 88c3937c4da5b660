"""Three sets of looks that share nothing, and textures that are made when they are asked for."""

from dataclasses import replace

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest

from gen_vla.evaluation.simulation import looks
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import COLOURS, EVALUATION_SEEDS, SHAPES
from gen_vla.evaluation.simulation.looks import HOME, Look, broad_look, unseen_look
from gen_vla.evaluation.simulation.textures import PATTERNS, TEXTURE_SIZE, texture_pixels
from gen_vla.evaluation.tabletop.variants import SEEN_VARIANTS, VARIANTS


BROAD = [broad_look(index) for index in range(looks.BROAD_LOOKS)]
UNSEEN = [unseen_look(index) for index in range(looks.UNSEEN_LOOKS)]


def shared_aspects(look: Look, other: Look) -> list[str]:
    """What two looks have in common: `texture`, `shade`, `light`, `camera`; those of `look` that are HOME's apart.

    Cameras are the same within 2 degrees and 3 % of the distance, lights within 0.02.
    """
    textures = {s.texture for s in (look.table, look.room)} - {HOME.table.texture, HOME.room.texture}
    lights = np.abs(np.array(look.lighting) - np.array(other.lighting)).max()
    one, two = look.camera, other.camera
    turned = max(abs(one.azimuth - two.azimuth), abs(one.elevation - two.elevation))
    found = {
        "texture": bool(textures & {other.table.texture, other.room.texture}),
        "shade": look.palette != HOME.palette and bool(set(look.palette) & set(other.palette)),
        "light": look.lighting != HOME.lighting and bool(lights < 0.02),
        "camera": one != HOME.camera and turned < 2.0 and abs(one.distance / two.distance - 1.0) < 0.03,
    }
    return [aspect for aspect, same in found.items() if same]


def test_home_broad_and_unseen_looks_share_no_texture_shade_light_or_camera():
    assert not [
        (look.key, other.key) for look in (*UNSEEN, *VARIANTS) for other in BROAD if shared_aspects(look, other)
    ]
    for look in (*BROAD, *UNSEEN):
        assert shared_aspects(look, HOME) == []
        assert not {look.table.texture, look.room.texture} & {HOME.table.texture, HOME.room.texture}
        assert not set(look.palette) & set(HOME.palette)
    assert not set(looks.STRANGE_COLOURS) & set(COLOURS)
    assert not set(looks.STRANGE_SHAPES) & set(SHAPES)


def test_broad_looks_are_hundreds_and_each_another():
    assert len(set(BROAD)) == len(BROAD) == 400
    assert len({surface.texture for look in BROAD for surface in (look.table, look.room)}) > 500
    assert {name.split()[0] for look in BROAD for name in [look.table.texture]} >= set(looks.BROAD_PATTERNS)


def test_what_two_looks_share_is_found_out():
    seen = broad_look(3)
    for aspect, look in (
        ("texture", replace(HOME, room=seen.table)),
        ("shade", replace(HOME, palette=(seen.palette[0], *HOME.palette[1:]))),
        ("light", replace(HOME, lighting=seen.lighting)),
        ("camera", replace(HOME, camera=replace(seen.camera, azimuth=seen.camera.azimuth + 1.0))),
    ):
        assert shared_aspects(look, seen) == [aspect]


def test_seen_variants_are_broad_ones_and_nothing_of_them_is_at_home():
    assert len(SEEN_VARIANTS) == len(VARIANTS) == 24
    for variant in SEEN_VARIANTS:
        if variant.family != "distractors":
            assert any(shared_aspects(variant, look) for look in BROAD[:4]), variant.key
        assert variant != replace(HOME, family=variant.family, name=variant.name)
        assert not variant.strange


def test_eight_pictures_in_a_row_look_alike():
    assert [looks.look_of("broad", seed) for seed in (0, 7, 8, 3200)] == [BROAD[0], BROAD[0], BROAD[1], BROAD[0]]
    assert looks.look_of("unseen", 8) == UNSEEN[1]
    assert looks.look_of("home", 8) is HOME
    with pytest.raises(ValueError, match=r"got broad look 400, expected 0\.\.399"):
        broad_look(400)


@pytest.mark.parametrize("kind", PATTERNS)
def test_procedural_textures_differ_by_seed(kind):
    first, second = texture_pixels(f"{kind} 1"), texture_pixels(f"{kind} 2")
    assert first.shape == (TEXTURE_SIZE, TEXTURE_SIZE, 3)
    assert np.abs(first.astype(int) - second).mean() > 5


def test_an_unknown_texture_says_what_there_is():
    with pytest.raises(ValueError, match=r"got texture 'gold\.png', expected a file in .*, or a kind and a seed"):
        texture_pixels("gold.png")


def test_environments_that_take_turns_keep_their_looks():
    """They share a camera, and with it the textures that are loaded."""
    first, second = TabletopEnv(48), TabletopEnv(48)
    first.reset("pick_object", EVALUATION_SEEDS[0])
    before = first.render()
    second.reset("pick_object", EVALUATION_SEEDS[0], broad_look(5))
    assert (np.abs(second.render().astype(int) - before) > 8).mean() > 0.3
    np.testing.assert_array_equal(first.render(), before)
