from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from p2pfed.errors import TrainingError
from p2pfed.training.frames import Progress
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.records import record_count, to_device
from p2pfed.training.round_input import RoundInput, round_seed
from p2pfed.training.sampling import Position, Sampler, sampler_seed
from p2pfed.training.schema import Schema, prepare
from p2pfed.training.settings import LoopSettings
from p2pfed.training.task import Datasets, DeviceMemoryError, TaskError, task_code

Vector = NDArray[np.float32]
CPU = torch.device("cpu")
RECORDS = 40
SAMPLER_SEED = sampler_seed(0, "n")


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
    return learner.genesis()


def fresh_state(learner: Learner) -> Vector:
    return np.zeros(learner.layout.floats, np.float32)


def train(
    learner: Learner,
    parameters: Vector,
    state: Vector,
    round_number: int = 0,
    steps: int = 5,
    heard: list[Progress] | None = None,
) -> tuple[Vector, Vector]:
    given_ = RoundInput(
        parameters, state, round_number, steps, round_seed(0, "n", round_number), SAMPLER_SEED
    )
    parameters_out, state_out = np.zeros_like(parameters), np.zeros_like(state)
    learner.train(
        learner.task.datasets().training,
        given_,
        parameters_out,
        state_out,
        (heard if heard is not None else []).append,
    )
    return parameters_out, state_out


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_round_is_a_function_of_its_inputs(optimiser: str) -> None:
    learner = learner_of(Regression(), optimiser=optimiser, learning_rate=0.01)
    state = fresh_state(learner)
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
    parameters, state = genesis_of(learner), fresh_state(learner)
    for round_number in range(3):
        parameters, state = train(learner, parameters, state, round_number)

    plain = genesis_model(task, seed=4)
    if optimiser == "sgd":
        steps: torch.optim.Optimizer = torch.optim.SGD(
            plain.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01, fused=True
        )
    else:
        steps = torch.optim.AdamW(
            plain.parameters(), lr=0.02, betas=(0.9, 0.999), weight_decay=0.01, fused=True
        )
    features, targets = task.data.tensors
    batches, _ = Sampler(RECORDS, 8, SAMPLER_SEED).draw(Position(), 15)
    for indices in batches:
        steps.zero_grad()
        task.loss(plain, (features[indices], targets[indices])).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), clip)
        steps.step()
    learner.load(parameters, state)
    trained = learner.model.state_dict()
    for name, tensor in plain.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(trained[name], tensor), name


def test_training_learns_and_reports_every_step() -> None:
    learner = learner_of(Regression(dropout=0.0), learning_rate=0.02)
    start = genesis_of(learner)
    heard: list[Progress] = []
    state = fresh_state(learner)
    before = learner.evaluate(learner.task.datasets().holdout, start, state)
    trained = train(learner, start, state, steps=60, heard=heard)
    after = learner.evaluate(learner.task.datasets().holdout, *trained)
    assert after["error"] < 0.2 * before["error"]
    assert [progress.step for progress in heard] == list(range(1, 61))
    assert {progress.steps for progress in heard} == {60}


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
    assert Schema(schemas[0].tensors, b"frozen").digest != schemas[0].digest


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
    start, state = genesis_of(learner), fresh_state(learner)
    parameters_out, state_out = np.full_like(start, 7), np.full_like(state, 7)
    data = learner.task.datasets().training
    given_ = RoundInput(start, state, 12, 5, 0, SAMPLER_SEED)
    with pytest.raises(TrainingError, match=r"round 12, local step 2 of 5, 8 records.*nan"):
        learner.train(data, given_, parameters_out, state_out, lambda _: None)
    assert (parameters_out == 7).all()
    assert (state_out == 7).all()


class Steep(Regression):
    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(model, batch) * 1e6


def test_a_model_that_is_not_finite_is_never_a_result() -> None:
    learner = learner_of(Steep(dropout=0.0), learning_rate=1e38)
    with pytest.raises(TrainingError, match="not finite after round 0"):
        train(learner, genesis_of(learner), fresh_state(learner), steps=1)


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
        train(learner, genesis_of(learner), fresh_state(learner))


@pytest.mark.parametrize(
    "answer",
    [None, {"auc": "high"}, {str(n): 0.0 for n in range(65)}],
    ids=["none", "text", "many"],
)
def test_metrics_that_are_no_few_numbers_are_refused(answer: Any) -> None:
    learner = learner_of(Misbehaves(answer))
    with pytest.raises(TaskError):
        learner.evaluate(learner.task.datasets().holdout, genesis_of(learner), fresh_state(learner))


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


class SmallDevice(Regression):
    """Holds three records at a time."""

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if len(batch[0]) > 3:
            raise torch.OutOfMemoryError("no room")
        return super().loss(model, batch)


class Plain(Regression):
    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(3, 1)


class PlainSmallDevice(SmallDevice, Plain):
    pass


def test_a_round_that_does_not_fit_is_trained_in_smaller_parts_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    small, ample = learner_of(PlainSmallDevice()), learner_of(Plain())
    start, state = genesis_of(ample), fresh_state(ample)
    heard: list[Progress] = []
    halved = train(small, start, state, heard=heard)
    whole = train(ample, start, state)
    np.testing.assert_allclose(halved[0], whole[0], rtol=1e-5)
    assert [record.message.split("parts of ")[1][0] for record in caplog.records] == ["4", "2"]
    caplog.clear()
    train(small, *halved, round_number=1)
    assert not caplog.records, "what was learned of the device's memory lasts"


def test_parts_on_purpose_give_the_same_gradients() -> None:
    parts, whole = learner_of(Plain(), micro_batch_size=3), learner_of(Plain())
    start, state = genesis_of(whole), fresh_state(whole)
    np.testing.assert_allclose(
        train(parts, start, state)[0], train(whole, start, state)[0], rtol=1e-5
    )


def test_what_does_not_fit_at_all_is_an_error() -> None:
    class Full(Plain):
        def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("no room")

    learner = learner_of(Full())
    with pytest.raises(DeviceMemoryError, match="no room"):
        train(learner, genesis_of(learner), fresh_state(learner))


def test_mixed_precision_learns_and_keeps_float32() -> None:
    learner = learner_of(Plain(), precision="bfloat16", learning_rate=0.05, momentum=0.0)
    start, state = genesis_of(learner), fresh_state(learner)
    trained, _ = train(learner, start, state, steps=60)
    exact = train(learner_of(Plain(), learning_rate=0.05, momentum=0.0), start, state, steps=60)[0]
    assert trained.tobytes() != exact.tobytes()
    np.testing.assert_allclose(trained, exact, atol=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in learner.model.parameters())


def test_a_slow_site_may_take_fewer_steps() -> None:
    learner = learner_of(Plain())
    start, state = genesis_of(learner), fresh_state(learner)
    given_ = RoundInput(start, state, 0, 5, round_seed(0, "n", 0), SAMPLER_SEED, steps=2)
    out = np.zeros_like(start), np.zeros_like(state)
    data = learner.task.datasets().training
    assert learner.train(data, given_, *out, lambda _: None).samples == 16
    assert np.array_equal(out[0], train(learner, start, state, steps=2)[0])


def test_a_collation_of_the_task_is_used() -> None:
    class Collating(Plain):
        def collate(self, records: list[Any]) -> Any:
            features, targets = zip(*records, strict=True)
            return torch.stack(features) * 2.0, torch.stack(targets)

    learner = learner_of(Collating())
    batch = next(learner.batches(learner.task.datasets().holdout))
    assert torch.equal(batch[0], learner.task.data.tensors[0] * 2.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mixed_precision_in_parts_on_the_gpu_agrees_with_the_cpu() -> None:
    task = Regression(dropout=0.0)
    exact = learner_of(Plain(), learning_rate=0.05, momentum=0.0)
    start, state = genesis_of(exact), fresh_state(exact)
    expected, _ = train(exact, start, state, steps=60)
    model = genesis_model(Plain(), seed=4)
    prepare(model)
    settings = LoopSettings(
        batch_size=8,
        micro_batch_size=3,
        precision="bfloat16",
        learning_rate=0.05,
        momentum=0.0,
        optimiser="sgd",
    )
    heard: list[Progress] = []
    learner = Learner(Plain(), model, settings, torch.device("cuda"))
    trained, _ = train(learner, start, state, steps=60, heard=heard)
    np.testing.assert_allclose(trained, expected, atol=0.05)
    assert heard[-1].gpu_memory_bytes >= start.nbytes
    again, _ = train(learner, start, state, steps=60)
    assert again.tobytes() == trained.tobytes()

    failing = Learner(NanAtStepTwo(), genesis_model(task, seed=4), settings, torch.device("cuda"))
    with pytest.raises(TrainingError, match=r"local step 1 of 5, 8 records.*nan"):
        train(failing, genesis_of(failing), fresh_state(failing))


def test_a_loss_that_is_not_finite_in_one_part_ends_the_round() -> None:
    learner = learner_of(NanAtStepTwo(), micro_batch_size=4)
    with pytest.raises(TrainingError, match=r"local step 1 of 5, 8 records: the loss is nan"):
        train(learner, genesis_of(learner), fresh_state(learner))


def test_mixed_precision_in_parts_is_the_same_again_after_a_failed_round() -> None:
    settings = {"precision": "bfloat16", "micro_batch_size": 3, "optimiser": "adamw"}
    learner, other = learner_of(NanAtStepTwo(), **settings), learner_of(Regression(), **settings)
    start, state = genesis_of(learner), fresh_state(learner)
    with pytest.raises(TrainingError, match="nan"):
        train(learner, start, state)
    after, expected = train(learner, start, state), train(other, start, state)
    assert after[0].tobytes() == expected[0].tobytes()
    assert after[1].tobytes() == expected[1].tobytes()


class Prepares(Plain):
    """Settles the mean of the features in two rounds."""

    def build_model(self) -> torch.nn.Module:
        model = torch.nn.Linear(3, 1)
        model.register_buffer("mean", torch.zeros(3))
        return model

    def prepare(
        self,
        model: torch.nn.Module,
        dataset: Any,
        round_number: int,
        seed: int,
        prepared: bool,
    ) -> bool:
        if round_number >= 2:
            return False
        if not prepared:
            model.mean.copy_(dataset.tensors[0].mean(dim=0))
        return True


def test_a_task_may_settle_something_before_the_first_step() -> None:
    learner = learner_of(Prepares())
    start, state = genesis_of(learner), fresh_state(learner)
    first, state = train(learner, start, state)
    learner.load(first, state)
    assert torch.equal(learner.model.mean, learner.task.data.tensors[0].mean(dim=0))
    assert np.array_equal(first[: start.size - 3], start[: start.size - 3]), "no step was taken"
    mixed = first.copy()
    mixed[-3:] = 7.0  # what the others have made of it
    second, state = train(learner, mixed, state, round_number=1)
    assert (second[-3:] == 7.0).all(), "a site gives its part once"
    third, _ = train(learner, second, state, round_number=2)
    assert not np.array_equal(third, second)
    assert (third[-3:] == 7.0).all()
