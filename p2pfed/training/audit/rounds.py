"""Rounds of one site, trained as the daemon's trainer trains them, for an attack to look at.

The site is alone: no neighbour's model is mixed in between its rounds. What it publishes is then
all its own, which is the most that a neighbour can have of it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from p2pfed.training.audit.likeness import leaves
from p2pfed.training.loop import Learner, genesis_model
from p2pfed.training.privacy.settings import PrivateSettings
from p2pfed.training.round_input import RoundInput
from p2pfed.training.schema import prepare
from p2pfed.training.settings import LoopSettings
from p2pfed.training.site_state import SiteModel
from p2pfed.training.task import CollatingTask, Task, task_code

_SECRET_DOMAIN = b"p2pfed/1 audit noise\x00"
MAX_HELD_BYTES = 512 * 1024 * 1024  # of records, by an attack
MAX_PREPARING_ROUNDS = 4  # a task that settles something first needs one


@dataclass(frozen=True)
class Noise:
    """What makes training private.

    :ivar noise_multiplier: sigma; 0.0 clips and samples and adds nothing, which no site can ask
        for: it is what a broken implementation would do.
    """

    noise_multiplier: float
    clip_norm: float


@dataclass(frozen=True)
class Setting:
    """How a site trains.

    :ivar seed: of the genesis model.
    :ivar records: training records of the site itself. Where an attack trains on fewer or more, a
        private step draws each with the same probability as at the site.
    :ivar noise: None without differential privacy.
    """

    task: Task
    loop: LoopSettings
    device: torch.device
    seed: int
    local_steps: int
    records: int
    noise: Noise | None = None
    topology_file: Path = Path("topology.toml")

    def with_noise(self, noise: Noise | None) -> "Setting":
        return replace(self, noise=noise)

    @property
    def sampling_rate(self) -> float:
        """With which a private step of the site draws a record."""
        return min(1.0, self.loop.batch_size / self.records)

    def learner(self, records: int) -> Learner:
        """A learner of the genesis model, for ``records`` records."""
        model = genesis_model(self.task, self.seed)
        prepare(model)
        loop, privacy = self.loop, None
        if self.noise is not None:
            batch_size = max(1, round(self.sampling_rate * records))
            loop = self.loop.model_copy(update={"batch_size": batch_size})
            privacy = PrivateSettings(
                self.noise.noise_multiplier, self.noise.clip_norm, batch_size, records
            )
        return Learner(self.task, model, loop, self.device, self.topology_file, privacy)


@dataclass(frozen=True)
class Observed:
    """A round as a neighbour sees it, which holds the model before it and the delta."""

    before: SiteModel
    after: SiteModel


def train_rounds(
    learner: Learner, dataset: Dataset[Any], rounds: int, local_steps: int, seed: int
) -> Iterator[Observed]:
    """Train so many rounds with local steps, from the learner's own model on.

    A round in which the task settles something first is trained and not counted.

    :param seed: of the order of the records, of the noise, and of what the task draws.
    :raises TrainingError: a loss or the model is not finite.
    """
    model = learner.fresh()
    name = f"audit {seed}"
    trained = number = 0
    while trained < rounds:
        secret = None
        if learner.privacy is not None:
            secret = hashlib.blake2b(
                _SECRET_DOMAIN + f"{seed}/{number}".encode(), digest_size=32
            ).digest()
        given = RoundInput.at_site(
            model,
            seed=seed,
            site=name,
            round_number=number,
            local_steps=local_steps,
            noise_secret=secret,
        )
        after, summary = learner.train_new(dataset, given)
        number += 1
        # A private round may well draw no record: its steps are taken all the same.
        if summary.samples or learner.privacy is not None or number > MAX_PREPARING_ROUNDS:
            trained += 1
            yield Observed(model, after)
        model = after


def last_model(
    learner: Learner, dataset: Dataset[Any], rounds: int, local_steps: int, seed: int
) -> SiteModel:
    """The model after so many rounds."""
    *_, last = train_rounds(learner, dataset, rounds, local_steps, seed)
    return last.after


def collated(task: Task, records: list[Any]) -> Any:
    """Records as the batch that the trainer makes of them."""
    return task.collate(records) if isinstance(task, CollatingTask) else default_collate(records)


def held_at_once(task: Task, dataset: Dataset[Any], count: int) -> int:
    """How many of ``count`` records, one at least, fit into ``MAX_HELD_BYTES`` beside each other.

    :raises TaskError: the dataset raised.
    """
    with task_code("reading the records"):
        tensors = leaves(collated(task, [dataset[0]]))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return max(1, min(count, MAX_HELD_BYTES // max(size, 1)))
