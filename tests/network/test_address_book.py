"""Where a member is dialled, and in which order."""

import pytest

from p2pfed.daemon.addresses import MAX_HINTS, AddressBook
from p2pfed.errors import AuthenticationError, RemoteProtocolError
from p2pfed.keys import Identity
from p2pfed.protocol import limits
from p2pfed.protocol.certificates import issue_address_record

LISTED = "/dns4/berlin.example/tcp/4001"
SIGNED = "/ip4/192.0.2.1/tcp/4001"
HINTED = "/ip4/10.0.0.1/tcp/4001"
BERLIN = Identity(b"b" * 32, b"B" * 32)
STRANGER = Identity(b"s" * 32, b"S" * 32)


def make_book() -> AddressBook:
    return AddressBook({BERLIN.peer_id: (LISTED,)})


def test_addresses_are_tried_in_order_of_their_authority() -> None:
    book = make_book()
    assert book.learn_hint(BERLIN.peer_id, HINTED)
    assert book.learn_record(issue_address_record(BERLIN, 1, (SIGNED, LISTED))) == BERLIN.peer_id
    assert book.addresses(BERLIN.peer_id) == (LISTED, SIGNED, HINTED)


def test_the_address_that_worked_last_comes_first() -> None:
    book = make_book()
    book.learn_hint(BERLIN.peer_id, HINTED)
    book.worked(BERLIN.peer_id, HINTED)
    assert book.addresses(BERLIN.peer_id) == (HINTED, LISTED)


def test_only_a_newer_record_is_news() -> None:
    book = make_book()
    second = issue_address_record(BERLIN, 2, (SIGNED,))
    assert book.learn_record(second) == BERLIN.peer_id
    assert book.learn_record(second) is None
    assert book.learn_record(issue_address_record(BERLIN, 1, (HINTED,))) is None
    assert book.addresses(BERLIN.peer_id) == (LISTED, SIGNED)
    third = issue_address_record(BERLIN, 3, (HINTED,))
    assert book.learn_record(third) == BERLIN.peer_id
    assert book.addresses(BERLIN.peer_id) == (LISTED, HINTED)
    assert book.records() == [third]


def test_nothing_is_learnt_of_one_who_is_no_member() -> None:
    book = make_book()
    assert book.learn_record(issue_address_record(STRANGER, 1, (SIGNED,))) is None
    assert not book.learn_hint(STRANGER.peer_id, HINTED)
    assert book.addresses(STRANGER.peer_id) == ()
    assert book.records() == []


def test_a_record_with_a_broken_signature_is_refused() -> None:
    record = bytearray(issue_address_record(BERLIN, 1, (SIGNED,)))
    record[-1] ^= 1
    with pytest.raises(AuthenticationError):
        make_book().learn_record(bytes(record))


def test_garbage_in_place_of_a_record_is_refused() -> None:
    for garbage in (b"", b"\xc0", b"\x92\xc4\x01a\xc4\x01b", b"x" * (limits.MAX_RECORD_BYTES + 1)):
        with pytest.raises(RemoteProtocolError):
            make_book().learn_record(garbage)


def test_hints_are_bounded_and_the_newest_are_kept() -> None:
    book = make_book()
    hints = [f"/ip4/10.0.0.{number}/tcp/4001" for number in range(100)]
    for hint in hints:
        assert book.learn_hint(BERLIN.peer_id, hint)
    assert book.addresses(BERLIN.peer_id) == (LISTED, *reversed(hints[-MAX_HINTS:]))
    assert not book.learn_hint(BERLIN.peer_id, hints[-1])


def test_all_sources_together_are_bounded() -> None:
    many = tuple(f"/ip4/192.0.2.{number}/tcp/1" for number in range(limits.MAX_ADDRESSES))
    listed = tuple(f"/ip4/198.51.100.{number}/tcp/1" for number in range(100))
    book = AddressBook({BERLIN.peer_id: listed})
    book.learn_record(issue_address_record(BERLIN, 1, many))
    assert len(book.addresses(BERLIN.peer_id)) == 2 * limits.MAX_ADDRESSES


def test_a_member_who_left_the_topology_file_is_forgotten() -> None:
    book = make_book()
    book.learn_record(issue_address_record(BERLIN, 1, (SIGNED,)))
    book.learn_hint(BERLIN.peer_id, HINTED)
    book.worked(BERLIN.peer_id, HINTED)
    book.set_listed({})
    assert book.addresses(BERLIN.peer_id) == ()
    assert book.records() == []
    book.set_listed({BERLIN.peer_id: (LISTED,)})
    assert book.addresses(BERLIN.peer_id) == (LISTED,)
