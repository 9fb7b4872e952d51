"""What tests of plans share."""

import pytest
from torch import nn

from tests.families import build


@pytest.fixture(scope="module")
def llava() -> nn.Module:
    return build("llava")[0]
