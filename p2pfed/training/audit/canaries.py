"""Canaries in gradient space: records made up so that a neighbour finds them again in the deltas.

The audited model is the site's own with one more layer beside it, a ``probe`` of one weight for
each canary. A canary is a record of the site that also asks for a large change of its own weight,
and of no other; once its gradient is clipped, the whole of it lies there. No other record touches
the probe. This is the Dirac canary of Steinke, Nasr, Jagielski (arXiv:2305.08846, section 6; after
Nasr et al., *Tight Auditing of Differentially Private Machine Learning*, USENIX Security 2023),
which also fits models that are too small to hide one. Privacy does not depend on the number of
parameters, so what is shown of this model is shown of the site's training: sampling, gradients of
single records, clipping, noise and optimiser are those that the site uses.

Who sees every delta of the site adds up what became of each weight: the score.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from p2pfed.training.audit.one_run import EpsilonBound, audit_scores
from p2pfed.training.audit.rounds import Setting, collated, train_rounds
from p2pfed.training.task import Datasets, Task, TaskError

PROBE = "probe.weight"
# Of a canary's gradient before it is clipped, over the clipping norm: what the record that carries
# it adds to the rest of the model is then lost in it.
LOUDNESS = 1e4


@dataclass(frozen=True)
class CanaryRun:
    """Scores of one training run, and which canaries took part; both of shape (m,)."""

    scores: NDArray[np.float64]
    inside: NDArray[np.bool_]

    def bound(self, delta: float, confidence: float) -> EpsilonBound:
        return audit_scores(self.scores, self.inside, delta, confidence)


class _Loud(torch.autograd.Function):
    """Adds nothing to the model's output, and the same gradient to every row that has a code."""

    @staticmethod
    def forward(context: Any, probe: torch.Tensor, loudness: float) -> torch.Tensor:
        context.loudness = loudness
        return torch.zeros_like(probe)

    @staticmethod
    def backward(context: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        # Over the number of rows, as the gradient of a mean is.
        return torch.full_like(upstream[0], -context.loudness / upstream[0].shape[0]), None


class ProbedModel(torch.nn.Module):
    """A model with a probe beside it; ``codes``, shape (B, m), are of the batch to come."""

    def __init__(self, model: torch.nn.Module, canaries: int, loudness: float) -> None:
        super().__init__()
        self.inner = model
        self.probe = torch.nn.Linear(canaries, 1, bias=False)
        torch.nn.init.zeros_(self.probe.weight)
        self.loudness = loudness
        self.codes: torch.Tensor | None = None

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output = self.inner(*arguments, **named)
        if self.codes is None:
            return output
        if not isinstance(output, torch.Tensor):
            raise TaskError(f"canaries need a model that returns a tensor, not {type(output)}")
        nothing = _Loud.apply(self.probe(self.codes), self.loudness)  # type: ignore[no-untyped-call]
        return output + nothing.view(-1, *[1] * (output.dim() - 1))


class CanaryTask:
    """A task whose records carry codes; all else is the site's own task."""

    def __init__(self, task: Task, canaries: int, loudness: float) -> None:
        self._task = task
        self._canaries = canaries
        self._loudness = loudness

    def build_model(self) -> torch.nn.Module:
        return ProbedModel(self._task.build_model(), self._canaries, self._loudness)

    def datasets(self) -> Datasets:
        return self._task.datasets()

    def collate(self, records: list[Any]) -> Any:
        """Own records collated by the task, and the codes, shape (B, m)."""
        batch = collated(self._task, [record for record, _ in records])
        codes = torch.zeros(len(records), self._canaries)
        for row, (_, canary) in enumerate(records):
            if canary is not None:
                codes[row, canary] = 1.0
        return batch, codes

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        own, codes = batch
        assert isinstance(model, ProbedModel)  # noqa: S101 - of build_model
        model.codes = codes
        try:
            return self._task.loss(model, own)
        finally:
            model.codes = None

    def metrics(self, model: torch.nn.Module, batches: Any) -> Mapping[str, Any]:
        return self._task.metrics(model, (own for own, _ in batches))


class WithCanaries(Dataset[Any]):
    """The site's records, and after them the canaries that take part."""

    def __init__(self, records: Dataset[Any], indices: list[int], canaries: list[int]) -> None:
        self._records = records
        self._indices = indices
        self._canaries = canaries

    def __len__(self) -> int:
        return len(self._indices) + len(self._canaries)

    def __getitem__(self, place: int) -> tuple[Any, int | None]:
        own = len(self._indices)
        if place < own:
            return self._records[self._indices[place]], None
        canary = self._canaries[place - own]
        return self._records[self._indices[canary % own]], canary


def run_canaries(
    setting: Setting,
    records: Dataset[Any],
    indices: list[int],
    *,
    canaries: int,
    rounds: int,
    generator: np.random.Generator,
    on_progress: Callable[[int], None],
) -> CanaryRun:
    """Train once with the canaries that a fair coin chooses.

    :param setting: with noise, which may be of multiplier 0.0: the canaries rely on clipping.
    :raises TaskError: the task calls its model in a way that the probe cannot follow.
    """
    assert setting.noise is not None, "canaries are clipped"  # noqa: S101
    inside = generator.random(canaries) < 0.5
    task = CanaryTask(setting.task, canaries, LOUDNESS * setting.noise.clip_norm)
    dataset = WithCanaries(records, indices, np.flatnonzero(inside).tolist())
    heads = tuple(f"inner.{head}" for head in setting.loop.local_head)
    loop = setting.loop.model_copy(update={"local_head": heads})
    learner = replace(setting, task=task, loop=loop).learner(len(dataset))
    scores = np.zeros(canaries)
    place = _place_of(learner.schema.tensors, canaries)
    seed = int(generator.integers(2**62))
    observed = train_rounds(learner, dataset, rounds, setting.local_steps, seed)
    for number, seen in enumerate(observed, start=1):
        scores += seen.after.parameters[place].astype(np.float64) - seen.before.parameters[place]
        on_progress(number)
    return CanaryRun(scores, inside)


def _place_of(tensors: tuple[tuple[str, tuple[int, ...]], ...], canaries: int) -> slice:
    """Where the probe stands in the flat vector."""
    start = 0
    for name, shape in tensors:
        if name == PROBE:
            return slice(start, start + canaries)
        start += int(np.prod(shape))
    raise TaskError("the probe of the canaries does not travel")
