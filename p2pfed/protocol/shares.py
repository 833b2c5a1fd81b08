"""How much of a neighbour's mixing weight counts; the rest returns to the site itself."""

from p2pfed.protocol.limits import RAMP_ROUNDS


def staleness_share(rounds_apart: int) -> float:
    """1 / (1 + s), for two models that are s rounds apart, whichever is the older: what one end of
    an edge gives up the other gives up as well, and the mean over the sites is kept.

    Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, section 5 (polynomial
    weighting with a = 1), there for the older model alone.
    """
    return 1.0 / (1 + abs(rounds_apart))


def ramp_share(round_number: int, since_round: int) -> float:
    """(r - s + 1) / RAMP_ROUNDS up to 1, for a neighbour that joined in round s; 1 for a founder.

    Only what it gives to others counts for less: what it takes from them keeps it near.
    """
    if since_round == 0:
        return 1.0
    return min(1.0, max(1, round_number - since_round + 1) / RAMP_ROUNDS)
