"""SimplerEnv's environments as the published scripts build them, and what a policy sees in them.

The real package is `mani_skill2_real2sim`. It is not on PyPI and needs Vulkan, Python 3.10 or 3.11 and numpy below 2:

    git clone https://github.com/simpler-env/SimplerEnv --recurse-submodules
    pip install "numpy<2" -e SimplerEnv/ManiSkill2_real2sim
    gen-vla evaluate simpler --policy expert --robot widowx --episodes 2 --output check    # does it work?

Ray tracing needs an NVIDIA card. Without a graphics card, Mesa's llvmpipe draws with `--shader ibl`; SAPIEN 2.2.2 asks
for the device extension VK_KHR_external_semaphore_fd, which Mesa 25.0 lacks and a small Vulkan layer can hide.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gen_vla.evaluation.simpler.policy import Robot
from gen_vla.evaluation.simpler.trials import Trial


CONTROLLERS = {
    "google_robot": {
        "control_mode": "arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target_delta_pos_"
        "interpolate_by_planner",
        "control_freq": 3,
        "sim_freq": 513,
    },
    "widowx": {
        "control_mode": "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos",
        "control_freq": 5,
        "sim_freq": 500,
    },
}
CAMERAS = {"google_robot": "overhead_camera", "widowx": "3rd_view_camera"}
# What the simulator calls the room, and the invisible plane under the basket.
BACKGROUND_ACTORS = ("ground", "goal_site", "", "arena", "dummy_sink_target_plane")


class SimplerMissingError(OSError):
    """The simulator is not installed."""


def robot_family(robot: str) -> Robot:
    return "widowx" if "widowx" in robot else "google_robot"


def find_assets() -> Path:
    """The package's folder of assets; importing it registers its environments. Raises `SimplerMissingError` with what
    to install."""
    try:
        import mani_skill2_real2sim.envs  # type: ignore[import-not-found]  # noqa: F401
        from mani_skill2_real2sim import ASSET_DIR  # type: ignore[import-not-found]
    except ImportError as error:
        raise SimplerMissingError(
            f"SimplerEnv cannot be imported ({error}); it is not on PyPI. In an environment with Python 3.10 or 3.11: "
            "git clone https://github.com/simpler-env/SimplerEnv --recurse-submodules && "
            'pip install "numpy<2" -e SimplerEnv/ManiSkill2_real2sim. It draws with Vulkan: apt-get install '
            "libvulkan1, and a graphics card's driver or mesa-vulkan-drivers"
        ) from error
    return Path(ASSET_DIR)


def make_environment(trial: Trial, assets: Path, shader: str | None = None) -> Any:
    """A new environment for one trial, its first reset still to come; `shader` replaces the published choice, `rt`
    (ray tracing) for drawers and `ibl` for everything else. Raises `FileNotFoundError` for a missing photograph or
    scene."""
    import gymnasium

    family = robot_family(trial.robot)
    arguments: dict[str, Any] = {
        "obs_mode": "rgbd",
        "robot": trial.robot,
        "scene_name": trial.scene,
        "max_episode_steps": trial.steps,
        "camera_cfgs": {"add_segmentation": True},
        **CONTROLLERS[family],
        **trial.build,
    }
    if shader is not None:
        arguments["shader_dir"] = shader
    if trial.overlay is not None:
        arguments["rgb_overlay_path"] = str(assets / "real_inpainting" / trial.overlay)
        arguments["rgb_overlay_cameras"] = [CAMERAS[family]]
    check_assets(trial, assets)
    return gymnasium.make(trial.environment, **arguments)


def check_assets(trial: Trial, assets: Path) -> None:
    wanted = [] if trial.overlay is None else [assets / "real_inpainting" / trial.overlay]
    if "dummy" not in trial.scene:
        wanted.append(assets / "hab2_bench_assets" / "stages" / f"{trial.scene}.glb")
    for path in wanted:
        if not path.is_file():
            raise FileNotFoundError(
                f"{trial.task}, {trial.variant}: got no {path}, expected it among SimplerEnv's assets; clone "
                "ManiSkill2_real2sim whole, or set MS2_REAL2SIM_ASSET_DIR to its folder `data`"
            )


def reset_options(trial: Trial) -> dict[str, Any]:
    x, y, angle = trial.place
    start = {key: np.array(value) if isinstance(value, tuple) else value for key, value in trial.start.items()}
    # A turn by the angle, then the half turn by which these robots face the table: (w, x, y, z).
    facing = np.array([-np.sin(angle / 2), 0.0, 0.0, np.cos(angle / 2)])
    return {
        "robot_init_options": {"init_xy": np.array([x, y]), "init_rot_quat": facing},
        "obj_init_options": start,
    }


def camera_image(environment: Any, observation: dict[str, Any], robot: str, masked: bool = False) -> np.ndarray:
    """What the policy's camera shows, uint8 [H, W, 3]; `masked` leaves only robot and objects, the rest is black."""
    pictures = observation["image"][CAMERAS[robot_family(robot)]]
    image = pictures["rgb"]
    if not masked:
        return image
    simulator, actors = environment.unwrapped, pictures["Segmentation"][..., 1]  # channel 0 is the mesh
    shown = [link.id for articulation in simulator.get_articulations() for link in articulation.get_links()]
    shown += [link.id for link in simulator.agent.robot.get_links()]
    shown += [actor.id for actor in simulator.get_actors() if actor.name not in BACKGROUND_ACTORS]
    return np.where(np.isin(actors, shown)[..., None], image, 0).astype(np.uint8)
