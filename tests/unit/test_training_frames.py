import dataclasses
import os

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfed.training import frames
from p2pfed.training.regions import RegionLayout, Regions, create_memory

MESSAGES: list[frames.Message] = [
    frames.Open(
        task_kind="tabular",
        site="north",
        options={"hidden": [4], "columns": [{"name": "age", "centre": 1.5}]},
        data={"path": "a.csv"},
    ),
    frames.Map(size_bytes=8192, write_genesis=True),
    frames.Price(spent=((0.1, 1.0, 30), (1.0, 4.0, 1)), delta=1e-5, round_number=3, local_steps=2),
    frames.Train(round_number=3, local_steps=2, noise_secret=bytes(32)),
    frames.Evaluate(side="out"),
    frames.EvaluateFile(path="b.csv"),
    frames.Export(path="m.safetensors", metadata={"round": "3"}),
    frames.Ready(
        dimension=5,
        state_floats=5,
        kept_state_floats=2,
        schema_digest=bytes(32),
        schema=(("weight", (2, 2)), ("bias", ())),
        training_records=20,
        holdout_records=10,
        device="cpu",
        torch_version="2",
    ),
    frames.Genesis(digest=bytes(32)),
    frames.Progress(step=1, steps=2, loss=0.5, samples_per_second=9.0, gpu_memory_bytes=0),
    frames.Priced(epsilon=0.5, next_spend=(0.1, 1.0, 2), epsilon_with_next=0.6),
    frames.Trained(loss=0.5, seconds=1.0, samples=64),
    frames.Evaluated(
        metrics={"auc": 0.9},
        records=10,
        intervals={"auc": (0.8, 0.95)},
        calibration={"brier": 0.1},
        bins=((0.2, 0.25, 6), (0.7, 0.5, 4)),
    ),
    frames.Exported(path="m.safetensors", size_bytes=9, sha256=bytes(32)),
    frames.Failed(
        kind="data",
        message="no",
        problems=(frames.ProblemFields("a.csv", "age", None, "is missing", None),),
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_its_frame(message: frames.Message) -> None:
    encoded = frames.encode(message)
    size = frames.LENGTH.size
    assert frames.body_length(encoded[:size]) == len(encoded) - size
    assert frames.decode(encoded[size:]) == message


def test_every_kind_of_message_is_tried_above() -> None:
    assert {type(message) for message in MESSAGES} == set(frames.Message.__args__)


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(frames.FrameError):
        frames.decode(body)


@pytest.mark.parametrize(
    "changes",
    [{"local_steps": "2"}, {"local_steps": 0}, {"surplus": 1}, {"round_number": True}],
    ids=str,
)
def test_a_message_with_other_fields_is_refused(changes: dict[str, object]) -> None:
    fields = {"round_number": 1, "local_steps": 1} | changes
    with pytest.raises(frames.FrameError, match="Train"):
        frames.decode(msgpack.packb(["Train", fields]))


def test_a_message_with_a_missing_field_is_refused() -> None:
    with pytest.raises(frames.FrameError, match="size_bytes"):
        frames.decode(msgpack.packb(["Map", {"write_genesis": False}]))


def test_an_oversized_frame_is_neither_sent_nor_awaited() -> None:
    huge = frames.EvaluateFile(path="x" * (frames.MAX_FRAME_BYTES + 1))
    with pytest.raises(frames.FrameError, match="EvaluateFile takes"):
        frames.encode(huge)
    with pytest.raises(frames.FrameError, match="announced"):
        frames.body_length(frames.LENGTH.pack(frames.MAX_FRAME_BYTES + 1))


def test_a_date_in_a_table_is_refused_with_a_remedy() -> None:
    import datetime

    message = dataclasses.replace(MESSAGES[0], data={"since": datetime.date(2024, 1, 1)})
    with pytest.raises(frames.FrameError, match="no dates"):
        frames.encode(message)


@given(dimension=st.integers(1, 5000), state_floats=st.integers(0, 5000))
def test_the_shared_vectors_do_not_overlap(dimension: int, state_floats: int) -> None:
    layout = RegionLayout(dimension, state_floats)
    descriptor = create_memory()
    try:
        os.ftruncate(descriptor, layout.size_bytes)
        ours = Regions.map(descriptor, layout, inputs_writable=True)
        theirs = Regions.map(descriptor, layout, inputs_writable=False)
    finally:
        os.close(descriptor)
    vectors = (
        ours.parameters_in,
        ours.state_in,
        ours.parameters_out,
        ours.state_out,
    )
    for mark, vector in enumerate(vectors, start=1):
        vector[:] = mark
    sizes = [dimension, state_floats, dimension, state_floats]
    seen = (
        theirs.parameters_in,
        theirs.state_in,
        theirs.parameters_out,
        theirs.state_out,
    )
    for mark, (vector, size) in enumerate(zip(seen, sizes, strict=True), start=1):
        assert np.array_equal(vector, np.full(size, mark, np.float32))


def test_the_trainer_cannot_write_its_inputs() -> None:
    layout = RegionLayout(4, 4)
    descriptor = create_memory()
    try:
        os.ftruncate(descriptor, layout.size_bytes)
        theirs = Regions.map(descriptor, layout, inputs_writable=False)
    finally:
        os.close(descriptor)
    with pytest.raises(ValueError, match="read-only"):
        theirs.parameters_in[0] = 1.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        theirs.state_in.flags.writeable = True
    theirs.parameters_out[0] = 1.0
