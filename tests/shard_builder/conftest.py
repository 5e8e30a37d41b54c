"""What holds for the builder's tests."""

import tempfile

import pytest


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory):
    """Builds that are killed leave their temporary files where pytest clears up."""
    folder = str(tmp_path_factory.mktemp("temporary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
