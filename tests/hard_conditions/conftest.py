"""Shared by the tests of hard conditions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conditions import DEADLINE_SECONDS
from federation import Federation


@pytest.fixture
def three(short_tmp: Path) -> Iterator[Federation]:
    with Federation(
        short_tmp, ["alpha", "beta", "gamma"], round={"deadline_seconds": DEADLINE_SECONDS}
    ) as federation:
        yield federation
