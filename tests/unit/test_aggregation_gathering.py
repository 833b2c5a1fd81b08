"""What donors' models come to."""

import numpy as np
import pytest

from p2pfed.aggregation import gather
from p2pfed.errors import AggregationError


def models(*rows: float) -> dict[str, np.ndarray]:
    return {f"s{place}": np.full(5, row, np.float32) for place, row in enumerate(rows)}


def test_no_minority_moves_the_model_beyond_the_others() -> None:
    out = np.empty(5, np.float32)
    outcome = gather(models(1.0, 3e38, 2.0, -3e38, 1.5), out)
    assert out.tolist() == [1.5] * 5
    assert outcome.weights == dict.fromkeys(("s0", "s1", "s2", "s3", "s4"), 1 / 5)


def test_donors_whose_models_are_not_finite_are_refused_as_an_error() -> None:
    with pytest.raises(AggregationError):
        gather(models(1.0, np.nan, 2.0), np.empty(5, np.float32))
