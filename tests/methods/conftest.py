"""What the tests of methods share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def one_thread():
    """A second thread costs nets as small as these more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
