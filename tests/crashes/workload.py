"""The workload whose crashes are enumerated, and the walk over its crash states."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from crash_states import CrashState
from crashing_site import (
    REOPENING_ROUND,
    CrashingSite,
    Neighbour,
    in_one_thread,
)
from invariants import BrokenInvariantError, examine, the_site_goes_on
from recording import Operation, Recorder

Mutant = Callable[[Recorder], AbstractContextManager[object]]

SMALL_DIMENSION = 200
SMALL_FILE_BYTES = 128  # what is worth recycling of such a model
ROUNDS = 5


@dataclass(frozen=True)
class Setting:
    """The size of a workload. ``worth_keeping_bytes``: from here on files are recycled."""

    dimension: int = SMALL_DIMENSION
    rounds: int = ROUNDS
    worth_keeping_bytes: int = SMALL_FILE_BYTES


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty directory, in memory where there is such a thing: thousands of states are
    written, and what an fsync does to a disk is modelled, not tried."""
    memory = Path("/dev/shm")  # noqa: S108 - the name inside it is unpredictable
    parent = memory if os.access(memory, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="p2pfed-crashes-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@cache
def neighbour_for(setting: Setting) -> Neighbour:
    with scratch() as directory, in_one_thread(setting.worth_keeping_bytes):
        return Neighbour.make(directory / "neighbour", setting.dimension, setting.rounds)


def work_through(recorder: Recorder, neighbour: Neighbour, setting: Setting) -> None:
    """Run the site through all rounds, with one stop and start between them."""
    site = CrashingSite(
        recorder.root / "site" / "state", neighbour, setting.dimension, recorder.promise
    )
    site.start()
    site.run(REOPENING_ROUND)
    site.stop()
    site.start()
    site.run()
    site.stop()


def record(root: Path, setting: Setting, mutant: Mutant | None = None) -> list[Operation]:
    """The log of the workload, run below ``root``.

    :param mutant: a bug to plant meanwhile.
    """
    neighbour = neighbour_for(setting)
    recorder = Recorder(root)
    with ExitStack() as stack:
        stack.enter_context(in_one_thread(setting.worth_keeping_bytes))
        stack.enter_context(recorder.in_force())
        if mutant is not None:
            stack.enter_context(mutant(recorder))
        work_through(recorder, neighbour, setting)
    return recorder.operations


@dataclass
class Walk:
    """The outcome of a walk over crash states.

    :ivar states: how many different ones were opened, and ``continued``: gone on from.
    :ivar broken: how many broke an invariant, by its name.
    :ivar stories: what happened in those.
    """

    states: int = 0
    continued: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    stories: list[str] = field(default_factory=list)


def walk(
    states: Iterable[CrashState],
    root: Path,
    setting: Setting,
    *,
    continue_each: int | None = None,
    only: str | None = None,
) -> Walk:
    """Open each state that differs from those before, and check the invariants.

    :param continue_each: in every such state the site also goes on to the last round.
    :param only: check no other invariant, and stop once it is broken.
    """
    outcome = Walk()
    seen: set[tuple[object, ...]] = set()
    for state in states:
        identity = state.identity()
        if identity in seen:
            continue
        seen.add(identity)
        outcome.states += 1
        goes_on = outcome.states % continue_each == 0 if continue_each else False
        try:
            _try_out(state, root, setting, goes_on=goes_on, only=only)
        except BrokenInvariantError as error:
            outcome.broken[error.name] += 1
            outcome.stories.append(f"{state.story}: {error}")
            if error.name == only:
                return outcome
        outcome.continued += goes_on
    return outcome


def _try_out(
    state: CrashState, root: Path, setting: Setting, *, goes_on: bool, only: str | None
) -> None:
    neighbour = neighbour_for(setting)
    with scratch() as directory, in_one_thread(setting.worth_keeping_bytes):
        state.write(root, directory)
        site = directory / "site"
        site.mkdir(exist_ok=True)
        examine(site / "state", state.promises, setting.dimension, only)
        if goes_on:
            the_site_goes_on(site / "state", state.promises, neighbour, setting.dimension)
