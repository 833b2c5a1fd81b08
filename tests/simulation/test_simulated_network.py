"""The simulated network on its own: what arrives, when, and what becomes of a broken link."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfed.protocol.liveness import HEARTBEAT_SECONDS
from p2pfed.simulation.network import (
    FIRST_RETRY_SECONDS,
    LINK_TIMEOUT_SECONDS,
    MAX_RETRY_SECONDS,
    REORDERED_SECONDS,
    Network,
)
from p2pfed.simulation.process import Process
from p2pfed.simulation.scenario import Partition, Scenario
from p2pfed.simulation.world import World

PLAIN = {"delay_seconds": 0.5, "jitter_seconds": 0.0, "bytes_per_second": 1000.0}
HELLO_SECONDS = 2.0  # until both hellos of a plain link are there


class Site:
    """What the network sees of a site: it remembers what it hears."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.world = world
        self.process = Process(world)
        self.process.start()
        self.welcome = True
        self.wanting = True
        self.engine = SimpleNamespace(round_number=0)
        self.heard: list[tuple[float, str, object]] = []
        self.links: list[tuple[float, str]] = []
        self.asked_seconds: list[float] = []
        self.heartbeats: list[tuple[float, str]] = []

    @property
    def up(self) -> bool:
        return self.process.up

    @property
    def frozen(self) -> bool:
        return self.process.frozen

    def when_awake(self, action: Callable[..., None], *arguments: object) -> None:
        self.process.when_awake(action, *arguments)

    def wants(self, other: str) -> bool:
        return self.wanting

    def accepts(self, other: "Site") -> bool:
        self.asked_seconds.append(self.world.now)
        return self.welcome

    def hello(self) -> int:
        return self.engine.round_number

    def linked(self, other: str, hello: int, said: int) -> None:
        self.links.append((self.world.now, f"up {other}"))

    def unlinked(self, other: str) -> None:
        self.links.append((self.world.now, f"down {other}"))

    def take(self, sender: str, what: object) -> None:
        self.heard.append((self.world.now, sender, what))

    def hears(self, other: str) -> None:
        self.heartbeats.append((self.world.now, other))

    def knows_otherwise(self, other: str, round_number: int) -> bool:
        return not self.heard or self.heard[-1][2] != round_number

    def progress(self, other: str, round_number: int) -> None:
        self.take(other, round_number)


class Net:
    """Two sites, a and b, and a link between them once ``up`` is called."""

    def __init__(self, seed: int = 0, **tables: Any) -> None:
        self.world = World(seed)
        self.a, self.b = Site(self.world, "a"), Site(self.world, "b")
        scenario = Scenario.model_validate({"links": PLAIN, **tables})
        self.network = Network(self.world, scenario, {"a": self.a, "b": self.b})  # type: ignore[dict-item]

    def up(self) -> "Net":
        self.network.keep("a", "b")
        self.run(HELLO_SECONDS + FIRST_RETRY_SECONDS)
        assert [what for _, what in self.a.links] == ["up b"]
        assert [what for _, what in self.b.links] == ["up a"]
        return self

    def run(self, seconds: float) -> None:
        """Let pass what happens in that time."""
        end = self.world.now + seconds
        done: list[bool] = []
        self.world.at(end, done.append, True)
        while not done:
            self.world.step()

    def send(self, what: object, size_bytes: int = 0, reliable: bool = False) -> None:
        arrives = self.b.take
        assert self.network.send("a", "b", "test", size_bytes, arrives, what, reliable=reliable)

    def arrived(self) -> list[object]:
        return [what for _, _, what in self.b.heard]


def lossy(**quality: float) -> Net:
    """A link of such a quality, which could be made because its hellos met better weather."""
    net = Net().up()
    link = net.network.link("a", "b")
    for direction in link.directions.values():
        direction.quality = direction.quality.model_copy(update=quality)
    return net


def test_a_message_takes_the_delay_and_the_time_of_its_bytes() -> None:
    net = Net().up()
    start = net.world.now
    net.send("hello", size_bytes=250)
    net.run(10.0)
    assert net.b.heard == [(pytest.approx(start + 0.25 + 0.5), "a", "hello")]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12))
def test_bytes_queue_behind_the_bytes_before_them(sizes: Sequence[int]) -> None:
    net = Net().up()
    start = net.world.now
    for number, size in enumerate(sizes):
        net.send(number, size)
    net.run(100.0)
    gone = 0.0
    assert net.arrived() == list(range(len(sizes)))
    for (at, _, _), size in zip(net.b.heard, sizes, strict=True):
        gone += size / 1000.0
        assert at == pytest.approx(start + gone + 0.5, abs=1e-5)


def test_one_direction_does_not_hold_up_the_other() -> None:
    net = Net().up()
    start = net.world.now
    net.send("bulk", size_bytes=60_000)
    net.network.send("b", "a", "test", 0, net.a.take, "quick")
    net.run(1.0)
    assert net.a.heard == [(pytest.approx(start + 0.5), "b", "quick")]


def test_jitter_adds_up_to_its_share() -> None:
    net = lossy(jitter_seconds=0.4)
    start = net.world.now
    for number in range(200):
        net.send(number)
    net.run(10.0)
    late = [at - start - 0.5 for at, _, _ in net.b.heard]
    assert len(late) == 200
    assert 0.0 <= min(late) < 0.02
    assert 0.38 < max(late) <= 0.4 + 1e-6


def test_one_link_can_be_worse_than_the_others() -> None:
    net = Net(link=[{"between": ["b", "a"], "delay_seconds": 1.5}])
    link = net.network.link("a", "b")
    assert {one.quality.delay_seconds for one in link.directions.values()} == {1.5}
    assert {one.quality.bytes_per_second for one in link.directions.values()} == {1000.0}


def test_the_share_that_is_lost_is_what_the_file_says() -> None:
    net = lossy(loss=0.3)
    for number in range(2000):
        net.send(number)
    net.run(10.0)
    assert len(net.b.heard) == 2000 - net.network.lost
    assert 0.26 < net.network.lost / 2000 < 0.34


def test_the_parts_of_a_transfer_are_never_lost_on_their_own() -> None:
    net = lossy(loss=1.0, duplication=1.0, reordering=1.0)
    for number in range(20):
        net.send(number, reliable=True)
    net.run(10.0)
    assert net.arrived() == list(range(20))


def test_a_message_that_is_duplicated_comes_twice() -> None:
    net = lossy(duplication=1.0)
    net.send("again")
    net.run(10.0)
    assert net.arrived() == ["again", "again"]


def test_reordered_messages_are_overtaken() -> None:
    net = lossy(reordering=0.5)
    start = net.world.now
    for number in range(100):
        net.send(number)
    net.run(10.0)
    assert sorted(net.arrived()) == list(range(100))  # type: ignore[type-var]
    assert net.arrived() != list(range(100))
    assert max(at for at, _, _ in net.b.heard) <= start + 0.5 + REORDERED_SECONDS + 1e-6


@pytest.mark.parametrize(
    ("direction", "a_to_b", "b_to_a"),
    [("both", False, False), ("out", False, True), ("in", True, False)],
)
def test_a_partition_stops_what_it_says(direction: str, a_to_b: bool, b_to_a: bool) -> None:
    net = Net().up()
    net.network.part(
        Partition(sites=("a",), at_seconds=0, for_seconds=9, direction=direction)  # type: ignore[arg-type]
    )
    net.send("out")
    net.network.send("b", "a", "test", 0, net.a.take, "in")
    net.run(5.0)
    assert net.arrived() == (["out"] if a_to_b else [])
    assert [what for _, _, what in net.a.heard] == (["in"] if b_to_a else [])
    assert net.network.lost == 2 - a_to_b - b_to_a


@pytest.mark.parametrize("direction", ["both", "in", "out"])
def test_a_long_partition_breaks_the_link_by_its_silence_and_a_short_one_does_not(
    direction: str,
) -> None:
    for seconds, breaks in (
        (LINK_TIMEOUT_SECONDS - 1.0, False),
        (LINK_TIMEOUT_SECONDS + 1.0, True),
    ):
        net = Net().up()
        start = net.world.now
        partition = Partition(
            sites=("b",),
            at_seconds=0,
            for_seconds=seconds,
            direction=direction,  # type: ignore[arg-type]
        )
        net.network.part(partition)
        net.run(seconds)
        net.network.heal(partition)
        net.run(2 * MAX_RETRY_SECONDS)
        ups_and_downs = [what for _, what in net.a.links]
        assert ups_and_downs == (["up b", "down b", "up b"] if breaks else ["up b"])
        if breaks:
            assert net.a.links[1][0] == pytest.approx(start + LINK_TIMEOUT_SECONDS)


def test_a_transfer_outlives_a_short_partition() -> None:
    net = Net().up()
    partition = Partition(sites=("a",), at_seconds=0, for_seconds=9)
    net.network.part(partition)
    net.send("payload", reliable=True)
    net.run(5.0)
    assert net.arrived() == []
    net.network.heal(partition)
    net.run(2.0)
    assert net.arrived() == ["payload"]


def test_what_was_sent_on_a_link_dies_with_it() -> None:
    net = Net().up()
    net.send("lost", reliable=True)
    net.network.cut("a", "b")
    assert not net.network.send("a", "b", "test", 0, net.b.take, "no link")
    net.run(10.0)
    assert net.network.is_up("a", "b")
    assert net.arrived() == []
    net.send("on the new one")
    net.run(1.0)
    assert net.arrived() == ["on the new one"]


def test_a_link_that_breaks_is_told_to_both_ends_and_made_again() -> None:
    net = Net().up()
    broken = net.world.now
    net.network.cut("a", "b")
    net.run(10.0)
    for site, other in ((net.a, "b"), (net.b, "a")):
        assert [what for _, what in site.links] == [f"up {other}", f"down {other}", f"up {other}"]
        assert site.links[1][0] == broken
        pause = site.asked_seconds[-1] - broken
        assert 0.5 * FIRST_RETRY_SECONDS <= pause <= FIRST_RETRY_SECONDS


def test_who_is_refused_tries_again_at_growing_pauses() -> None:
    net = Net()
    net.b.welcome = False
    net.network.keep("a", "b")
    net.run(200.0)
    asked = net.a.asked_seconds
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    for number, pause in enumerate(pauses, start=1):
        full = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**number)
        assert 0.5 * full <= pause <= full + 1e-5
    assert max(pauses) > 0.5 * MAX_RETRY_SECONDS
    assert net.a.links == []


def test_a_link_that_nobody_wants_any_more_is_not_made_again() -> None:
    net = Net().up()
    net.a.wanting = net.b.wanting = False
    net.network.cut("a", "b")
    asked = len(net.a.asked_seconds)
    net.run(100.0)
    assert not net.network.is_up("a", "b")
    assert len(net.a.asked_seconds) == asked


def test_a_dead_process_hears_nothing_and_is_not_told_that_its_links_broke() -> None:
    net = Net().up()
    net.send("too late")
    net.b.process.end()
    net.network.cut_all("b")
    net.run(20.0)
    assert [what for _, what in net.a.links] == ["up b", "down b"]
    assert [what for _, what in net.b.links] == ["up a"]
    assert net.arrived() == []


def test_a_frozen_process_finds_what_its_kernel_kept_when_it_goes_on() -> None:
    net = Net().up()
    net.network.heartbeats()
    net.run(HELLO_SECONDS)
    net.b.process.freeze()
    net.network.froze("b")
    beats, known = len(net.b.heartbeats), len(net.b.heard)
    net.send("first")
    net.send("second")
    net.run(LINK_TIMEOUT_SECONDS - 1.0)
    assert len(net.b.heard) == known
    assert len(net.b.heartbeats) == beats
    net.b.process.thaw(clock_stood=False)
    thawed = net.world.now
    net.run(20.0)
    assert net.b.heard[known : known + 2] == [(thawed, "a", "first"), (thawed, "a", "second")]
    assert net.network.is_up("a", "b")
    assert [what for _, what in net.a.links] == ["up b"]


def test_who_is_frozen_for_longer_than_a_link_lasts_loses_it_and_finds_out_later() -> None:
    net = Net().up()
    net.b.process.freeze()
    net.network.froze("b")
    net.send("too late")
    net.run(4 * LINK_TIMEOUT_SECONDS)
    assert [what for _, what in net.a.links] == ["up b", "down b"]
    assert [what for _, what in net.b.links] == ["up a"]
    assert not net.network.is_up("a", "b")
    net.b.process.thaw(clock_stood=False)
    thawed = net.world.now
    net.run(2 * MAX_RETRY_SECONDS)
    assert net.b.links[1] == (thawed, "down a")
    assert [what for _, what in net.b.links] == ["up a", "down a", "up a"]
    assert net.arrived() == []


def test_hellos_that_are_lost_make_no_link_of_one_end() -> None:
    linked_seconds = []
    for seed in range(20):
        net = Net(seed, links={**PLAIN, "loss": 0.5})
        net.network.keep("a", "b")
        net.run(300.0)
        assert [what for _, what in net.a.links] == ["up b"]
        assert [what for _, what in net.b.links] == ["up a"]
        linked_seconds.append(net.a.links[0][0])
    # At the first try, and after a few.
    assert min(linked_seconds) < HELLO_SECONDS + FIRST_RETRY_SECONDS < max(linked_seconds)


def test_heartbeats_tell_a_new_round_once_and_cost_bytes_always() -> None:
    net = Net().up()
    net.network.heartbeats()
    net.a.engine.round_number = 4
    net.run(10.0 * HEARTBEAT_SECONDS + 0.1)
    assert net.arrived() == [0, 4]
    assert [sender for _, sender in net.b.heartbeats] == ["a"] * 11
    assert net.network.traffic["a"].sent["heartbeat"] == 11 * 80
    assert net.network.traffic["b"].total == net.network.traffic["b"].sent["hello"] + 11 * 80


def test_the_same_seed_draws_the_same_losses() -> None:
    def survivors(seed: int) -> list[object]:
        net = Net(seed).up()
        for direction in net.network.link("a", "b").directions.values():
            direction.quality = direction.quality.model_copy(update={"loss": 0.5})
        for number in range(50):
            net.send(number)
        net.run(5.0)
        return net.arrived()

    assert survivors(1) == survivors(1)
    assert survivors(1) != survivors(2)
