import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from p2pfed.training.sampling import POSITION_FLOATS, Position, Sampler, sampler_seed


@given(
    records=st.integers(1, 50),
    batch_size=st.integers(1, 60),
    rounds=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_record_is_drawn_before_one_comes_twice_whatever_the_rounds(
    records: int, batch_size: int, rounds: list[int], seed: int
) -> None:
    sampler = Sampler(records, batch_size, seed)
    position, batches = Position(), []
    for steps in rounds:
        drawn, position = sampler.draw(position, steps)
        assert len(drawn) == steps
        batches += drawn
    assert {len(batch) for batch in batches} == {min(batch_size, records)}
    order = [index for batch in batches for index in batch]
    for start in range(0, len(order) - records + 1, records):
        assert sorted(order[start : start + records]) == list(range(records))
    assert batches == sampler.draw(Position(), sum(rounds))[0], "rounds do not change the order"


def test_each_pass_and_each_site_has_an_order_of_its_own() -> None:
    north = Sampler(40, 40, sampler_seed(0, "north"))
    first, second = north.draw(Position(), 2)[0]
    assert first != second
    assert Sampler(40, 40, sampler_seed(0, "south")).draw(Position(), 1)[0] != [first]


@given(passes=st.integers(0, 2**24 - 1), drawn=st.integers(0, 2**40))
def test_a_position_is_kept_exactly(passes: int, drawn: int) -> None:
    vector = np.zeros(POSITION_FLOATS, np.float32)
    Position(passes, drawn).write(vector)
    assert Position.read(vector) == Position(passes, drawn)


def test_a_site_that_lost_records_begins_a_new_pass() -> None:
    batches, position = Sampler(10, 5, 1).draw(Position(3, 12), 2)
    assert sorted(batches[0] + batches[1]) == list(range(10))
    assert position == Position(4, 10)
