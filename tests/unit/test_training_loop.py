from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from p2pfed.errors import TrainingError
from p2pfed.training.frames import Progress
from p2pfed.training.loop import (
    Learner,
    RoundInput,
    draw_batches,
    genesis_model,
    record_count,
    round_seed,
    to_device,
)
from p2pfed.training.optimiser import initial_state
from p2pfed.training.schema import (
    Schema,
    local_state,
    prepare,
    read_vector,
    schema_of,
    write_vector,
)
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import Datasets, TaskError, task_code

Vector = NDArray[np.float32]
CPU = torch.device("cpu")
RECORDS = 40


class Regression:
    """Noisy least squares through batch norm and dropout: every kind of state there is."""

    def __init__(self, dropout: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(RECORDS, 3, generator=generator)
        targets = features @ torch.tensor([1.0, -2.0, 0.5])
        self.data = TensorDataset(features, targets)
        self.dropout = dropout

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(3, 5),
            torch.nn.BatchNorm1d(5),
            torch.nn.ReLU(),
            torch.nn.Dropout(self.dropout),
            torch.nn.Linear(5, 1),
        )

    def datasets(self) -> Datasets:
        return Datasets(training=self.data, holdout=self.data)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        features, targets = batch
        return ((model(features)[:, 0] - targets) ** 2).mean()

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, Any]:
        return {"error": sum(self.loss(model, batch) for batch in batches)}


def learner_of(task: Any, **settings: Any) -> Learner:
    model = genesis_model(task, seed=4)
    prepare(model)
    return Learner(task, model, LoopSettings(**{"batch_size": 8, **settings}), CPU)


def genesis_of(learner: Learner) -> Vector:
    vector = np.empty(schema_of(learner.model).dimension, np.float32)
    read_vector(learner.model, vector)
    return vector


def train(
    learner: Learner,
    parameters: Vector,
    optimiser: Vector,
    round_number: int = 0,
    steps: int = 5,
    heard: list[Progress] | None = None,
) -> tuple[Vector, Vector]:
    given_ = RoundInput(
        parameters, optimiser, round_number, steps, round_seed(0, "n", round_number)
    )
    parameters_out, optimiser_out = np.zeros_like(parameters), np.zeros_like(optimiser)
    learner.train(
        learner.task.datasets().training,
        given_,
        parameters_out,
        optimiser_out,
        (heard if heard is not None else []).append,
    )
    return parameters_out, optimiser_out


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_round_is_a_function_of_its_inputs(optimiser: str) -> None:
    learner = learner_of(Regression(), optimiser=optimiser, learning_rate=0.01)
    state = initial_state(learner.model, learner.settings)
    start = genesis_of(learner)
    first = train(learner, start, state)
    second = train(learner, *first, round_number=1)

    other = learner_of(Regression(), optimiser=optimiser, learning_rate=0.01)
    again = train(other, *first, round_number=1)
    assert second[0].tobytes() == again[0].tobytes()
    assert second[1].tobytes() == again[1].tobytes()
    assert not np.array_equal(second[0], train(other, *first, round_number=2)[0])


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_rounds_with_carried_state_equal_plain_torch_without_interruption(
    optimiser: str, clip: float | None
) -> None:
    task = Regression(dropout=0.0)
    learner = learner_of(
        task,
        optimiser=optimiser,
        learning_rate=0.02,
        weight_decay=0.01,
        gradient_clip_norm=clip,
    )
    parameters, state = genesis_of(learner), initial_state(learner.model, learner.settings)
    for round_number in range(3):
        parameters, state = train(learner, parameters, state, round_number)

    plain = genesis_model(task, seed=4)
    if optimiser == "sgd":
        steps: torch.optim.Optimizer = torch.optim.SGD(
            plain.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01
        )
    else:
        steps = torch.optim.AdamW(
            plain.parameters(), lr=0.02, betas=(0.9, 0.999), weight_decay=0.01
        )
    features, targets = task.data.tensors
    for round_number in range(3):
        for indices in draw_batches(RECORDS, 8, 5, round_seed(0, "n", round_number)):
            steps.zero_grad()
            task.loss(plain, (features[indices], targets[indices])).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(plain.parameters(), clip)
            steps.step()
    expected = np.empty_like(parameters)
    read_vector(plain, expected)
    assert parameters.tobytes() == expected.tobytes()


def test_training_learns_and_reports_every_step() -> None:
    learner = learner_of(Regression(dropout=0.0), learning_rate=0.02)
    start = genesis_of(learner)
    heard: list[Progress] = []
    before = learner.evaluate(learner.task.datasets().holdout, start)
    state = initial_state(learner.model, learner.settings)
    trained, _ = train(learner, start, state, steps=60, heard=heard)
    after = learner.evaluate(learner.task.datasets().holdout, trained)
    assert after["error"] < 0.2 * before["error"]
    assert [progress.step for progress in heard] == list(range(1, 61))
    assert {progress.steps for progress in heard} == {60}


def test_integer_buffers_neither_travel_nor_last() -> None:
    learner = learner_of(Regression())
    names = [name for name, _ in schema_of(learner.model).tensors]
    assert "1.running_mean" in names
    assert "1.num_batches_tracked" not in names
    assert local_state(learner.model).keys() == {"1.num_batches_tracked"}
    train(learner, genesis_of(learner), initial_state(learner.model, learner.settings))
    assert learner.model[1].num_batches_tracked == 5
    learner.load(genesis_of(learner))
    assert learner.model[1].num_batches_tracked == 0


def test_only_what_state_dict_keeps_travels_and_tied_parameters_travel_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model.register_buffer("kept", torch.zeros(3, dtype=torch.float64))
    model.register_buffer("scratch", torch.zeros(4), persistent=False)
    prepare(model)
    assert schema_of(model).tensors == (("0.weight", (2, 2)), ("1.bias", (2,)), ("kept", (3,)))
    vector = np.arange(9, dtype=np.float32)
    write_vector(model, vector)
    assert model[1].weight.flatten().tolist() == [0, 1, 2, 3]
    read_back = np.empty(9, np.float32)
    read_vector(model, read_back)
    assert np.array_equal(read_back, vector)
    with pytest.raises(ValueError, match="8 floats for 9"):
        write_vector(model, vector[:8])


def test_the_schema_digest_depends_on_names_shapes_and_order() -> None:
    schemas = [
        Schema((("a", (2, 3)), ("b", (1,)))),
        Schema((("a", (3, 2)), ("b", (1,)))),
        Schema((("b", (1,)), ("a", (2, 3)))),
        Schema((("a", (2, 3)), ("c", (1,)))),
    ]
    assert len({schema.digest for schema in schemas}) == len(schemas)
    assert schemas[0].digest == Schema((("a", (2, 3)), ("b", (1,)))).digest
    assert {schema.dimension for schema in schemas} == {7}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Linear(1, 1, dtype=torch.complex64), "complex"),
        (torch.nn.ReLU(), "nothing to train"),
    ],
    ids=["complex", "empty"],
)
def test_a_model_that_cannot_travel_is_refused(model: torch.nn.Module, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        prepare(model)


class NanAtStepTwo(Regression):
    calls = 0

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        self.calls += 1
        return super().loss(model, batch) * (float("nan") if self.calls == 2 else 1.0)


def test_a_loss_that_is_not_finite_ends_the_round_and_leaves_no_result() -> None:
    learner = learner_of(NanAtStepTwo())
    start, state = genesis_of(learner), initial_state(learner.model, learner.settings)
    parameters_out, optimiser_out = np.full_like(start, 7), np.full_like(state, 7)
    data = learner.task.datasets().training
    given_ = RoundInput(start, state, 12, 5, 0)
    with pytest.raises(TrainingError, match=r"round 12, local step 2 of 5, 8 records.*nan"):
        learner.train(data, given_, parameters_out, optimiser_out, lambda _: None)
    assert (parameters_out == 7).all()
    assert (optimiser_out == 7).all()


class Steep(Regression):
    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(model, batch) * 1e6


def test_a_model_that_is_not_finite_is_never_a_result() -> None:
    learner = learner_of(Steep(dropout=0.0), learning_rate=1e38)
    with pytest.raises(TrainingError, match="not finite after round 0"):
        train(learner, genesis_of(learner), initial_state(learner.model, learner.settings), steps=1)


class Misbehaves(Regression):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def loss(self, *_: Any) -> Any:
        return self.answer

    def metrics(self, *_: Any) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [0.5, torch.zeros(2)], ids=["float", "vector"])
def test_a_loss_that_is_no_scalar_tensor_is_refused(answer: Any) -> None:
    learner = learner_of(Misbehaves(answer))
    with pytest.raises(TaskError, match="one element"):
        train(learner, genesis_of(learner), initial_state(learner.model, learner.settings))


@pytest.mark.parametrize(
    "answer",
    [None, {"auc": "high"}, {str(n): 0.0 for n in range(65)}],
    ids=["none", "text", "many"],
)
def test_metrics_that_are_no_few_numbers_are_refused(answer: Any) -> None:
    learner = learner_of(Misbehaves(answer))
    with pytest.raises(TaskError):
        learner.evaluate(learner.task.datasets().holdout, genesis_of(learner))


def test_an_error_of_the_task_carries_its_own_text(capsys: pytest.CaptureFixture[str]) -> None:
    expected = pytest.raises(TaskError, match="loss raised ZeroDivisionError: division by zero")
    with expected, task_code("loss"):
        1 / 0  # noqa: B018
    assert "Traceback" in capsys.readouterr().err


def test_a_build_model_that_returns_no_module_is_refused() -> None:
    class NoModule(Regression):
        def build_model(self) -> torch.nn.Module:
            return "resnet"  # type: ignore[return-value]

    with pytest.raises(TaskError, match="str"):
        genesis_model(NoModule(), 0)


def test_the_genesis_model_depends_on_the_seed_alone() -> None:
    vectors = []
    for seed in (1, 2, 1):
        torch.rand(seed)
        learner = Learner(Regression(), genesis_model(Regression(), seed), LoopSettings(), CPU)
        vectors.append(genesis_of(learner).tobytes())
    assert vectors[0] == vectors[2] != vectors[1]


@given(
    records=st.integers(1, 50),
    batch_size=st.integers(1, 60),
    steps=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
)
def test_batches_are_full_and_use_every_record_before_one_comes_twice(
    records: int, batch_size: int, steps: int, seed: int
) -> None:
    batches = draw_batches(records, batch_size, steps, seed)
    assert len(batches) == steps
    assert {len(batch) for batch in batches} == {min(batch_size, records)}
    drawn = [index for batch in batches for index in batch]
    for start in range(0, len(drawn) - records + 1, records):
        assert sorted(drawn[start : start + records]) == list(range(records))
    assert batches == draw_batches(records, batch_size, steps, seed)


def test_a_round_seed_depends_on_seed_site_and_round() -> None:
    seeds = {round_seed(s, n, r) for s in (0, 1) for n in ("north", "south") for r in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_batches_of_any_shape_reach_the_device() -> None:
    meta = torch.device("meta")
    moved = to_device({"x": [torch.zeros(1), (torch.zeros(2), "name")], "n": 3}, meta)
    assert moved["x"][0].device == moved["x"][1][0].device == meta
    assert moved["x"][1][1] == "name"
    assert moved["n"] == 3


def test_a_dataset_without_a_length_is_refused() -> None:
    with pytest.raises(TaskError, match="length"):
        record_count(object())  # type: ignore[arg-type]
