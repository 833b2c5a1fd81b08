"""Which of a model's tensors travel, which stay at their site, and which never change.

- Travelling: every trained parameter and every floating-point buffer, but for what follows.
- Local: trained at this site and never sent: normalisation layers (``local_norm``) and heads
  (``local_head``). Batch norm learns the scanner and not the disease, so each site keeps its own
  (Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR
  2021, arXiv:2102.07623); a head of its own fits a site that labels in its own way (Collins et
  al., Exploiting Shared Representations for Personalized Federated Learning, ICML 2021,
  arXiv:2102.07078).
- Frozen: parameters without ``requires_grad`` and the buffers of modules that have only such. They
  are the same at every site from the start, which the schema's digest sees to, so sending them
  would say nothing.

Integer buffers and buffers that ``state_dict()`` leaves out belong to no part: they are as in the
genesis model at the start of every round.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from p2pfed.errors import ConfigurationError, Problem, TrainingError
from p2pfed.training.settings import LoopSettings

BATCH_NORMS: tuple[type[torch.nn.Module], ...] = (
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.SyncBatchNorm,
)
ALL_NORMS: tuple[type[torch.nn.Module], ...] = (
    *BATCH_NORMS,
    torch.nn.InstanceNorm1d,
    torch.nn.InstanceNorm2d,
    torch.nn.InstanceNorm3d,
    torch.nn.GroupNorm,
    torch.nn.LayerNorm,
    torch.nn.RMSNorm,
)


@dataclass(frozen=True)
class Partition:
    """Names of tensors, each part in the order of ``named_parameters()``, ``named_buffers()``.

    :ivar trained: the travelling ones that are parameters; corrections act on these.
    """

    travelling: tuple[str, ...]
    local: tuple[str, ...]
    frozen: tuple[str, ...]
    trained: tuple[str, ...]

    def travelling_tensors(self, model: torch.nn.Module) -> list[torch.Tensor]:
        return tensors_named(model, self.travelling)

    def local_tensors(self, model: torch.nn.Module) -> list[torch.Tensor]:
        return tensors_named(model, self.local)

    def frozen_tensors(self, model: torch.nn.Module) -> list[torch.Tensor]:
        return tensors_named(model, self.frozen)

    def trained_parameters(self, model: torch.nn.Module) -> list[torch.nn.Parameter]:
        parameters = dict(model.named_parameters())
        return [parameters[name] for name in self.trained]


def partition(
    model: torch.nn.Module, settings: LoopSettings, topology_file: Path = Path("topology.toml")
) -> Partition:
    """Say which of the tensors of a model, made float32 by ``prepare``, go where.

    :param topology_file: named in messages.
    :raises ConfigurationError: ``local_head`` names nothing that is trained.
    :raises TrainingError: nothing is left that could travel.
    """
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    local = _of_norms(model, settings) | _of_heads(trained, settings, topology_file)
    persistent = model.state_dict(keep_vars=True).keys()
    buffers = [
        name
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and name in persistent
    ]
    still = {name for name, is_trained in trained.items() if not is_trained}
    still |= _buffers_of_frozen_modules(model)
    names = [*trained, *buffers]
    travelling = tuple(name for name in names if name not in local and name not in still)
    if not any(name in trained for name in travelling):
        raise TrainingError(
            "no trained parameter of the model travels: there is nothing to learn together; "
            "see requires_grad, local_norm and local_head"
        )
    return Partition(
        travelling=travelling,
        local=tuple(name for name in names if name in local and name not in still),
        frozen=tuple(name for name in names if name in still),
        trained=tuple(name for name in travelling if name in trained),
    )


def tensors_named(model: torch.nn.Module, names: tuple[str, ...]) -> list[torch.Tensor]:
    """Those tensors as they are stored: writing to them changes the model."""
    found = dict(model.named_buffers()) | {name: p.data for name, p in model.named_parameters()}
    return [found[name] for name in names]


def unsent_state(model: torch.nn.Module, parts: Partition) -> dict[str, torch.Tensor]:
    """A copy of the buffers that belong to no part, for :func:`restore_unsent`."""
    own = {*parts.travelling, *parts.local}
    return {
        name: buffer.detach().clone() for name, buffer in model.named_buffers() if name not in own
    }


@torch.no_grad()
def restore_unsent(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, buffer in model.named_buffers():
        if name in state:
            buffer.copy_(state[name])


def _of_norms(model: torch.nn.Module, settings: LoopSettings) -> set[str]:
    kinds = {"batch": BATCH_NORMS, "all": ALL_NORMS, "none": ()}[settings.local_norm]
    return {
        name
        for prefix, module in model.named_modules()
        if isinstance(module, kinds)
        for name in _own_tensors(prefix, module)
    }


def _own_tensors(prefix: str, module: torch.nn.Module) -> Iterator[str]:
    start = f"{prefix}." if prefix else ""
    for name, _ in module.named_parameters(recurse=False):
        yield start + name
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            yield start + name


def _of_heads(trained: dict[str, bool], settings: LoopSettings, topology_file: Path) -> set[str]:
    found: set[str] = set()
    problems = []
    for head in settings.local_head:
        names = {
            name
            for name, is_trained in trained.items()
            if is_trained and (name == head or name.startswith(f"{head}."))
        }
        found |= names
        if not names:
            modules = sorted({name.rpartition(".")[0] for name in trained} - {""})
            problems.append(
                Problem(
                    topology_file,
                    "task.options.local_head",
                    head,
                    "no module of the model with trained parameters has this name",
                    f"write one of {', '.join(modules[-8:])}",
                )
            )
    if problems:
        raise ConfigurationError(problems)
    return found


def _buffers_of_frozen_modules(model: torch.nn.Module) -> set[str]:
    found = set()
    for prefix, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            start = f"{prefix}." if prefix else ""
            found |= {start + name for name, _ in module.named_buffers(recurse=False)}
    return found
