"""What befalls a simulated federation, and when: the scenario's events and the storm's draws."""

from typing import TYPE_CHECKING

from p2pfed.simulation.scenario import Crash, Freeze, Partition, Scenario
from p2pfed.topology import Topology
from p2pfed.topology.subset import topology_of

if TYPE_CHECKING:
    from p2pfed.simulation.federation import SimulatedFederation

RELOAD_SPREAD_SECONDS = 5.0  # in which all sites reload a changed topology file


class Faults:
    """Schedules everything that goes wrong, and knows when it is over.

    :param topology: with all peers that ever take part.
    :raises ConfigurationError: what leaves or joins makes the topology file unsound.
    """

    def __init__(self, federation: "SimulatedFederation", topology: Topology) -> None:
        self._federation = federation
        self._world = federation.world
        self._scenario = federation.scenario
        self._whole = topology
        self._members = set(topology.names) - {one.site for one in self._scenario.join}
        self.first_topology = self._file = topology_of(topology, self._members)
        self.last_topology = self._through_all_changes()
        self._pending = 0
        self.last_seconds = 0.0  # when the last of them was over

    def _through_all_changes(self) -> Topology:
        """The last topology file; each before it must be sound as well."""
        joins = [(one.at_seconds, False, one.site) for one in self._scenario.join]
        leaves = [(one.at_seconds, True, one.site) for one in self._scenario.leave]
        members, topology = set(self._members), self.first_topology
        for _, leaving, site in sorted(joins + leaves):
            members = members - {site} if leaving else members | {site}
            topology = topology_of(self._whole, members)
        return topology

    @property
    def over(self) -> bool:
        return self._pending == 0

    def schedule(self) -> None:
        scenario = self._scenario
        for crash in (*scenario.crash, *self._drawn_crashes(scenario)):
            self._at(crash.at_seconds, self._crash, crash.site)
            self._at(crash.at_seconds + crash.down_seconds, self._restart, crash.site)
        for freeze in (*scenario.freeze, *self._drawn_freezes(scenario)):
            self._at(freeze.at_seconds, self._freeze, freeze.site)
            self._at(freeze.at_seconds + freeze.for_seconds, self._thaw, freeze)
        network = self._federation.network
        for partition in (*scenario.partition, *self._drawn_partitions(scenario)):
            self._at(partition.at_seconds, network.part, partition)
            self._at(partition.at_seconds + partition.for_seconds, network.heal, partition)
        for seconds, one, other in self._drawn_cuts(scenario):
            self._at(seconds, network.cut, one, other)
        for join in scenario.join:
            self._at(join.at_seconds, self._join, join.site)
        for leave in scenario.leave:
            self._at(leave.at_seconds, self._leave, leave.site)

    def _at(self, seconds: float, action: object, *arguments: object) -> None:
        self._pending += 1
        self.last_seconds = max(self.last_seconds, seconds)
        self._world.at(seconds, self._happen, action, arguments)

    def _happen(self, action: object, arguments: tuple[object, ...]) -> None:
        self._pending -= 1
        assert callable(action)  # noqa: S101 - given by schedule
        action(*arguments)

    def _crash(self, site: str) -> None:
        self._federation.peers[site].crash()

    def _restart(self, site: str) -> None:
        peer = self._federation.peers[site]
        if not peer.up and site in peer.topology.names:
            peer.start()

    def _freeze(self, site: str) -> None:
        self._federation.peers[site].freeze()

    def _thaw(self, freeze: Freeze) -> None:
        self._federation.peers[freeze.site].thaw(clock_stood=freeze.clock == "stands")

    def _join(self, site: str) -> None:
        self._members.add(site)
        self._change_file()
        self._reload(site)
        self._federation.peers[site].start()

    def _leave(self, site: str) -> None:
        self._members.discard(site)
        self._change_file()
        self._federation.peers[site].crash()
        self._reload(site)

    def _change_file(self) -> None:
        """Every member reloads the file, at a time of its own."""
        self._file = topology_of(self._whole, self._members)
        draws = self._world.draw(f"reload {self._world.now_microseconds}")
        for name in sorted(self._members):
            wait = draws.uniform(0.0, RELOAD_SPREAD_SECONDS)
            self._at(self._world.now + wait, self._reload, name)

    def _reload(self, site: str) -> None:
        """Take the file as it is now, which may have changed again since the site was told."""
        peer = self._federation.peers[site]
        if peer.topology.digest != self._file.digest:
            peer.change_topology(self._file)

    def _drawn_crashes(self, scenario: Scenario) -> list[Crash]:
        storm = scenario.storm
        if storm is None:
            return []
        draws = self._world.draw("storm crashes")
        names = sorted(self._members)
        return [
            Crash(
                site=draws.choice(names),
                at_seconds=draws.uniform(storm.from_seconds, storm.until_seconds),
                down_seconds=draws.uniform(0.0, storm.longest_down_seconds),
            )
            for _ in range(storm.crashes)
        ]

    def _drawn_freezes(self, scenario: Scenario) -> list[Freeze]:
        storm = scenario.storm
        if storm is None:
            return []
        draws = self._world.draw("storm freezes")
        names = sorted(self._members)
        return [
            Freeze(
                site=draws.choice(names),
                at_seconds=draws.uniform(storm.from_seconds, storm.until_seconds),
                for_seconds=draws.uniform(0.0, storm.longest_freeze_seconds),
                clock=draws.choice(("runs", "stands")),
            )
            for _ in range(storm.freezes)
        ]

    def _drawn_partitions(self, scenario: Scenario) -> list[Partition]:
        storm = scenario.storm
        if storm is None:
            return []
        draws = self._world.draw("storm partitions")
        names = sorted(self._members)
        return [
            Partition(
                sites=tuple(sorted(draws.sample(names, draws.randint(1, len(names) - 1)))),
                at_seconds=draws.uniform(storm.from_seconds, storm.until_seconds),
                for_seconds=draws.uniform(0.0, storm.longest_partition_seconds),
                direction=draws.choice(("both", "in", "out")),
            )
            for _ in range(storm.partitions)
        ]

    def _drawn_cuts(self, scenario: Scenario) -> list[tuple[float, str, str]]:
        storm = scenario.storm
        if storm is None:
            return []
        draws = self._world.draw("storm cuts")
        edges = sorted(tuple(sorted(edge)) for edge in self.first_topology.graph().edges)
        return [
            (draws.uniform(storm.from_seconds, storm.until_seconds), *draws.choice(edges))
            for _ in range(storm.cut_links)
        ]
