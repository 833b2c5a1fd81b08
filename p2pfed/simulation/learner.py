"""Local training of many small models in one go: one vectorised step for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call, grad, vmap

from p2pfed.simulation.tasks import SimulatedTask

Matrix = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float32]

JUDGED_AT_ONCE = 64  # models; their activations on the whole test set are in memory together


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """How each site trains: stochastic gradient descent with momentum."""

    hidden: int = 16
    learning_rate: float = 0.3
    momentum: float = 0.9
    batch_size: int = 16
    weight_decay: float = 1e-4


class BatchedLearner:
    """A network with one hidden layer, for each site its own, trained side by side.

    Which records a site draws depends on the seed, the site and the round alone, so a round
    that is trained again gives the same model, whoever is trained in the same call.
    """

    def __init__(self, task: SimulatedTask, settings: LearnerSettings, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        width = task.test_features.shape[1]
        torch.manual_seed(seed)
        first = torch.nn.Linear(width, settings.hidden)
        last = torch.nn.Linear(settings.hidden, task.classes)
        self._network = torch.nn.Sequential(first, torch.nn.ReLU(), last)
        with torch.no_grad():
            for layer in (first, last):
                # He, Zhang, Ren, Sun 2015: what ReLU layers are best started from.
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                torch.nn.init.zeros_(layer.bias)
        self._shapes = {name: p.shape for name, p in self._network.named_parameters()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self.dimension = sum(self._sizes)
        self._genesis = (
            torch.cat([p.detach().reshape(-1) for p in self._network.parameters()]).numpy().copy()
        )
        # The records of all sites in a row, and where each site's begin.
        self._features = torch.from_numpy(np.concatenate(task.features))  # (N, m)
        self._labels = torch.from_numpy(np.concatenate(task.labels))  # (N,)
        self._counts = np.array([labels.size for labels in task.labels])
        self._starts = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self._test_features = torch.from_numpy(task.test_features)
        self._test_labels = torch.from_numpy(task.test_labels)
        self._gradients = vmap(grad(self._loss))  # (p, d), (p, B, m), (p, B) -> (p, d)
        self._scores = vmap(self._forward, in_dims=(0, None))

    def genesis(self) -> Vector:
        return self._genesis.copy()

    def train(
        self,
        peers: Sequence[int],
        models: Matrix,
        momentum: Matrix,
        round_numbers: Sequence[int],
        local_steps: int,
    ) -> tuple[Matrix, Matrix]:
        """Run ``local_steps`` steps at each site.

        :param models: shape (p, d), one row a site of ``peers``; so is ``momentum``.
        :returns: the models and the momentum after them.
        """
        settings = self._settings
        model, moving = torch.from_numpy(models.copy()), torch.from_numpy(momentum.copy())
        drawn = self._draw(peers, round_numbers, local_steps)  # (steps, p, B)
        for records in drawn:
            gradient = self._gradients(model, self._features[records], self._labels[records])
            gradient += settings.weight_decay * model
            moving.mul_(settings.momentum).add_(gradient, alpha=1.0 - settings.momentum)
            model.sub_(moving, alpha=settings.learning_rate)
        return model.numpy(), moving.numpy()

    def accuracy(self, models: Matrix) -> npt.NDArray[np.float64]:
        """The share of the test records that each model gets right, shape (p,)."""
        shares = []
        with torch.no_grad():
            for part in torch.split(torch.from_numpy(models), JUDGED_AT_ONCE):
                chosen = self._scores(part, self._test_features).argmax(2)  # (p, n)
                shares.append((chosen == self._test_labels).double().mean(1))
        return np.asarray(torch.cat(shares).numpy())

    def _draw(
        self, peers: Sequence[int], round_numbers: Sequence[int], local_steps: int
    ) -> torch.Tensor:
        """The records of each step, shape (steps, p, B)."""
        shape = (local_steps, self._settings.batch_size)
        drawn = [
            self._starts[peer]
            + np.random.default_rng([self._seed, peer, number]).integers(
                0, self._counts[peer], shape
            )
            for peer, number in zip(peers, round_numbers, strict=True)
        ]
        return torch.from_numpy(np.stack(drawn, axis=1))

    def _forward(self, model: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        parts = zip(self._shapes.items(), torch.split(model, self._sizes), strict=True)
        parameters = {name: part.view(shape) for (name, shape), part in parts}
        scores: torch.Tensor = functional_call(self._network, parameters, (features,))
        return scores

    def _loss(
        self, model: torch.Tensor, features: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self._forward(model, features), labels)
