"""A browser without a window; tests that ask for it skip where there is none."""

import pytest
from space_browser import CHROMIUM, chromium


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright.sync_api", reason="no playwright; pip install 'gen-vla[dev]'")
    if not CHROMIUM:
        pytest.skip("no chromium; `make browser` installs Debian's, or CHROMIUM names another")
    with chromium() as started:
        yield started
