"""Small tensors: one thread is faster, and sums are added up in one order."""

import pytest


@pytest.fixture(autouse=True)
def small_tensors(one_thread):
    """All tests of this folder."""
