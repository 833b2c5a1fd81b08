"""The tables of a topology file. Every site holds the same file.

Each field's description states unit, default, effect, and whether a reload applies it while
the federation runs.
"""

import ipaddress
import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from p2pfed.keys import parse_public_key, peer_id_from_public_key, public_key_from_peer_id
from p2pfed.rules_catalogue import DEFAULT_RULE, NO_PRE_AGGREGATION, PRE_AGGREGATIONS, RULES
from p2pfed.settings import Settings
from p2pfed.tasks_catalogue import TaskKind

SCHEMA_VERSION = 1
MAX_PEERS = 1000
PLACEHOLDER_KEY = "PASTE-THE-KEY-THAT-p2pfed-init-PRINTED"  # in a new file
MAX_ADDRESSES = 8
MAX_INTEGER = 2**63 - 1  # TOML promises no more, and the digest holds no more
MAX_OPTIONS_DEPTH = 16  # tables within tables
MAX_HOST_CHARACTERS = 253  # RFC 1035, section 2.3.4, as text
MAX_ROUNDS = 2**40  # the largest round number that a header carries
DEFAULT_REWIRING = 0.1
MAX_BUDGET_EPSILON = 1000.0  # beyond it a guarantee says nothing
# Less noise than this is none, and the accountant's series take seconds to sum.
MIN_NOISE_MULTIPLIER = 0.1
MAX_NOISE_MULTIPLIER = 1000.0
MAX_CLIP_NORM = 1e6
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")  # RFC 1123, section 2.1


def _as_float(value: object) -> object:
    return float(value) if type(value) is int else value


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _public_key(text: str) -> str:
    if text == PLACEHOLDER_KEY:
        raise ValueError("paste the [[peer]] block that p2pfed init printed at that site")
    parse_public_key(text)
    return text


def _peer_id(text: str) -> str:
    public_key_from_peer_id(text)
    return text


def check_address(text: str) -> str:
    """Check a multiaddr of the form /ip4/A/tcp/P, /ip6/A/tcp/P or /dns[4|6]/NAME/tcp/P.

    :raises ValueError: with what is wrong.
    """
    parts = text.split("/")
    if len(parts) == 7 and parts[5] == "p2p":
        raise ValueError(f"leave out /p2p/{parts[6]}: key or peer_id say who the site is")
    if len(parts) != 5 or parts[0] != "" or parts[3] != "tcp":
        raise ValueError("an address looks like /ip4/10.1.0.5/tcp/7400 or /dns/NAME/tcp/7400")
    kind, host, port = parts[1], parts[2], parts[4]
    if kind == "ip4":
        ipaddress.IPv4Address(host)
    elif kind == "ip6":
        if "%" in host:
            raise ValueError("an IPv6 address with a zone means something at one machine only")
        ipaddress.IPv6Address(host)
    elif kind not in ("dns", "dns4", "dns6"):
        raise ValueError(f"unknown address kind {kind!r}; use ip4, ip6, dns, dns4 or dns6")
    elif len(host) > MAX_HOST_CHARACTERS or not all(
        _HOST_LABEL.fullmatch(label) for label in host.split(".")
    ):
        raise ValueError(f"{host!r} is no host name")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"{port!r} is no port number")
    return text


def circuit_address(relay: str) -> str:
    """The multiaddr at which a peer is reached through a relay, a peer id (libp2p
    specifications, relay/circuit-v2)."""
    return f"/p2p/{relay}/p2p-circuit"


def relay_of(address: str) -> str | None:
    """The relay of such an address; None of a direct one."""
    parts = address.split("/")
    is_circuit = len(parts) == 4 and parts[:2] == ["", "p2p"] and parts[3] == "p2p-circuit"
    return parts[2] if is_circuit else None


def _dialled_address(text: str) -> str:
    relay = relay_of(text)
    if relay is not None:
        return circuit_address(_peer_id(relay))
    if text.endswith("/p2p-circuit"):
        raise ValueError("write /p2p/PEER-ID/p2p-circuit alone; the relay is a member itself")
    if check_address(text).endswith("/tcp/0"):
        raise ValueError("port 0 cannot be dialled; write the port that the site listens on")
    return text


def _plain_options(value: dict[str, Any]) -> dict[str, Any]:
    _check_plain(value, "options", MAX_OPTIONS_DEPTH)
    return value


def _check_plain(value: object, place: str, depth: int) -> None:
    """Only what every site reads alike and the digest can hold.

    :raises ValueError: names the place.
    """
    if depth == 0:
        raise ValueError(f"{place} is nested more than {MAX_OPTIONS_DEPTH} deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(inner, f"{place}.{key}", depth - 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{place}[{index}]", depth - 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is not a finite number")
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError(f"{place} does not fit 64 bits")
    elif not isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - pydantic reports a ValueError with its key
            f"{place} is a {type(value).__name__}; write it as text"
        )


def _rule(name: str) -> str:
    if name not in RULES:
        raise ValueError(f"unknown rule; known: {', '.join(RULES)}")
    return name


def _pre_aggregation(name: str) -> str:
    if name not in PRE_AGGREGATIONS:
        raise ValueError(f"unknown pre-aggregation; known: {', '.join(PRE_AGGREGATIONS)}")
    return name


def field(description: str, *, reload: bool, default: Any = ..., **constraints: Any) -> Any:
    """A documented field: ``reload`` says whether a reload applies a change of it."""
    return Field(
        default, description=description, json_schema_extra={"reload": reload}, **constraints
    )


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Number = Annotated[float, BeforeValidator(_as_float)]
Address = Annotated[str, AfterValidator(check_address)]
DialledAddress = Annotated[str, AfterValidator(_dialled_address)]


class Federation(Settings):
    """Which federation this is."""

    name: Name = field(
        "Name of the federation; part of its identity: another name is another federation.",
        reload=False,
    )


class Peer(Settings):
    """One site: exactly one of ``key`` and ``peer_id`` says who it is."""

    name: Name = field("The site's name, unique in the file.", reload=True)
    key: Annotated[str, AfterValidator(_public_key)] | None = field(
        "Its Ed25519 public key, as p2pfed init printed it.", reload=True, default=None
    )
    peer_id: Annotated[str, AfterValidator(_peer_id)] | None = field(
        "Its libp2p peer id, instead of key.", reload=True, default=None
    )
    addresses: Annotated[tuple[DialledAddress, ...], BeforeValidator(_as_tuple)] = field(
        "Multiaddrs it can be dialled at, at most 8; /p2p/PEER-ID/p2p-circuit where another "
        "member relays, or with its own peer id where it relays for others. Default empty: it "
        "only dials out, or is found on the local network.",
        reload=True,
        default=(),
        max_length=MAX_ADDRESSES,
    )

    @model_validator(mode="after")
    def _one_identity(self) -> "Peer":
        if (self.key is None) == (self.peer_id is None):
            raise ValueError("give exactly one of key and peer_id")
        return self

    @property
    def public_key(self) -> bytes:
        """The 32-byte Ed25519 public key."""
        if self.key is not None:
            return parse_public_key(self.key)
        return public_key_from_peer_id(self.peer_id or "")

    @property
    def peer_id_text(self) -> str:
        return self.peer_id or peer_id_from_public_key(self.public_key)


GraphKind = Literal[
    "explicit",
    "ring",
    "torus",
    "exponential",
    "complete",
    "star",
    "random_regular",
    "small_world",
    "one_peer_exponential",
    "random_per_round",
]
# Which keys of [graph] each kind takes, beyond ``kind``; those marked must be given.
GRAPH_KEYS: dict[str, dict[str, bool]] = {
    "explicit": {"edges": True},
    "ring": {},
    "torus": {"rows": True, "columns": True},
    "exponential": {},
    "complete": {},
    "star": {},
    "random_regular": {"degree": True, "seed": False},
    "small_world": {"degree": True, "rewiring": False, "seed": False},
    "one_peer_exponential": {},
    "random_per_round": {"degree": True, "seed": False},
}


class Graph(Settings):
    """Which sites are neighbours. Generators number the peers in the file's order."""

    kind: GraphKind = field(
        "How the edges are given: explicit, or the name of a generator. A reload changes it, but "
        "not between a graph that stays and one that varies with the round.",
        reload=True,
    )
    edges: Annotated[
        tuple[Annotated[tuple[str, str], BeforeValidator(_as_tuple)], ...] | None,
        BeforeValidator(_as_tuple),
    ] = field("explicit: pairs of site names.", reload=True, default=None)
    degree: int | None = field(
        "random_regular, small_world, random_per_round: neighbours a site has.",
        reload=True,
        default=None,
        ge=1,
        lt=MAX_PEERS,
    )
    rewiring: Number | None = field(
        f"small_world: probability that an edge is rewired; default {DEFAULT_REWIRING}.",
        reload=True,
        default=None,
        ge=0.0,
        le=1.0,
    )
    rows: int | None = field(
        "torus: rows * columns is the number of peers.",
        reload=True,
        default=None,
        ge=2,
        le=MAX_PEERS,
    )
    columns: int | None = field("torus: see rows.", reload=True, default=None, ge=2, le=MAX_PEERS)
    seed: int | None = field(
        "random graphs: the same seed gives the same graph at every site; default 0.",
        reload=True,
        default=None,
        ge=0,
        le=MAX_INTEGER,
    )

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> "Graph":
        taken = GRAPH_KEYS[self.kind]
        given = {
            key
            for key in ("edges", "degree", "rewiring", "rows", "columns", "seed")
            if getattr(self, key) is not None
        }
        foreign = sorted(given - set(taken))
        missing = sorted(key for key, needed in taken.items() if needed and key not in given)
        if foreign:
            raise ValueError(f"a graph of kind {self.kind} takes no {', '.join(foreign)}")
        if missing:
            raise ValueError(f"a graph of kind {self.kind} needs {', '.join(missing)}")
        return self


class Round(Settings):
    """The pace of the federation."""

    rounds: int = field(
        "Total number of rounds; 0 (default): until stopped.",
        reload=True,
        default=0,
        ge=0,
        le=MAX_ROUNDS,
    )
    local_steps: int = field(
        "Optimiser steps a round at each site; few mix better than many. Default 3.",
        reload=True,
        default=3,
        ge=1,
        le=100_000,
    )
    deadline_seconds: Number = field(
        "Seconds a round waits for its neighbours after its own delta went out. Default 60.",
        reload=True,
        default=60.0,
        gt=0.0,
        le=86_400.0,
    )
    quorum: Number = field(
        "Fraction of a round's neighbours, rounded up, without whose deltas the round does not "
        "close even at its deadline. Default 0.5.",
        reload=True,
        default=0.5,
        ge=0.0,
        le=1.0,
    )
    max_staleness: int = field(
        "Rounds for which a silent neighbour's last model is still used; beyond it the edge is "
        "left out. Default 1.",
        reload=True,
        default=1,
        ge=0,
        le=100,
    )
    mode: Literal["sync", "async"] = field(
        "sync (default): a round waits for its neighbours, until the deadline. async: it waits "
        "for nobody; a model that is s rounds older or newer than the site's own counts with "
        "1 / (1 + s) of its weight, and a site gets at most max_staleness rounds ahead of a "
        "quorum of its neighbours. Needs a graph that does not vary with the round.",
        reload=False,
        default="sync",
    )


class Aggregation(Settings):
    """How a site combines its neighbours' models with its own."""

    rule: Annotated[str, AfterValidator(_rule)] = field(
        f"The aggregation rule; default {DEFAULT_RULE}.", reload=False, default=DEFAULT_RULE
    )
    pre_aggregation: Annotated[str, AfterValidator(_pre_aggregation)] = field(
        "What is done to the models before the rule sees them: nearest_neighbour_mixing, which "
        f"asks for b, or bucketing. Default {NO_PRE_AGGREGATION}.",
        reload=False,
        default=NO_PRE_AGGREGATION,
    )
    byzantine_neighbours: int = field(
        "b: hostile neighbours assumed in each neighbourhood, for what asks for it. Default 0.",
        reload=False,
        default=0,
        ge=0,
        lt=MAX_PEERS,
    )
    mixing_step: Number = field(
        "gamma: the fraction of the rule's step that is taken each round. Default 1.",
        reload=False,
        default=1.0,
        gt=0.0,
        le=1.0,
    )


class CodecSettings(Settings):
    name: Literal["int8", "float32"] = field(
        "How deltas are written: int8 (default, a quarter of the bytes) or float32.",
        reload=False,
        default="int8",
    )


class Task(Settings):
    """What is learned."""

    kind: TaskKind = field(
        "tabular: CSV or Parquet; image_classification, segmentation: folders, NPZ, DICOM, NIfTI; "
        "signal: records in time, such as an ECG; adapter: a frozen model with small trained "
        "parts; python: a class of your own.",
        reload=False,
    )
    class_: str | None = field(
        "python: where the class is, as package.module:Class.",
        reload=False,
        default=None,
        alias="class",
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
    )
    seed: int = field(
        "Seed of the model that all peers start from. Default 0.",
        reload=False,
        default=0,
        ge=0,
        le=MAX_INTEGER,
    )
    options: Annotated[dict[str, Any], AfterValidator(_plain_options)] = field(
        "Settings of the task; empty by default. The task itself checks them when it starts.",
        reload=False,
        default_factory=dict,
    )

    @model_validator(mode="after")
    def _class_for_python(self) -> "Task":
        if (self.kind == "python") != (self.class_ is not None):
            raise ValueError("class goes with kind = 'python', and only with it")
        return self


class Privacy(Settings):
    """What no site may go below, whatever its own file says."""

    minimum_records: int = field(
        "A site with fewer training records does not train. A site file may only raise it. "
        "Default 20.",
        reload=False,
        default=20,
        ge=2,
        le=MAX_INTEGER,
    )
    differential_privacy: bool = field(
        "true: no site trains without differential privacy. false (default): each site decides; "
        "where one does, the bounds below hold for it as well.",
        reload=False,
        default=False,
    )
    maximum_epsilon: Number = field(
        "The largest privacy budget, epsilon, that a site may give its whole training, at its "
        "delta; a site file may only lower it. Default 8.",
        reload=False,
        default=8.0,
        gt=0.0,
        le=MAX_BUDGET_EPSILON,
    )
    maximum_delta: Number = field(
        "The largest delta at which a site may account; a site file may only lower it. It must "
        "be less than 1 / records at every site. Default 1e-05.",
        reload=False,
        default=1e-5,
        gt=0.0,
        lt=1.0,
    )
    minimum_noise_multiplier: Number = field(
        "The least noise: sigma, its standard deviation over the clipping norm; a site file may "
        "only raise it. Default 1.",
        reload=False,
        default=1.0,
        ge=MIN_NOISE_MULTIPLIER,
        le=MAX_NOISE_MULTIPLIER,
    )
    maximum_clip_norm: Number = field(
        "The largest 2-norm to which one record's gradient is clipped, and so the furthest that "
        "one record moves a step; a site file may only lower it. Default 1.",
        reload=False,
        default=1.0,
        gt=0.0,
        le=MAX_CLIP_NORM,
    )


class TopologyFile(Settings):
    """A whole topology file."""

    schema_version: Literal[1] = field("Version of this format: 1.", reload=False)
    federation: Federation = field("The federation's identity.", reload=False)
    peers: Annotated[tuple[Peer, ...], BeforeValidator(_as_tuple)] = field(
        "One table a site.", reload=True, alias="peer", min_length=2, max_length=MAX_PEERS
    )
    graph: Graph = field("Who is whose neighbour.", reload=True)
    round: Round = field("The pace.", reload=True, default_factory=Round)
    aggregation: Aggregation = field(
        "How models are combined.", reload=False, default_factory=Aggregation
    )
    codec: CodecSettings = field(
        "How deltas are written.", reload=False, default_factory=CodecSettings
    )
    task: Task = field("What is learned.", reload=False)
    privacy: Privacy = field("What no site may go below.", reload=False, default_factory=Privacy)
