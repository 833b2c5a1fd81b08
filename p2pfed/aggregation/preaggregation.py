"""What can be done to the models before a rule sees them. Nothing is written: each gives rows
that are mixtures."""

import hashlib

import numpy as np

from p2pfed.aggregation.rows import Rows
from p2pfed.aggregation.streaming import StreamedModels, Wide
from p2pfed.errors import AggregationError
from p2pfed.rules_catalogue import BUCKET_SITES

SEED_BYTES = 32
SEED_DOMAIN = b"p2pfed/1 bucketing\x00"


def _weights(models: StreamedModels) -> Wide:
    return np.array([neighbour.weight for neighbour in models.neighbours])


def none(models: StreamedModels, byzantine: int, seed: bytes | None) -> Rows:  # noqa: ARG001
    """The models themselves."""
    return Rows(models, None, _weights(models))


def nearest_neighbour_mixing(
    models: StreamedModels,
    byzantine: int,
    seed: bytes | None,  # noqa: ARG001
) -> Rows:
    """Each model becomes the mean of the k + 1 - b nearest to it, itself among them (NNM;
    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, AISTATS 2023).

    :raises AggregationError: a model is not finite.
    """
    squares = models.pairwise_squares()
    count = len(squares)
    kept = count - min(byzantine, (count - 1) // 2)
    # A model equal to another would else lose its place to it, which changes nothing but names.
    order = np.argsort(squares - np.eye(count), axis=1, kind="stable")[:, :kept]
    mixing = np.zeros((count, count))
    np.put_along_axis(mixing, order, 1.0 / kept, axis=1)
    return Rows(models, mixing, _weights(models))


def round_seed(federation: str, round_number: int) -> bytes:
    """The seed of a round's groups, ``SEED_BYTES`` long: the same at every site."""
    text = f"{federation}\x00{round_number}".encode()
    return hashlib.blake2b(SEED_DOMAIN + text, digest_size=SEED_BYTES).digest()


def bucketing(models: StreamedModels, byzantine: int, seed: bytes | None) -> Rows:  # noqa: ARG001
    """Neighbours in an order drawn from ``seed``, ``BUCKET_SITES`` at a time; each group becomes
    its mean (Karimireddy, He, Jaggi, ICLR 2022).

    The own model stays a row of its own: it is the one that the peer trusts, and what several
    rules measure from. Within a group neighbours count by their mixing weights, and the group
    has the sum of them, so that the mean is the same with and without groups.

    :raises AggregationError: there is no seed.
    """
    if not seed:
        raise AggregationError("bucketing needs the round's seed")
    key = hashlib.blake2b(seed).digest()  # a seed may be longer than a key

    def drawn(index: int) -> bytes:
        return hashlib.blake2b(models.names[index].encode(), key=key).digest()

    order = sorted(range(len(models.names)), key=drawn)
    groups = [order[i : i + BUCKET_SITES] for i in range(0, len(order), BUCKET_SITES)]
    single = _weights(models)
    mixing = np.zeros((len(groups) + 1, len(order) + 1))
    mixing[0, 0] = 1.0
    for row, group in enumerate(groups, start=1):
        mixing[row, [index + 1 for index in group]] = single[group] / single[group].sum()
    return Rows(models, mixing, np.array([single[group].sum() for group in groups]))
