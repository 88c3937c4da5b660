"""Importing this skips a test file where the simulators cannot run; it comes before anything that loads them."""

import pytest


try:
    from gen_vla.evaluation.simulation.environment import TabletopEnv

    TabletopEnv(64).reset("pick_object", 0)
except Exception as error:  # the extra is not installed, or EGL fails: no library, no device, no permission
    pytest.skip(f"no simulator here: {error}; pip install 'gen-vla[sim]'", allow_module_level=True)
