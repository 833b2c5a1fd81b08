"""Hints from the local network: what is announced, what is believed, and who hears it."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from transport_doubles import GUARD_SECONDS, identity

from p2pfed.daemon import mdns
from p2pfed.daemon.mdns import Mdns, announceable, decode_text, encode_text

PEER_ID = identity(1).peer_id


def record(*strings: bytes) -> bytes:
    return b"".join(bytes([len(string)]) + string for string in strings)


def test_loopback_is_not_announced_and_a_wildcard_becomes_real_addresses() -> None:
    assert announceable(["/ip4/127.0.0.1/tcp/7400", "/ip6/::1/tcp/7400"]) == []
    assert announceable(["/ip4/10.1.2.3/tcp/7400"]) == ["/ip4/10.1.2.3/tcp/7400"]
    for address in announceable(["/ip4/0.0.0.0/tcp/7400"]):
        assert address.endswith("/tcp/7400")
        assert not address.startswith(("/ip4/0.", "/ip4/127."))


def test_what_is_announced_is_what_is_understood() -> None:
    addresses = ["/ip4/10.1.2.3/tcp/7400", "/ip6/fd00::2/tcp/7401"]
    text = encode_text(PEER_ID, addresses)
    assert list(decode_text(text)) == [(PEER_ID, address) for address in addresses]


@pytest.mark.parametrize(
    "string",
    [
        b"dnsaddr=/ip4/8.8.8.8/tcp/443/p2p/12D3Koo",
        b"dnsaddr=/dns4/evil.example/tcp/443/p2p/12D3Koo",
        b"dnsaddr=/ip4/0.0.0.0/tcp/443/p2p/12D3Koo",
        b"dnsaddr=/ip4/10.0.0.1/udp/443/quic-v1/p2p/12D3Koo",
        b"dnsaddr=/ip4/10.0.0.1/tcp/70000/p2p/12D3Koo",
        b"dnsaddr=/ip4/10.0.0.1/tcp/443",
        b"dnsaddr=/ip4/fd00::2/tcp/443/p2p/12D3Koo",
        b"dnsaddr=/ip4/10.0.0.1/tcp/443/p2p/../etc",
        b"dnsaddr=/ip6/fe80::1%\x1b[2J\n/tcp/7400/p2p/12D3Koo",  # a zone is any text
        b"\xff\xfe",
        b"",
    ],
)
def test_a_hint_that_has_no_business_on_a_local_network_is_passed_over(string: bytes) -> None:
    good = f"dnsaddr=/ip4/10.0.0.1/tcp/7400/p2p/{PEER_ID}".encode()
    assert list(decode_text(record(string, good))) == [(PEER_ID, "/ip4/10.0.0.1/tcp/7400")]


@given(st.binary(max_size=600))
def test_no_record_breaks_the_reader(text: bytes) -> None:
    for peer_id, address in decode_text(text):
        assert peer_id.isalnum()
        assert address.startswith(("/ip4/", "/ip6/"))


async def test_two_peers_on_one_network_hear_of_each_other_and_not_of_themselves() -> None:
    first, second = identity(1).peer_id, identity(2).peer_id
    heard: dict[str, list[tuple[str, str]]] = {first: [], second: []}
    complete = trio.Event()

    def listen(own: str, peer_id: str, address: str) -> None:
        heard[own].append((peer_id, address))
        wanted = {(first, "/ip4/127.0.0.1/tcp/7401"), (second, "/ip4/127.0.0.1/tcp/7402")}
        if {pair for pairs in heard.values() for pair in pairs} >= wanted:
            complete.set()

    with trio.fail_after(GUARD_SECONDS):
        async with trio.open_nursery() as nursery:
            for own, port in ((first, 7401), (second, 7402)):
                peer = Mdns(
                    own,
                    [f"/ip4/127.0.0.1/tcp/{port}"],
                    lambda peer_id, address, own=own: listen(own, peer_id, address),
                    interfaces=["127.0.0.1"],
                )
                nursery.start_soon(peer.run)
            await complete.wait()
            nursery.cancel_scope.cancel()
    assert first not in {peer_id for peer_id, _ in heard[first]}
    assert second not in {peer_id for peer_id, _ in heard[second]}


async def test_a_network_without_multicast_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError("no such device")

    monkeypatch.setattr(mdns.zeroconf, "Zeroconf", refuse)
    with trio.fail_after(GUARD_SECONDS):
        await Mdns(PEER_ID, ["/ip4/10.0.0.1/tcp/7400"], lambda _peer, _address: None).run()


async def test_a_flood_of_services_is_bounded_and_wakes_the_loop_once() -> None:
    peer = Mdns(PEER_ID, [], lambda _peer, _address: None)
    peer._token = trio.lowlevel.current_trio_token()
    added = mdns.zeroconf.ServiceStateChange.Added

    def flood() -> None:
        for number in range(10 * mdns.PENDING_SERVICES):
            peer._note(None, mdns.SERVICE_TYPE, f"{number}.{mdns.SERVICE_TYPE}", added)

    await trio.to_thread.run_sync(flood)
    assert peer._seen.qsize() == mdns.PENDING_SERVICES
    await peer._seen_some.wait()
