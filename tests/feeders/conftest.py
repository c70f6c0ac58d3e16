"""The shipped feeders, each loaded once."""

import pytest

import gridjax


@pytest.fixture(
    scope="session", params=[name for name in gridjax.feeders.NAMES if name != "baran_wu33"]
)  # test_baran_wu33.py
def shipped(request):
    """A shipped feeder, by its own loader."""
    return getattr(gridjax.feeders, request.param)()
