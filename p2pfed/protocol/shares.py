"""How much of an edge's mixing weight counts in a round; the rest returns to the site itself.

Both ends take the same share of the same two published models, so that what one gives up the
other gives up as well, and the mean over the sites is kept.
"""


def staleness_share(rounds_apart: int) -> float:
    """1 / (1 + s), for two models that are s rounds apart, whichever is the older.

    Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, section 5 (polynomial
    weighting with a = 1), there for the older model alone.
    """
    return 1.0 / (1 + abs(rounds_apart))
