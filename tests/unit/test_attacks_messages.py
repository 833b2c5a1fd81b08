"""Attacks on messages: who is offered what."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from p2pfed.attacks import ATTACKS, MessageAttack, Offer
from p2pfed.attacks.messages import Equivocation, Replay, StaleFlood

MESSAGE_ATTACKS = [attack for attack in ATTACKS.values() if issubclass(attack, MessageAttack)]
SITES = ("Basel", "Bern", "Genf")


def signed_since(first: int, versions: int = 1) -> Callable[[int], Sequence[str]]:
    def signed(round_number: int) -> Sequence[str]:
        if round_number < first:
            return ()
        return [f"{round_number}{'ab'[version]}" for version in range(versions)]

    return signed


def test_an_equivocator_shows_each_version_to_about_half() -> None:
    attack = Equivocation()
    assert attack.versions == 2
    assert attack.offers(4, SITES, signed_since(1, versions=2)) == [
        Offer("Basel", "4a"),
        Offer("Bern", "4b"),
        Offer("Genf", "4a"),
    ]


def test_a_replay_follows_the_new_envelope_with_an_old_one() -> None:
    assert Replay(age=2).offers(5, SITES[:2], signed_since(1)) == [
        Offer("Basel", "5a"),
        Offer("Basel", "3a"),
        Offer("Bern", "5a"),
        Offer("Bern", "3a"),
    ]


def test_a_replay_has_nothing_old_to_offer_at_first() -> None:
    assert Replay(age=3).offers(2, SITES[:1], signed_since(1)) == [Offer("Basel", "2a")]


def test_a_flood_offers_the_old_envelopes_in_turn() -> None:
    offers = StaleFlood(copies=7, depth=3).offers(9, SITES, signed_since(1))
    assert [offer.envelope for offer in offers if offer.recipient == "Bern"] == [
        *("9a", "8a", "7a", "6a", "8a", "7a", "6a", "8a")
    ]
    assert Counter(offer.recipient for offer in offers) == dict.fromkeys(SITES, 8)


def test_a_flood_begins_when_there_is_something_old() -> None:
    assert StaleFlood().offers(1, SITES[:1], signed_since(1)) == [Offer("Basel", "1a")]


@pytest.mark.parametrize("attack", MESSAGE_ATTACKS, ids=lambda attack: attack.name)
def test_a_site_that_published_nothing_offers_nothing(attack: type[MessageAttack]) -> None:
    assert attack().offers(3, SITES, signed_since(10)) == []
