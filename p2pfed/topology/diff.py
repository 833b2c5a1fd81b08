"""What changed between two topology files, and whether a reload applies it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from p2pfed.settings import Settings
from p2pfed.topology.file import TopologyFile
from p2pfed.topology.topology import Topology, canonical_bytes

MAX_LISTED_EDGES = 200  # added or removed; more are counted instead


@dataclass(frozen=True, slots=True)
class Change:
    """``reload`` says whether ``p2pfed reload`` applies it while the federation runs.

    ``before`` and ``after`` are values as text; None where there is none to show.
    """

    sign: Literal["+", "-", "~"]
    key: str
    before: str | None
    after: str | None
    reload: bool

    @property
    def what(self) -> str:
        if self.sign == "~":
            return f"~ {self.key}: {self.before} -> {self.after}"
        value = self.after if self.sign == "+" else self.before
        return f"{self.sign} {self.key}" + (f" = {value}" if value is not None else "")

    def __str__(self) -> str:
        return (
            f"{self.what}  ({'reload applies it' if self.reload else 'needs a restart everywhere'})"
        )


def compare(old: Topology, new: Topology) -> list[Change]:
    """Every difference that means something; empty exactly where the digests are equal."""
    if old.digest == new.digest:
        return []
    changes = [*_peers(old, new), *_edges(old, new)]
    if old.time_varying != new.time_varying:
        changes.append(
            Change("~", "graph", _constancy(old), _constancy(new), reload=False),
        )
    for table in reloadable_fields():
        if table != "peer":
            before, after = getattr(old.file, table), getattr(new.file, table)
            changes += _table(table, before, after)
    if not changes:
        # Left over: a graph that varies has the same edges in other rounds.
        order = Change("~", "order of peers", _listed(old.names), _listed(new.names), reload=True)
        changes.append(order)
    return changes


def reloadable_fields() -> dict[str, dict[str, bool]]:
    """For each table of the file and each key in it, whether a reload applies a change."""
    tables: dict[str, dict[str, bool]] = {}
    for name, info in TopologyFile.model_fields.items():
        for annotation in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(annotation, type) and issubclass(annotation, Settings):
                tables[info.alias or name] = {
                    inner.alias or inner_name: _applies(inner)
                    for inner_name, inner in annotation.model_fields.items()
                }
    return tables


def _applies(info: Any) -> bool:
    return bool(info.json_schema_extra["reload"])


def _constancy(topology: Topology) -> str:
    return "varies with the round" if topology.time_varying else "the same every round"


def _peers(old: Topology, new: Topology) -> Iterator[Change]:
    before, after = set(old.names), set(new.names)
    for name in sorted(after - before):
        yield Change("+", f"peer {name}", None, None, reload=True)
    for name in sorted(before - after):
        yield Change("-", f"peer {name}", None, None, reload=True)
    for name in sorted(before & after):
        was, now = old.peer(name), new.peer(name)
        if was.peer_id_text != now.peer_id_text:
            yield Change(
                "~", f"peer {name}: peer id", was.peer_id_text, now.peer_id_text, reload=True
            )
        if was.addresses != now.addresses:
            yield Change(
                "~",
                f"peer {name}: addresses",
                _listed(was.addresses),
                _listed(now.addresses),
                reload=True,
            )


def _edges(old: Topology, new: Topology) -> Iterator[Change]:
    before, after = _edges_of(old), _edges_of(new)
    signs: tuple[tuple[Literal["+", "-"], set[tuple[str, str]]], ...] = (
        ("+", after - before),
        ("-", before - after),
    )
    for sign, edges in signs:
        if len(edges) > MAX_LISTED_EDGES:
            yield Change(sign, f"{len(edges)} edges", None, None, reload=True)
        else:
            for a, b in sorted(edges):
                yield Change(sign, f"edge {a} - {b}", None, None, reload=True)


def _edges_of(topology: Topology) -> set[tuple[str, str]]:
    """Of all examined rounds together."""
    return {
        (min(a, b), max(a, b))
        for number in topology.examined_rounds
        for a, b in topology.graph(number).edges
    }


def _table(table: str, old: Settings, new: Settings) -> Iterator[Change]:
    for name, info in type(old).model_fields.items():
        # Edges are compared as edges, whatever made them.
        if (table, name) != ("graph", "edges"):
            yield from _values(
                f"{table}.{info.alias or name}",
                getattr(old, name),
                getattr(new, name),
                _applies(info),
            )


def _values(key: str, before: object, after: object, reload: bool) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _values(f"{key}.{name}", before.get(name), after.get(name), reload)
    elif before is None and after is not None:
        yield Change("+", key, None, repr(after), reload)
    elif after is None and before is not None:
        yield Change("-", key, repr(before), None, reload)
    elif canonical_bytes(before) != canonical_bytes(after):
        yield Change("~", key, repr(before), repr(after), reload)


def _listed(items: tuple[str, ...]) -> str:
    return ", ".join(items) or "none"
