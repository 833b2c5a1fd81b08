"""A little network of network namespaces: one for each site, joined by a bridge in another.

What netem and a firewall do elsewhere is done here with what the kernel and iproute2 always have:
classic BPF programs on the ingress of a site's interface (tc-bpf(8), direct action) and a token
bucket (tc-tbf(8)). A dropped packet leaves no trace: neither reset nor ICMP message.
"""

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest
from conditions import start
from federation import Federation, Hospital

SUBNET = "10.77.0"
INTERFACE = "site0"
PASS, DROP = 0xFFFFFFFF, 2  # TC_ACT_UNSPEC and TC_ACT_SHOT of linux/pkt_cls.h
RANDOM = 0xFFFFF038  # SKF_AD_OFF + SKF_AD_RANDOM of linux/filter.h: a load from here is random

# Opcodes of classic BPF (linux/filter.h): loads, jumps, return.
LOAD_WORD, LOAD_HALF, LOAD_BYTE = 0x20, 0x28, 0x30
LOAD_IP_HEADER_LENGTH, LOAD_BYTE_BEHIND_IT = 0xB1, 0x50
JUMP_EQUAL, JUMP_GREATER, AND, RETURN = 0x15, 0x25, 0x54, 0x06

# Offsets in an Ethernet frame that carries IPv4.
ETHERTYPE, PROTOCOL, SOURCE, IP_HEADER, TCP_FLAGS_IN_SEGMENT = 12, 23, 26, 14, 13
IPV4, TCP, SYN, ACK = 0x0800, 6, 0x02, 0x10

Instruction = tuple[int, int, int, int]


def random_loss(fraction: float) -> list[Instruction]:
    """Drops each packet with this probability."""
    return [
        (LOAD_WORD, 0, 0, RANDOM),
        (JUMP_GREATER, 0, 1, int((1 - fraction) * 2**32)),
        (RETURN, 0, 0, DROP),
        (RETURN, 0, 0, PASS),
    ]


def silence_from(address: str) -> list[Instruction]:
    """Drops whatever comes from one address."""
    number = int.from_bytes(bytes(map(int, address.split("."))))
    return [
        (LOAD_HALF, 0, 0, ETHERTYPE),
        (JUMP_EQUAL, 0, 3, IPV4),
        (LOAD_WORD, 0, 0, SOURCE),
        (JUMP_EQUAL, 0, 1, number),
        (RETURN, 0, 0, DROP),
        (RETURN, 0, 0, PASS),
    ]


def no_inbound_connections() -> list[Instruction]:
    """Drops the first packet of every connection that somebody opens to the site."""
    return [
        (LOAD_HALF, 0, 0, ETHERTYPE),
        (JUMP_EQUAL, 0, 7, IPV4),
        (LOAD_BYTE, 0, 0, PROTOCOL),
        (JUMP_EQUAL, 0, 5, TCP),
        (LOAD_IP_HEADER_LENGTH, 0, 0, IP_HEADER),
        (LOAD_BYTE_BEHIND_IT, 0, 0, IP_HEADER + TCP_FLAGS_IN_SEGMENT),
        (AND, 0, 0, SYN | ACK),
        (JUMP_EQUAL, 0, 1, SYN),
        (RETURN, 0, 0, DROP),
        (RETURN, 0, 0, PASS),
    ]


class NamespacesMissingError(Exception):
    """This machine does not let us make a network; the text says what it refused."""


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NamespacesMissingError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class SmallNetwork:
    """The namespaces of a federation's sites; none is left behind.

    :raises NamespacesMissingError: they cannot be made here.
    """

    _made = itertools.count()

    def __init__(self, federation: Federation) -> None:
        if os.geteuid() != 0:
            raise NamespacesMissingError("network namespaces need root")
        for program in ("ip", "tc"):
            if shutil.which(program) is None:
                raise NamespacesMissingError(f"{program} of iproute2 is not installed")
        mark = f"p2pfed-{os.getpid()}-{next(self._made)}"
        self._hub = f"{mark}-hub"
        self._names = {one.name: f"{mark}-{one.name}" for one in federation.hospitals}
        self.addresses = {
            one.name: f"{SUBNET}.{number}"
            for number, one in enumerate(federation.hospitals, start=1)
        }
        try:
            self._make()
        except NamespacesMissingError:
            self.close()
            raise
        for hospital in federation.hospitals:
            hospital.address = f"/ip4/{self.addresses[hospital.name]}/tcp/{hospital.port}"
            hospital.write_site()
        federation.write_topology()

    def _make(self) -> None:
        run("ip", "netns", "add", self._hub)
        run("ip", "-n", self._hub, "link", "add", "bridge0", "type", "bridge")
        run("ip", "-n", self._hub, "link", "set", "bridge0", "up")
        for site, name in self._names.items():
            run("ip", "netns", "add", name)
            ends = ("type", "veth", "peer", "name", site, "netns", self._hub)
            run("ip", "-n", name, "link", "add", INTERFACE, *ends)
            run("ip", "-n", self._hub, "link", "set", site, "master", "bridge0", "up")
            run("ip", "-n", name, "addr", "add", f"{self.addresses[site]}/24", "dev", INTERFACE)
            run("ip", "-n", name, "link", "set", INTERFACE, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("tc", "-n", name, "qdisc", "add", "dev", INTERFACE, "clsact")

    def close(self) -> None:
        for name in (*self._names.values(), self._hub):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def start(self, hospital: Hospital) -> None:
        start(hospital, prefix=("ip", "netns", "exec", self._names[hospital.name]))

    def filter(self, site: str, program: Sequence[Instruction]) -> None:
        """Put a program before everything that reaches the site."""
        words = [f"{code} {yes} {no} {operand}" for code, yes, no, operand in program]
        bytecode = ",".join([str(len(words)), *words])
        ingress = ("dev", INTERFACE, "ingress")
        run(
            "tc", "-n", self._names[site], "filter", "add", *ingress,
            "bpf", "direct-action", "bytecode", bytecode,
        )  # fmt: skip

    def dropped(self, site: str) -> int:
        """Packets that programs of the site have dropped so far."""
        words = ("tc", "-n", self._names[site], "-s", "-j", "qdisc", "show", "dev", INTERFACE)
        [ingress] = [one for one in json.loads(run(*words)) if one["kind"] == "clsact"]
        return int(ingress["drops"])

    def clear(self, site: str) -> None:
        run("tc", "-n", self._names[site], "filter", "del", "dev", INTERFACE, "ingress")

    def cap(self, site: str, kilobits_per_second: int) -> None:
        """Bound what the site sends."""
        shape = ("rate", f"{kilobits_per_second}kbit", "burst", "16kb", "latency", "400ms")
        device = ("dev", INTERFACE, "root")
        run("tc", "-n", self._names[site], "qdisc", "add", *device, "tbf", *shape)


def network_or_skip(federation: Federation) -> SmallNetwork:
    try:
        return SmallNetwork(federation)
    except NamespacesMissingError as error:
        pytest.skip(str(error))
