"""One simulation, from the files and figures that a command names."""

import gc
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from p2pfed.attacks import DataAttack, make
from p2pfed.errors import UsageError
from p2pfed.simulation.federation import Outcome, SimulatedFederation
from p2pfed.simulation.learning import Learner
from p2pfed.simulation.population import Changes, Population, read_population
from p2pfed.simulation.report import Setting
from p2pfed.simulation.scenario import Scenario, load_scenario
from p2pfed.simulation.tasks import TASKS, SimulatedTask


@dataclass(frozen=True, slots=True)
class Request:
    """What to simulate. ``concentration`` is that of the Dirichlet distribution by which the
    records are dealt to the sites; ``replay`` the command that asks for the same again."""

    topology: Path
    scenario: Path | None = None
    task: str = "digits"
    concentration: float = 0.3
    changes: Changes = field(default_factory=Changes)
    seed: int = 0
    evaluate_every: int = 10
    replay: str = ""


def simulate(request: Request) -> tuple[Outcome, Setting]:
    """Run a simulation to its end.

    :raises ConfigurationError: a file cannot be used.
    :raises UsageError: an unknown task, or one that has too few records for so many sites.
    :raises InvariantError: something that must hold did not.
    """
    started = time.monotonic()
    population = read_population(request.topology, request.changes)
    names = population.topology.names
    scenario = load_scenario(request.scenario, frozenset(names)) if request.scenario else Scenario()
    federation = SimulatedFederation(
        population.topology,
        population.identities,
        scenario,
        _learner(request, population, scenario),
        request.seed,
        request.evaluate_every,
        request.replay,
    )
    with _without_looking_for_cycles():
        outcome = federation.run()
    file = population.topology.file
    return outcome, Setting(
        topology=str(request.topology),
        task=f"{request.task}, Dirichlet {request.concentration:g}",
        rule=file.aggregation.rule,
        graph=file.graph.kind.replace("_", " "),
        wall_seconds=time.monotonic() - started,
        peak_memory_bytes=_peak_memory_bytes(),
    )


@contextmanager
def _without_looking_for_cycles() -> Iterator[None]:
    """A thousand sites are millions of objects that live to the end: to look through them for
    garbage, again and again, takes most of the time and finds next to nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _learner(request: Request, population: Population, scenario: Scenario) -> Learner:
    from p2pfed.simulation.learner import BatchedLearner, LearnerSettings  # noqa: PLC0415 - torch

    if request.task not in TASKS:
        raise UsageError(f"no task is called {request.task!r}; there are {', '.join(TASKS)}")
    names = population.topology.names
    task: SimulatedTask = TASKS[request.task](len(names), request.concentration, request.seed)
    attacks = {
        names.index(one.site): attack
        for one in scenario.hostile
        if isinstance(attack := make(one.attack, **one.options), DataAttack)
    }
    return BatchedLearner(task.poisoned(attacks, request.seed), LearnerSettings(), request.seed)


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
