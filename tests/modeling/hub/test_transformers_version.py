"""Old versions of transformers are refused in words, as soon as a repository's code is read."""

import pytest
import transformers

from gen_vla.processors.transformers_version import check_transformers


@pytest.mark.parametrize("version", [transformers.__version__, "4.57.0", "4.57.6", "4.60.0.dev0", "5.0.0rc1", "10.1"])
def test_versions_that_do(version: str) -> None:
    check_transformers(version=version)


@pytest.mark.parametrize("version", ["4.40.1", "4.56.2", "4.56.0.dev0", "3.5.1"])
def test_versions_that_do_not(version: str) -> None:
    message = rf"got transformers {version}, expected 4\.57 or newer for this model: pip install 'transformers>=4\.57'"
    with pytest.raises(ImportError, match=message):
        check_transformers(version=version)
