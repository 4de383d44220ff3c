"""Where a stack of processes lives in tests."""

import pytest
from stack_harness import home_folder


@pytest.fixture
def place():
    """A folder for stacks; what runs in it is stopped afterwards."""
    with home_folder() as made:
        yield made
