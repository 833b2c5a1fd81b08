"""The site file: what one hospital's daemon needs to know, and nobody else gets to see.

Each field's description states unit, default, effect, and whether a reload applies it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from p2pfed.errors import ConfigurationError, Problem
from p2pfed.settings import Settings, read_toml, validate
from p2pfed.topology.file import (
    MAX_ADDRESSES,
    MAX_BUDGET_EPSILON,
    MAX_CLIP_NORM,
    MAX_NOISE_MULTIPLIER,
    MIN_NOISE_MULTIPLIER,
    Address,
    Name,
    Number,
)

SCHEMA_VERSION = 1
MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108 with its terminating zero
MAX_STATEMENT_CHARACTERS = 2_000
DEFAULT_LISTEN = ("/ip4/0.0.0.0/tcp/7400",)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _endpoint(text: str) -> str:
    """``host:port``, or empty for none."""
    host, _, port = text.rpartition(":")
    if text and not (host and port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise ValueError('write host:port, for example "127.0.0.1:9464", or "" for none')
    return text


Addresses = Annotated[tuple[Address, ...], BeforeValidator(_as_tuple)]


class Listen(Settings):
    addresses: Addresses = Field(
        DEFAULT_LISTEN,
        description="Multiaddrs to listen on; one TCP port is enough. Empty: only dial out. "
        "Default /ip4/0.0.0.0/tcp/7400. Needs a restart.",
        max_length=MAX_ADDRESSES,
    )
    announce: Addresses = Field(
        (),
        description="What others should dial where it differs from the above (NAT, DNS). "
        "Default: the listen addresses that are not wildcards. Needs a restart.",
        max_length=MAX_ADDRESSES,
    )
    reachable: bool = Field(
        True,
        description="false where a firewall or NAT lets nobody dial this site: no address of its "
        "own is announced, and it dials without waiting to be dialled. The same as no addresses, "
        "but for neighbours on the local network. Default true. Needs a restart.",
    )
    mdns: bool = Field(
        True,
        description="Find members on the local network, and be found. Default true. Never on a "
        "loopback address. Needs a restart.",
    )


class Relay(Settings):
    use: bool = Field(
        True,
        description="Reach a neighbour through a member that relays where neither end can dial "
        "the other. The relay sees ciphertext. Default true. Needs a restart.",
    )
    enabled: bool = Field(
        False,
        description="Relay for other members. Default false. Needs a restart.",
    )
    circuits: int = Field(
        16,
        description="Relayed connections at the same time. Default 16. Needs a restart.",
        ge=1,
        le=256,
    )
    megabytes_per_second: Number = Field(
        20.0,
        description="MB a second of all relayed connections together; leave each 0.05 at least, "
        "or it stalls. Default 20. Needs a restart.",
        ge=1.0,
        le=10_000.0,
    )
    circuit_megabytes: int = Field(
        100_000,
        description="MB that one relayed connection carries in each direction; then it is cut, "
        "and its ends make a new one. Default 100000. Needs a restart.",
        ge=1,
        le=10_000_000,
    )
    circuit_hours: Number = Field(
        24.0,
        description="Hours for which one relayed connection lasts; then it is cut, and its ends "
        "make a new one. Default 24. Needs a restart.",
        ge=0.01,
        le=720.0,
    )


class Control(Settings):
    socket: str = Field(
        "",
        description="Unix socket of status, reload, stop and the rest. Default control.sock in "
        "the state directory. Needs a restart.",
    )


class Metrics(Settings):
    address: Annotated[str, AfterValidator(_endpoint)] = Field(
        "",
        description='host:port to serve /metrics on over TCP as well. Default "": only the '
        "control socket has it. Needs a restart.",
    )


class Training(Settings):
    device: str = Field(
        "auto",
        description="auto (default: a GPU where there is one), cpu, cuda or cuda:N. "
        "Needs a restart.",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
    )
    threads: int = Field(
        1,
        description="Threads of one PyTorch operation. Default 1. Another number gives other "
        "rounding. Needs a restart.",
        ge=1,
        le=1024,
    )
    maximum_local_steps: int | None = Field(
        None,
        description="Local steps a round that this site takes at most, where the federation's are "
        "too many for its machine. Default: as many as the federation. Needs a restart.",
        ge=1,
    )


class SiteTask(Settings):
    path: str = Field(
        "",
        description="A directory of this site in which the task's class is looked for as well. "
        "Default none. Needs a restart.",
    )


class Log(Settings):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged. Default info. Needs a restart."
    )
    format: Literal["auto", "text", "json"] = Field(
        "auto",
        description="auto (default: text on a terminal, JSON otherwise), text or json. "
        "Needs a restart.",
    )


class SitePrivacy(Settings):
    minimum_records: int = Field(
        2,
        description="This site does not train on fewer records. It may only be stricter than "
        "the topology file; the larger of both holds. Needs a restart.",
        ge=2,
    )
    differential_privacy: bool | None = Field(
        None,
        description="Train with differential privacy: true, or false where the topology file does "
        "not demand it. Default: as the topology file says. Needs a restart.",
    )
    epsilon: Number | None = Field(
        None,
        description="The privacy budget of this site's whole training. Where the next round would "
        "exceed it, the site stops training and goes on aggregating. Default: the topology "
        "file's maximum_epsilon, which it may not exceed. Needs a restart.",
        gt=0.0,
        le=MAX_BUDGET_EPSILON,
    )
    delta: Number | None = Field(
        None,
        description="The probability at which the guarantee may fail; less than 1 / records. "
        "Default: the topology file's maximum_delta, which it may not exceed. Needs a restart.",
        gt=0.0,
        lt=1.0,
    )
    noise_multiplier: Number | None = Field(
        None,
        description="Standard deviation of the noise over clip_norm (sigma). Default: the topology "
        "file's minimum_noise_multiplier, below which it may not be. Needs a restart.",
        ge=MIN_NOISE_MULTIPLIER,
        le=MAX_NOISE_MULTIPLIER,
    )
    clip_norm: Number | None = Field(
        None,
        description="2-norm to which each record's gradient is clipped. Default: the topology "
        "file's maximum_clip_norm, which it may not exceed. Needs a restart.",
        gt=0.0,
        le=MAX_CLIP_NORM,
    )


class Export(Settings):
    tensorboard: str = Field(
        "",
        description="Directory that TensorBoard is to read; each round's metrics are written to "
        "it. Needs p2pfed[tensorboard]. Default none. Needs a restart.",
    )
    mlflow: str = Field(
        "",
        description="MLflow's tracking URI, or a directory, for each round's metrics. They leave "
        "this machine where the URI says so. Needs p2pfed[mlflow]. Default none. "
        "Needs a restart.",
    )


class Statement(Settings):
    """What nobody but its operator can say of a model; ``p2pfed report`` shows it."""

    intended_use: str = Field(
        "",
        description="What the model is for, and for whom. Default none. Read anew by each "
        "p2pfed report; the daemon's own at the end of a run needs a restart.",
        max_length=MAX_STATEMENT_CHARACTERS,
    )
    out_of_scope: str = Field(
        "",
        description="What it must not be used for. Default none. Read anew by each p2pfed report; "
        "the daemon's own at the end of a run needs a restart.",
        max_length=MAX_STATEMENT_CHARACTERS,
    )
    contact: str = Field(
        "",
        description="Who answers for it. Default none. Read anew by each p2pfed report; "
        "the daemon's own at the end of a run needs a restart.",
        max_length=MAX_STATEMENT_CHARACTERS,
    )


class Limits(Settings):
    maximum_model_megabytes: int = Field(
        4096,
        description="A larger model is refused at start (MB of float32 parameters). Memory and "
        "disk follow from it. Default 4096. Needs a restart.",
        ge=1,
        le=30_720,
    )


class SiteFile(Settings):
    """A whole site file. Paths in it are relative to the file."""

    schema_version: Literal[1] = Field(description="Version of this format: 1.")
    name: Name = Field(description="This site's name in the topology file. Needs a restart.")
    topology: str = Field(
        "topology.toml",
        description="The topology file. A reload reads it again. Default topology.toml.",
        min_length=1,
    )
    keys: str = Field(
        "keys",
        description="Directory of the site's secret keys, mode 0700. Default keys. "
        "Needs a restart.",
        min_length=1,
    )
    state: str = Field(
        "state",
        description="Directory of everything the daemon must not forget, mode 0700. "
        "Default state. Needs a restart.",
        min_length=1,
    )
    listen: Listen = Field(default_factory=Listen, description="Where others reach this site.")
    relay: Relay = Field(default_factory=Relay, description="Connections through a third site.")
    control: Control = Field(default_factory=Control, description="Where the operator does.")
    metrics: Metrics = Field(default_factory=Metrics, description="For Prometheus.")
    training: Training = Field(default_factory=Training, description="The local computation.")
    task: SiteTask = Field(default_factory=SiteTask, description="Code of a task of one's own.")
    data: dict[str, Any] = Field(
        default_factory=dict,
        description="Where this site's records are; what may stand here is the task's to say. "
        "Needs a restart.",
    )
    log: Log = Field(default_factory=Log, description="What the daemon writes to stderr.")
    privacy: SitePrivacy = Field(
        default_factory=SitePrivacy, description="What this site demands beyond the federation."
    )
    limits: Limits = Field(default_factory=Limits, description="What the daemon may use.")
    export: Export = Field(
        default_factory=Export, description="Where metrics go beside p2pfed's own places."
    )
    report: Statement = Field(
        default_factory=Statement, description="What a report says in the operator's own words."
    )


@dataclass(frozen=True)
class Site:
    """A site file that was read and found sound, with every path absolute."""

    path: Path
    file: SiteFile

    def _resolve(self, relative: str) -> Path:
        return Path(os.path.normpath(self.path.parent / Path(relative).expanduser()))

    @property
    def topology_path(self) -> Path:
        return self._resolve(self.file.topology)

    @property
    def keys_directory(self) -> Path:
        return self._resolve(self.file.keys)

    @property
    def state_directory(self) -> Path:
        return self._resolve(self.file.state)

    @property
    def control_socket(self) -> Path:
        if self.file.control.socket:
            return self._resolve(self.file.control.socket)
        return self.state_directory / "control.sock"

    @property
    def reachable(self) -> bool:
        """Whether the operator leaves it possible that others dial this site."""
        return self.file.listen.reachable and bool(self.file.listen.addresses)

    @property
    def task_directory(self) -> Path | None:
        return self._resolve(self.file.task.path) if self.file.task.path else None

    @property
    def tensorboard_directory(self) -> Path | None:
        given = self.file.export.tensorboard
        return self._resolve(given) if given else None

    @property
    def mlflow_uri(self) -> str | None:
        """A directory as a URI; a URI as it is."""
        given = self.file.export.mlflow
        if not given or "://" in given or given == "databricks":
            return given or None
        return self._resolve(given).as_uri()

    @property
    def data(self) -> dict[str, Any]:
        """The ``[data]`` table with entries named ``path`` or ``*_path`` made absolute."""
        return {
            key: str(self._resolve(value))
            if isinstance(value, str) and (key == "path" or key.endswith("_path"))
            else value
            for key, value in self.file.data.items()
        }


def load_site(path: Path) -> Site:
    """Read and check a site file.

    :raises ConfigurationError: with everything that is wrong with it.
    """
    path = path.absolute()
    site = Site(path, validate(SiteFile, read_toml(path), path))
    length = len(os.fsencode(site.control_socket))
    if length > MAX_SOCKET_PATH_BYTES:
        raise ConfigurationError(
            [
                Problem(
                    path,
                    "control.socket",
                    str(site.control_socket),
                    f"a unix socket path has at most {MAX_SOCKET_PATH_BYTES} bytes, "
                    f"this one has {length}",
                    "set control.socket to a shorter path in a directory of your own",
                )
            ]
        )
    return site


SITE_TEMPLATE = """\
# Site file of {name}. It stays at this site; the topology file is the one that all share.
schema_version = 1
name = "{name}"

# The federation's topology file, the same at every site.
topology = "topology.toml"
# Secret keys and state; both private to the user that runs the daemon.
keys = "keys"
state = "state"

[listen]
# One TCP port. With an empty list this site only dials out.
addresses = ["/ip4/0.0.0.0/tcp/7400"]
# What others should dial, where a firewall or NAT makes it differ.
announce = []
# false where nobody can dial this site: it dials, or is reached through a member that relays.
reachable = true
# Find members on the local network.
mdns = true

[relay]
# Carry connections between members that cannot reach each other. Only ciphertext passes.
enabled = false

[training]
# auto takes a GPU where there is one; or cpu, cuda, cuda:0 ...
device = "auto"

[data]
# Where this site's records are; for the built-in tabular task a CSV or Parquet file.
path = "data.csv"

[metrics]
# host:port for Prometheus; empty: only "p2pfed" itself can read the metrics.
address = ""
"""
