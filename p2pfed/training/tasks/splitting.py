"""Which records are kept from training, to evaluate on."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray


def held_out(strata: Sequence[Hashable], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which of n records are held out, shape (n,): the same share of each stratum.

    At least one record of each stratum stays in training. Depends on the order of the records
    and on ``seed`` alone.

    :param strata: of each record: its class, or what else is to be shared out evenly.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    held = np.zeros(len(strata), np.bool_)
    places: dict[Hashable, list[int]] = {}
    for index, stratum in enumerate(strata):
        places.setdefault(stratum, []).append(index)
    for stratum in sorted(places, key=repr):
        rows = np.asarray(places[stratum])
        count = min(round(rows.size * fraction), rows.size - 1)
        held[generator.permutation(rows)[:count]] = True
    return held
