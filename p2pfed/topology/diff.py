"""What changed between two topology files, and whether a reload applies it."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from p2pfed.topology.topology import Topology


@dataclass(frozen=True, slots=True)
class Change:
    """``reload`` says whether ``p2pfed reload`` applies it while the federation runs."""

    what: str
    reload: bool

    def __str__(self) -> str:
        return (
            f"{self.what}  ({'reload applies it' if self.reload else 'needs a restart everywhere'})"
        )


def compare(old: Topology, new: Topology) -> list[Change]:
    """Every difference that means something; empty exactly where the digests are equal."""
    changes = [Change(f"+ peer {name}", True) for name in sorted(set(new.names) - set(old.names))]
    changes += [Change(f"- peer {name}", True) for name in sorted(set(old.names) - set(new.names))]
    for name in sorted(set(old.names) & set(new.names)):
        before, after = old.peer(name), new.peer(name)
        if before.peer_id_text != after.peer_id_text:
            changes.append(Change(f"~ peer {name}: another key", True))
        if before.addresses != after.addresses:
            changes.append(
                Change(
                    f"~ peer {name}: addresses {_listed(before.addresses)} -> "
                    f"{_listed(after.addresses)}",
                    True,
                )
            )
    before_edges, after_edges = _edges(old), _edges(new)
    changes += [Change(f"+ edge {a} - {b}", True) for a, b in sorted(after_edges - before_edges)]
    changes += [Change(f"- edge {a} - {b}", True) for a, b in sorted(before_edges - after_edges)]
    if old.time_varying != new.time_varying:
        changes.append(Change("~ graph: fixed or varying with the round", False))
    for table in ("federation", "graph", "round", "aggregation", "codec", "task", "privacy"):
        changes += _table(table, getattr(old.file, table), getattr(new.file, table))
    return changes


def fixed_changes(old: Topology, new: Topology) -> list[str]:
    """What a running federation cannot change, by its key."""
    return [change.what for change in compare(old, new) if not change.reload]


def _edges(topology: Topology) -> set[tuple[str, str]]:
    return {
        (name, other)
        for name in topology.names
        for other in topology.all_neighbours(name)
        if name < other
    }


def _table(table: str, old: BaseModel, new: BaseModel) -> list[Change]:
    changes: list[Change] = []
    for name, info in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if before == after or name == "edges":
            continue
        extra: Any = info.json_schema_extra
        key = f"{table}.{info.alias or name}"
        shown = "" if isinstance(before, dict) else f": {before!r} -> {after!r}"
        changes.append(Change(f"~ {key}{shown}", bool(extra["reload"])))
    return changes


def _listed(addresses: tuple[str, ...]) -> str:
    return ", ".join(addresses) or "none"
