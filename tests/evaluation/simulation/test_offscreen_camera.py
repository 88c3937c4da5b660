"""The camera's geometry, and that ornaments are drawn where they are said to be."""

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest

from gen_vla.evaluation.simulation.offscreen_camera import FIRST_ORNAMENT, CameraPose, Ornament, mujoco, thread_camera


MODEL = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/></worldbody></mujoco>")
CAMERA = thread_camera("empty", lambda: MODEL)
LEVEL = CameraPose(lookat=(0.0, 0.0, 0.0), distance=1.0, azimuth=90.0, elevation=0.0, fovy=90.0)  # looks along +y


@pytest.mark.parametrize(
    ("point", "place"),
    [((0, 0, 0), (0.5, 0.5)), ((0.5, 0, 0), (0.75, 0.5)), ((0, 0, 0.5), (0.5, 0.25)), ((1, 1, 0), (0.75, 0.5))],
)
def test_points_land_where_a_pinhole_camera_puts_them(point, place):
    assert LEVEL.image_position(np.array(point, dtype=float)) == pytest.approx(place)


@pytest.mark.parametrize("height", [0.0, 0.04])
def test_a_place_in_the_picture_is_found_again_on_its_plane(height):
    camera = CameraPose(lookat=(0.1, 0.7, 0.05), distance=0.8, azimuth=118.0, elevation=-42.0)
    for x, y in ((0.0, 0.6), (-0.2, 0.7), (0.15, 0.75)):
        place = np.array(camera.image_position(np.array([x, y, height])))
        np.testing.assert_allclose(camera.on_plane(place, height), [x, y], atol=1e-12)


def test_an_ornament_covers_its_place_in_picture_and_segmentation():
    data = mujoco.MjData(MODEL)
    mujoco.mj_forward(MODEL, data)
    ball = Ornament("sphere", (0.1, 0.1, 0.1), (0.5, 0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    segments = CAMERA.segments(MODEL, data, LEVEL, 64, [ball])
    rows, columns = np.nonzero(segments == FIRST_ORNAMENT)
    assert (columns.mean(), rows.mean()) == pytest.approx((48, 32), abs=1.0)
    assert set(np.unique(segments)) == {-1, FIRST_ORNAMENT}
    picture = CAMERA.picture(MODEL, data, LEVEL, 64, [ball])
    assert picture.shape == (64, 64, 3)
    assert picture[32, 48, 0] > 2 * picture[32, 48, 1]
