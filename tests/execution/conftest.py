"""What tests of paused forwards share."""

import pytest

from tests.execution.toy import Toy


@pytest.fixture
def toy():
    return Toy()
