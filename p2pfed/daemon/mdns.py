"""Hints from the local network: where members say they listen (libp2p specification "mDNS").

A hint is never an authority: anybody on the network can send one, so it only adds an address
to try, at which the Noise handshake then asks for the member's key. The library's own mDNS
writes into its address book and lets a neighbour on the network clear the addresses of others;
this one only tells its caller, on the trio thread.
"""

import ipaddress
import queue
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence

import ifaddr
import structlog
import trio
import zeroconf

log = structlog.get_logger(__name__)

SERVICE_TYPE = "_p2p._udp.local."
INSTANCE_NAME_BYTES = 16  # random, as the specification asks for: it must not identify the peer
PORT = 4001  # the record needs one; the real one stands in the addresses
MAX_TEXT_BYTES = 255  # of one string of a TXT record (RFC 1035, section 3.3.14)
MAX_ANNOUNCED_ADDRESSES = 8
MAX_HINTS_PER_SERVICE = 8
PENDING_SERVICES = 64  # seen and not yet looked up; more are forgotten until they speak again
LOOKUP_TIMEOUT_MILLISECONDS = 3000
STOP_TIMEOUT_SECONDS = 3.0
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound
KEY = b"dnsaddr="

Hint = Callable[[str, str], None]


def announceable(listen_addresses: Collection[str]) -> list[str]:
    """The addresses that others on the network can dial: wildcards become this machine's own,
    loopback ones are left out."""
    found: dict[str, None] = {}
    for address in listen_addresses:
        parts = address.split("/")
        if len(parts) < 5 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
            continue
        hosts = _own_hosts(parts[1]) if parts[2] in WILDCARDS else [parts[2]]
        for host in hosts:
            if not ipaddress.ip_address(host).is_loopback:
                found[f"/{parts[1]}/{host}/tcp/{parts[4]}"] = None
    return list(found)[:MAX_ANNOUNCED_ADDRESSES]


def _own_hosts(kind: str) -> Iterator[str]:
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            # ifaddr gives IPv6 addresses with their scope; link-local ones need it to be dialled.
            host = each.ip if isinstance(each.ip, str) else each.ip[0]
            if each.is_IPv4 == (kind == "ip4") and not ipaddress.ip_address(host).is_link_local:
                yield host


def encode_text(peer_id: str, addresses: Sequence[str]) -> bytes:
    """A TXT record with one ``dnsaddr=`` string for each address."""
    strings = [KEY + f"{address}/p2p/{peer_id}".encode() for address in addresses]
    return b"".join(
        bytes([len(string)]) + string for string in strings if len(string) <= MAX_TEXT_BYTES
    )


def decode_text(text: bytes) -> Iterator[tuple[str, str]]:
    """(peer id, address) of each usable string of a TXT record; the rest is passed over."""
    start = 0
    while start < len(text):
        string = text[start + 1 : start + 1 + text[start]]
        start += 1 + text[start]
        if not string.startswith(KEY) or not string.isascii():
            continue
        entry = string[len(KEY) :].decode("ascii")
        if not entry.isprintable():
            continue  # the zone of an address (RFC 4007) may be any text, and addresses are logged
        address, separator, peer_id = entry.partition("/p2p/")
        if separator and peer_id.isalnum() and _is_local(address):
            yield peer_id, address


def _is_local(address: str) -> bool:
    """Whether it is a TCP address of a local network; only such have a business in mDNS."""
    parts = address.split("/")
    if len(parts) != 5 or parts[0] or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        return False
    try:
        host = ipaddress.ip_address(parts[2])
    except ValueError:
        return False
    port = parts[4]
    return (
        host.is_private
        and not host.is_unspecified
        and host.version == int(parts[1][2:])
        and port.isdigit()
        and 0 < int(port) <= 65535
    )


class Mdns:
    """Announces this peer and reports who else is on the local network.

    :param listen_addresses: the multiaddrs this peer listens on, with real ports.
    :param hint: called on the trio thread with a peer id and an address. Nothing about either
        was verified, and it may be any peer's: the caller takes members' only.
    :param interfaces: host addresses to use instead of all but loopback.
    """

    def __init__(
        self,
        peer_id: str,
        listen_addresses: Collection[str],
        hint: Hint,
        *,
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._peer_id = peer_id
        self._hint = hint
        self._interfaces = interfaces
        self._addresses = list(listen_addresses) if interfaces else announceable(listen_addresses)
        self._seen: queue.Queue[str] = queue.Queue(PENDING_SERVICES)
        self._seen_some = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled. Where the network allows no multicast, says so and returns."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            service = await trio.to_thread.run_sync(self._start)
        except (OSError, zeroconf.Error) as error:
            log.warning("no mDNS on this network", reason=str(error))
            task_status.started()
            return
        try:
            task_status.started()
            while True:
                await self._seen_some.wait()
                self._seen_some = trio.Event()
                await self._look_up_seen(service)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(STOP_TIMEOUT_SECONDS):
                await trio.to_thread.run_sync(service.close, abandon_on_cancel=True)

    def _start(self) -> zeroconf.Zeroconf:
        """Open the sockets and announce; takes more than a second."""
        interfaces = self._interfaces or zeroconf.InterfaceChoice.Default
        service = zeroconf.Zeroconf(interfaces=interfaces)
        try:
            if self._addresses:
                name = secrets.token_hex(INSTANCE_NAME_BYTES)
                service.register_service(
                    zeroconf.ServiceInfo(
                        SERVICE_TYPE,
                        f"{name}.{SERVICE_TYPE}",
                        port=PORT,
                        properties=encode_text(self._peer_id, self._addresses),
                        server=f"{name}.local.",
                        parsed_addresses=[each.split("/")[2] for each in self._addresses],
                    )
                )
            zeroconf.ServiceBrowser(service, SERVICE_TYPE, handlers=[self._note])
        except BaseException:
            service.close()
            raise
        return service

    def _note(
        self,
        zeroconf: zeroconf.Zeroconf,  # noqa: ARG002 - called with these names
        service_type: str,  # noqa: ARG002
        name: str,
        state_change: zeroconf.ServiceStateChange,
    ) -> None:
        """Called on a thread of zeroconf's."""
        if state_change.name == "Removed" or self._token is None:
            return
        try:
            self._seen.put_nowait(name)
            self._token.run_sync_soon(self._wake, idempotent=True)
        except (queue.Full, trio.RunFinishedError):
            return

    def _wake(self) -> None:
        self._seen_some.set()

    async def _look_up_seen(self, service: zeroconf.Zeroconf) -> None:
        while not self._seen.empty():
            info = await trio.to_thread.run_sync(
                service.get_service_info,
                SERVICE_TYPE,
                self._seen.get_nowait(),
                LOOKUP_TIMEOUT_MILLISECONDS,
                abandon_on_cancel=True,
            )
            hints = list(decode_text(info.text or b"")) if info is not None else []
            for peer_id, address in hints[:MAX_HINTS_PER_SERVICE]:
                if peer_id != self._peer_id:
                    self._hint(peer_id, address)
