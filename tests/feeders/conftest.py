"""The shipped feeders, each loaded once."""

import pytest

import gridjax


@pytest.fixture(scope="session", params=gridjax.feeders.NAMES)
def shipped(request):
    """A shipped feeder, by its own loader."""
    return getattr(gridjax.feeders, request.param)()
