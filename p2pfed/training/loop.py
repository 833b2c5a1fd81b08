"""The training loop: a round's local steps, and the hold-out's evaluation."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from p2pfed.errors import TrainingError
from p2pfed.tasks_catalogue import PERSONAL_PREFIX
from p2pfed.training.corrections import RoundStart, corrections_for
from p2pfed.training.evaluation.assessment import (
    Assessment,
    FiguringTask,
    PredictingTask,
    assess,
)
from p2pfed.training.frames import MAX_METRICS, Evaluated, Progress
from p2pfed.training.gradients import Gradients, PlainGradients
from p2pfed.training.losses import RoundLosses
from p2pfed.training.optimiser import (
    build_optimiser,
    install_state,
    optimiser_floats,
    read_state,
    state_that_may_be_infinite,
)
from p2pfed.training.partition import partition, restore_unsent, unsent_state
from p2pfed.training.personal import PersonalModel
from p2pfed.training.privacy.randomness import SecretDraws
from p2pfed.training.privacy.sampling import poisson_batches
from p2pfed.training.privacy.settings import PrivateSettings
from p2pfed.training.progress import ProgressMeter
from p2pfed.training.records import Reader, record_count
from p2pfed.training.regions import Vector
from p2pfed.training.round_input import RoundInput, RoundSummary
from p2pfed.training.sampling import Position, Sampler
from p2pfed.training.schema import all_finite, copy_in, copy_out, floats_of, schema_of
from p2pfed.training.seeded_records import seed_generators
from p2pfed.training.settings import LoopSettings
from p2pfed.training.site_state import SiteModel, SiteState, SiteStateLayout
from p2pfed.training.task import DeviceMemoryError, PreparingTask, Task, TaskError, task_code

logger = logging.getLogger(__name__)


class Learner:
    """One model on one device, with the task and the settings that train it.

    :param privacy: with it every round is trained with differential privacy, in float32.
    :raises ConfigurationError: the settings name parts that the model has not.
    :raises TrainingError: nothing of the model would travel.
    """

    def __init__(
        self,
        task: Task,
        model: torch.nn.Module,
        settings: LoopSettings,
        device: torch.device,
        topology_file: Path = Path("topology.toml"),
        privacy: PrivateSettings | None = None,
        reader: Reader | None = None,
    ) -> None:
        """:param reader: how records are read at this site; by this process, by default."""
        self.task = task
        self.settings = settings
        self.device = device
        self.parts = partition(model, settings, topology_file)
        self.schema = schema_of(model, self.parts)
        self.model = model.to(device)
        self.gradients: Gradients = PlainGradients(task, settings, device)
        self.privacy = privacy
        self._reader = reader or Reader(task, device)
        self._optimiser = build_optimiser(self.model, settings)
        self._part_size = settings.micro_batch_size or settings.batch_size
        self._corrections = corrections_for(settings)
        self._personal = (
            PersonalModel(settings.ditto, settings.learning_rate) if settings.ditto else None
        )
        self._unsent = unsent_state(self.model, self.parts)
        self._genesis_local = _copied(self._local())
        own = floats_of(self._own())
        trained = floats_of(self._trained())
        self.layout = SiteStateLayout(
            local=floats_of(self._local()),
            personal=own if self._personal else 0,
            optimiser=optimiser_floats(self.model, settings),
            corrections=tuple(one.state_floats(trained) for one in self._corrections),
        )
        # Kept from round to round: memory that is touched for the first time costs more than the
        # copy that it is for.
        self._corrections_after = [np.zeros(n, np.float32) for n in self.layout.corrections]
        self._personal_after = np.zeros(self.layout.personal, np.float32)

    def genesis(self) -> Vector:
        """The travelling tensors as they are now, shape (d,)."""
        vector = np.empty(self.schema.dimension, np.float32)
        copy_out(self._travelling(), vector)
        return vector

    def load(self, parameters: Vector, state: Vector) -> SiteState:
        """Make the model be ``parameters``, shape (d,), with what ``state``, shape (s,), keeps of
        it, and what belongs to neither as in the genesis model."""
        copy_in(parameters, self._travelling())
        site = self.layout.over(state)
        if site.fresh:
            _assign(self._local(), self._genesis_local)
        else:
            copy_in(site.local, self._local())
        restore_unsent(self.model, self._unsent)
        return site

    def train(
        self,
        dataset: Dataset[Any],
        given: RoundInput,
        parameters_out: Vector,
        state_out: Vector,
        on_progress: Callable[[Progress], None],
        progress_interval_seconds: float = 0.0,
    ) -> RoundSummary:
        """Take a round's local steps; the result is a function of ``given`` and the records.

        Where the device's memory does not suffice, the round is trained again with each step's
        records in parts of half the size, and so are the rounds after it.

        :param parameters_out: shape (d,), float32; filled when every step has succeeded.
        :param state_out: shape (s,), float32; likewise.
        :param on_progress: called after the first and the last step, and between them after every
            step that ends such an interval later.
        :raises TaskError: the task's code failed.
        :raises TrainingError: a loss or the resulting model is not finite.
        """
        while True:
            meter = ProgressMeter(
                given.own_steps,
                self.device,
                progress_interval_seconds,
                on_progress,
                lambda: self._reader.waited_seconds,
            )
            try:
                return self._train(dataset, given, parameters_out, state_out, meter)
            except DeviceMemoryError:
                if self._part_size == 1:
                    raise
            self._halve_parts(given.round_number)

    def train_new(self, dataset: Dataset[Any], given: RoundInput) -> tuple[SiteModel, RoundSummary]:
        """As :meth:`train`, into vectors of its own; nobody hears of its progress."""
        after = SiteModel(np.empty_like(given.parameters), np.empty_like(given.state))
        return after, self.train(dataset, given, after.parameters, after.state, lambda _: None)

    def fresh(self) -> SiteModel:
        """The model as it is now, at a site that has kept nothing yet."""
        return SiteModel(self.genesis(), np.zeros(self.layout.floats, np.float32))

    def _halve_parts(self, round_number: int) -> None:
        self._part_size = max(1, min(self._part_size, self.settings.batch_size) // 2)
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "round %d does not fit into the memory of %s; each step's records go there in parts "
            "of %d from now on; set micro_batch_size to begin with that",
            round_number,
            self.device,
            self._part_size,
        )

    def _train(
        self,
        dataset: Dataset[Any],
        given: RoundInput,
        parameters_out: Vector,
        state_out: Vector,
        meter: ProgressMeter,
    ) -> RoundSummary:
        started = time.perf_counter()
        seed_everything(given.seed)
        before = self.load(given.parameters, given.state)
        draws = self._secret_draws(given)
        if isinstance(self.task, PreparingTask) and self._prepares(dataset, given, before):
            return self._prepared(given, started, parameters_out, state_out)

        batches, position = self._draw(dataset, given, before.position, draws)
        # Only what needs it is given the round's first model: it is a copy of all of it.
        needs_start = self._personal is not None or self._corrections
        start = _copied(self._trained()) if needs_start else []
        with self._private_gradients(draws):
            losses = self._local_steps(dataset, given, batches, before, start, meter)
            loss, own = losses.mean(), self._own()
            _check_finite(
                given.round_number,
                *own,
                *state_that_may_be_infinite(self._optimiser, self.settings),
                *map(torch.from_numpy, self._corrections_after),
            )
            if self._personal is not None:
                own = _copied(own)
                self._train_personal(self._personal, dataset, given, batches, before, start)
                _check_finite(given.round_number, torch.from_numpy(self._personal_after))

        # Nothing fails from here on, so that a round that failed has left no half of a result.
        after = self.layout.over(state_out)
        travelling = len(self.parts.travelling)
        copy_out(own[:travelling], parameters_out)
        copy_out(own[travelling:], after.local)
        read_state(self._optimiser, after.optimiser)
        after.personal[:] = self._personal_after
        for target, correction in zip(after.corrections, self._corrections_after, strict=True):
            target[:] = correction
        after.write_head(position, prepared=before.prepared)
        samples = sum(len(batch) for batch in batches)
        return RoundSummary(loss, time.perf_counter() - started, samples)

    def _secret_draws(self, given: RoundInput) -> SecretDraws | None:
        """What a private round draws from; None of any other."""
        if (self.privacy is None) != (given.noise_secret is None):
            raise ValueError("a secret goes with private training, and only with it")
        if given.noise_secret is None:
            return None
        return SecretDraws(given.noise_secret)

    @contextmanager
    def _private_gradients(self, draws: SecretDraws | None) -> Iterator[None]:
        """Take a private round's gradients in the block; nothing changes for any other."""
        if draws is None or self.privacy is None:
            yield
            return
        # Opacus takes a second to import, and most sites never need it.
        from p2pfed.training.privacy.gradients import PrivateGradients, largest_part  # noqa: PLC0415

        plain, self._part_size = self.gradients, min(self._part_size, largest_part(self.model))
        private = PrivateGradients(self.task, self.model, self.privacy, draws)
        self.gradients = private
        try:
            yield
        finally:
            private.close()
            self.gradients = plain

    def _draw(
        self,
        dataset: Dataset[Any],
        given: RoundInput,
        position: Position,
        draws: SecretDraws | None,
    ) -> tuple[list[list[int]], Position]:
        if draws is not None and self.privacy is not None:
            rate, records = self.privacy.sampling_rate, self.privacy.records
            return poisson_batches(draws, records, rate, given.own_steps), position
        sampler = Sampler(record_count(dataset), self.settings.batch_size, given.sampler_seed)
        return sampler.draw(position, given.own_steps)

    def _local_steps(
        self,
        dataset: Dataset[Any],
        given: RoundInput,
        batches: Sequence[list[int]],
        before: SiteState,
        start: Sequence[torch.Tensor],
        meter: ProgressMeter,
    ) -> RoundLosses:
        """Take the steps, and let the corrections take notice of what came of them."""
        trained = self._trained()
        install_state(self._optimiser, self.settings, before.optimiser)
        round_start = RoundStart(
            start, given.local_steps, len(batches), self.settings.learning_rate
        )
        for correction, state in zip(self._corrections, before.corrections, strict=True):
            correction.begin(round_start, state)
        self.model.train()
        losses = RoundLosses()
        for records in self._gradients_of_steps(dataset, given, batches, "local", losses):
            for correction in self._corrections:
                correction.correct(trained)
            with task_code("the optimiser's step"):
                self._optimiser.step()
            meter.step_done(records, losses)
        for correction, state in zip(self._corrections, self._corrections_after, strict=True):
            correction.finish(trained, state)
        return losses

    def _gradients_of_steps(
        self,
        dataset: Dataset[Any],
        given: RoundInput,
        batches: Sequence[list[int]],
        kind: str,
        losses: RoundLosses,
    ) -> Iterator[int]:
        """Fill the gradients of one step after the other, clipped where that is set.

        :param kind: of the steps, as a message shows it.
        :param losses: get the loss of each.
        :returns: an iterator over each step's number of records; the caller takes the step.
        """
        steps = self._reader.steps(dataset, batches, self._part_size, given.seed)
        for step, (records, batch) in enumerate(zip(batches, steps, strict=True), start=1):
            place = (
                f"round {given.round_number}, {kind} step {step} of {len(batches)}, "
                f"{len(records)} records"
            )
            losses.add(self.gradients.fill(self.model, batch, len(records), place), place)
            if self.settings.gradient_clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    self.model.parameters(), self.settings.gradient_clip_norm
                )
            yield len(records)

    def _train_personal(
        self,
        personal: PersonalModel,
        dataset: Dataset[Any],
        given: RoundInput,
        batches: Sequence[list[int]],
        before: SiteState,
        start: Sequence[torch.Tensor],
    ) -> None:
        """Train the site's own model on the same records; the model is changed to it."""
        self.load(given.parameters, given.state)
        if not before.fresh:
            personal.install(self._own(), before.personal)
        targets = dict(zip(self.parts.trained, start, strict=True))
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.model.train()
        losses = RoundLosses()
        for _ in self._gradients_of_steps(dataset, given, batches, "personal", losses):
            personal.step([p for _, p in named], [targets.get(name) for name, _ in named])
        losses.latest()
        personal.keep(self._own(), self._personal_after)

    def _prepares(self, dataset: Dataset[Any], given: RoundInput, before: SiteState) -> bool:
        assert isinstance(self.task, PreparingTask)  # noqa: S101 - asked before
        with task_code("prepare"):
            return self.task.prepare(
                self.model, dataset, given.round_number, given.seed, before.prepared
            )

    def _prepared(
        self, given: RoundInput, started: float, parameters_out: Vector, state_out: Vector
    ) -> RoundSummary:
        """The end of a round in which the task settled something and no step was taken."""
        own = self._own()
        _check_finite(given.round_number, *own)
        state_out[:] = given.state
        after = self.layout.over(state_out)
        copy_out(self._travelling(), parameters_out)
        copy_out(self._local(), after.local)
        if self._personal is not None:
            copy_out(own, after.personal)
        after.write_head(after.position, prepared=True)
        return RoundSummary(0.0, time.perf_counter() - started, 0)

    def evaluate(
        self, dataset: Dataset[Any], parameters: Vector, state: Vector
    ) -> dict[str, float]:
        """The task's metrics over ``dataset``, of the model ``parameters``, shape (d,), with what
        ``state``, shape (s,), keeps of it; those of a personal model are called ``personal_*``.

        :raises TaskError: the task's code failed, or its metrics are no numbers.
        """
        return self._evaluate(dataset, parameters, state, assessed=False).metrics

    def assess(self, dataset: Dataset[Any], parameters: Vector, state: Vector) -> Evaluated:
        """As ``evaluate``, with confidence intervals and calibration where the task offers its
        predictions."""
        return self._evaluate(dataset, parameters, state, assessed=True)

    @torch.no_grad()
    def _evaluate(
        self, dataset: Dataset[Any], parameters: Vector, state: Vector, *, assessed: bool
    ) -> Evaluated:
        site = self.load(parameters, state)
        metrics, assessment = self._judge(dataset, assessed=assessed)
        intervals = dict(assessment.intervals)
        if self._personal is not None and not site.fresh:
            self._personal.install(self._own(), site.personal)
            own, of_own = self._judge(dataset, assessed=assessed)
            metrics |= {PERSONAL_PREFIX + name: value for name, value in own.items()}
            intervals |= {
                PERSONAL_PREFIX + name: ends
                for name, ends in of_own.intervals.items()
                if name in own
            }
        if len(metrics) > MAX_METRICS:
            raise TaskError(
                f"metrics returned {len(metrics)} figures; at most {MAX_METRICS} are kept"
            )
        return Evaluated(
            metrics=metrics,
            records=record_count(dataset),
            intervals=intervals,
            calibration=assessment.calibration,
            bins=tuple(
                (one.mean_probability, one.observed_share, one.records) for one in assessment.bins
            ),
        )

    def _judge(
        self, dataset: Dataset[Any], *, assessed: bool
    ) -> tuple[dict[str, float], Assessment]:
        """Metrics of the model as it is, and how far they can be trusted if that is asked for."""
        self.model.eval()
        task, predictions = self.task, None
        with task_code("metrics"):
            if isinstance(task, PredictingTask) and (assessed or isinstance(task, FiguringTask)):
                predictions = task.predictions(self.model, self.batches(dataset))
            found: Mapping[str, Any] = (
                task.figures(predictions)
                if isinstance(task, FiguringTask)
                else task.metrics(self.model, self.batches(dataset))
            )
            metrics = {str(name): float(value) for name, value in found.items()}
            if predictions is None or not assessed:
                return metrics, Assessment()
            return metrics, assess(task, predictions, metrics)

    def batches(self, dataset: Dataset[Any]) -> Iterator[Any]:
        """All records of ``dataset`` in order, in batches on this learner's device."""
        return self._reader.everything(dataset)

    def _travelling(self) -> list[torch.Tensor]:
        return self.parts.travelling_tensors(self.model)

    def _local(self) -> list[torch.Tensor]:
        return self.parts.local_tensors(self.model)

    def _own(self) -> list[torch.Tensor]:
        return [*self._travelling(), *self._local()]

    def _trained(self) -> list[torch.nn.Parameter]:
        return self.parts.trained_parameters(self.model)


def _copied(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _assign(tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _check_finite(round_number: int, *tensors: torch.Tensor) -> None:
    if not all_finite(tensors):
        raise TrainingError(
            f"the model is not finite after round {round_number}; nothing is "
            "published; lower learning_rate or set gradient_clip_norm"
        )


def seed_everything(seed: int) -> None:
    """Seed every generator that a model or a dataset may draw from, on every device."""
    torch.manual_seed(seed)
    seed_generators(seed)


def genesis_model(task: Task, seed: int) -> torch.nn.Module:
    """The model that every site starts from, on the CPU.

    :raises TaskError: ``build_model`` raised, or returned no module.
    """
    seed_everything(seed)
    with task_code("build_model"):
        model = task.build_model()
    if not isinstance(model, torch.nn.Module):
        raise TaskError(f"build_model returned {type(model).__name__}, no torch.nn.Module")
    return model
