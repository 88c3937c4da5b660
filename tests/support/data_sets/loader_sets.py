"""Writes real robot video as RLDS and LeRobot data sets of Bridge's picture size, for `gen-vla evaluate loader`.

    PYTHONPATH=tests python tests/support/data_sets/loader_sets.py ../shared/data/real2sim_video FOLDER
    gen-vla evaluate loader FOLDER/bridge_orig FOLDER/lerobot_v2.1 FOLDER/lerobot_v3.0

The actions are made up. lerobot's own encoder settings: AV1 (v3.0) or H.264 (v2.1), a key frame every two frames.
"""

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image
from rlds_data_sets import write_rlds
from robot_data_sets import Episode, write_lerobot


SIZE = 256  # pixels a side, as Bridge has them


def real_episodes(folder: Path) -> list[Episode]:
    """Every video of a folder as an episode."""
    random = np.random.default_rng(0)
    episodes = []
    for path in sorted(folder.glob("*.mp4")):
        with av.open(str(path)) as container:
            frames = [
                frame.to_image().resize((SIZE, SIZE), Image.Resampling.LANCZOS) for frame in container.decode(video=0)
            ]
        pictures = np.stack([np.asarray(frame) for frame in frames])
        numbers = random.normal(0, 0.1, (2, len(frames), 7)).astype(np.float32)
        episodes.append(Episode("move the can", numbers[0], numbers[1], {"image_0": pictures}))
    return episodes


def main() -> None:
    """Writes three data sets."""
    videos, output = Path(sys.argv[1]), Path(sys.argv[2])
    episodes = real_episodes(videos)
    write_rlds(output, episodes, shards=2)
    write_lerobot(output / "lerobot_v2.1", episodes, "v2.1")
    write_lerobot(output / "lerobot_v3.0", episodes, "v3.0", codec="libsvtav1")
    print(f"{len(episodes)} episodes, {sum(len(e.actions) for e in episodes)} steps, in {output}")


if __name__ == "__main__":
    main()
