"""Simulated scenes. What MuJoCo and OpenMP read when they load is set here, before a file of the folder loads them."""

import os
import sys


# A spinning OpenMP thread of one process starves the other; software rendering with one thread per process is what
# scales over processes.
if sys.platform == "linux" and "MUJOCO_GL" not in os.environ:
    if "mujoco" in sys.modules:
        raise ImportError(
            "got mujoco imported before, with a window for its backend, expected to choose EGL first; "
            "import gen_vla.evaluation.simulation first, or export MUJOCO_GL=egl"
        )
    os.environ["MUJOCO_GL"] = "egl"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("LP_NUM_THREADS", "1")
