"""The task ``adapter``: low-rank changes of a frozen model, through peft.

Each matrix W of the chosen layers becomes W + (alpha / rank) B A, where A has ``rank`` rows and B
``rank`` columns (Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021). W is
frozen and never sent: what travels are A and B, and the head, which is trained in full.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils.error import NoMatchingPeftModuleError
from pydantic import Field, Strict, model_validator
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import Dataset

from p2pfed.errors import ConfigurationError, Problem
from p2pfed.settings import Settings
from p2pfed.training.builtin import builtin_class
from p2pfed.training.evaluation.assessment import FiguringTask, PredictingTask
from p2pfed.training.settings import LoopSettings, validate_table
from p2pfed.training.task import Datasets, FileTask
from p2pfed.training.tasks.adapter.backbone import build, check_digest, in_modules, load_weights

MAX_NAMES = 1_000
LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.")

Names = Annotated[tuple[str, ...], Strict(strict=False)]


class AdapterOptions(LoopSettings):
    """``[task.options]`` of a federation with ``kind = "adapter"``; alike at every site."""

    base: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="package.module:function, which returns the backbone with its head, a "
        "torch.nn.Module that gives the scores that the task named by of expects.",
    )
    base_options: dict[str, Any] = Field(
        default_factory=dict, description="What the function is called with. Default nothing."
    )
    backbone_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the safetensors file with the backbone's weights, which each site "
        "names as backbone_path in [data]. Default: the function gives the weights itself.",
    )
    rank: int = Field(8, ge=1, le=1024, description="Rows of A. Default 8.")
    alpha: int = Field(16, ge=1, le=65_536, description="Scale of the change. Default 16.")
    target_modules: Names = Field(
        min_length=1,
        max_length=MAX_NAMES,
        description="The layers that are adapted, by the ends of their names: linear, embedding "
        "or convolution.",
    )
    head: Names = Field(
        (), max_length=MAX_NAMES, description="Modules trained in full, by their names."
    )
    of: Literal["tabular", "image_classification", "segmentation", "signal"] = Field(
        description="The kind of task whose records, loss and figures these are."
    )
    of_options: dict[str, Any] = Field(
        default_factory=dict,
        description="That task's own options; those of the loop stand beside of.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, values in (("target_modules", self.target_modules), ("head", self.head)):
            if not all(values) or len(set(values)) != len(values):
                raise ValueError(f"{name} has an empty name, or one twice")
        return self


class AdapterData(Settings):
    """What the adapter has in ``[data]`` of a site file; the rest is the task's named by of."""

    backbone_path: str | None = Field(
        None,
        description="The safetensors file with the backbone's weights, where the federation names "
        "its digest.",
    )


class Adapted(torch.nn.Module):
    """A frozen backbone with what is trained of it.

    Its frozen batch norms keep to the statistics they came with, which training would move.
    """

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.backbone(*inputs)
        return scores

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _NormBase) and module.track_running_stats:
                own = list(module.parameters(recurse=False))
                if not any(parameter.requires_grad for parameter in own):
                    module.eval()
        return self


class Adapter:
    """The task. Takes ``[task.options]`` of the topology file and ``[data]`` of the site file."""

    def __init__(
        self,
        options: Mapping[str, Any],
        data: Mapping[str, Any],
        *,
        topology_file: Path = Path("topology.toml"),
        site_file: Path = Path("site.toml"),
    ) -> None:
        """:raises ConfigurationError: a table has bad keys, or the backbone's digest is given in
        one file and its path not in the other.
        :raises DataError: the backbone's file is not the federation's.
        """
        self.options = validate_table(AdapterOptions, options, "task.options", topology_file)
        own = {key: value for key, value in data.items() if key in AdapterData.model_fields}
        self.data = validate_table(AdapterData, own, "data", site_file)
        self.topology_file = topology_file
        self._check_backbone(site_file)
        self.inner = self._inner_task(
            {key: value for key, value in data.items() if key not in own}, site_file
        )

    def build_model(self) -> torch.nn.Module:
        """The backbone, frozen, with its adapters and its head.

        :raises ConfigurationError: the backbone has not the layers that the options name.
        :raises DataError: the file of weights does not fit the backbone.
        :raises TaskError: the function ``base`` raised.
        """
        options = self.options
        model = build(options.base, options.base_options, self.topology_file)
        if self.data.backbone_path is not None:
            load_weights(model, Path(self.data.backbone_path), options.head)
        problems = [
            Problem(
                self.topology_file,
                "task.options.head",
                name,
                "the backbone has no such module with parameters",
                "correct the name",
            )
            for name in options.head
            if not any(in_modules(tensor, [name]) for tensor, _ in model.named_parameters())
        ]
        if problems:
            raise ConfigurationError(problems)
        model.requires_grad_(False)
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            target_modules=list(options.target_modules),
            lora_dropout=0.0,
            bias="none",
        )
        try:
            adapted = Adapted(inject_adapter_in_model(config, model))
        except (NoMatchingPeftModuleError, ValueError) as error:
            raise self._refused("target_modules", str(error), "name linear layers") from error
        heads = [f"backbone.{name}" for name in options.head]
        for name, parameter in adapted.named_parameters():
            adapter = any(mark in name for mark in LORA_MARKS)
            if adapter and in_modules(name, heads):
                raise self._refused(
                    "target_modules", "adapts a layer of head", "what is trained in full needs none"
                )
            parameter.requires_grad_(adapter or in_modules(name, heads))
        return adapted

    def datasets(self) -> Datasets:
        """This site's records, as the task named by ``of`` reads them."""
        return self.inner.datasets()

    def file_dataset(self, path: Path) -> Dataset[Any]:
        """The records of another file, likewise."""
        return self.inner.file_dataset(path)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """That task's loss."""
        return self.inner.loss(model, batch)

    def metrics(self, model: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """That task's figures."""
        return self.inner.metrics(model, batches)

    def predictions(self, model: torch.nn.Module, batches: Iterable[Any]) -> Any:
        """What that task shows of each record; see :mod:`p2pfed.training.evaluation.assessment`."""
        assert isinstance(self.inner, PredictingTask)  # noqa: S101 - every built-in task is
        return self.inner.predictions(model, batches)

    def figures(self, predictions: Any) -> Mapping[str, float]:
        """That task's figures of its predictions; none where it computes none from them."""
        inner: object = self.inner
        return inner.figures(predictions) if isinstance(inner, FiguringTask) else {}

    def _inner_task(self, data: Mapping[str, Any], site_file: Path) -> FileTask:
        """The task named by ``of``, with this one's settings of the loop."""
        options = self.options
        loop = {name: getattr(options, name) for name in LoopSettings.model_fields}
        problems = [
            Problem(
                self.topology_file,
                f"task.options.of_options.{name}",
                None,
                "is a setting of the loop, which is this task's",
                "move it to [task.options]",
            )
            for name in options.of_options
            if name in loop
        ]
        if options.of == "tabular" and options.of_options.get("standardise") == "federated":
            problems.append(
                Problem(
                    self.topology_file,
                    "task.options.of_options.standardise",
                    "federated",
                    "is agreed on in the table task's own network, of which an adapter has none",
                    'declare centre and scale, with standardise = "declared"',
                )
            )
        if problems:
            raise ConfigurationError(problems)
        task_class = builtin_class(options.of, self.topology_file, "task.options.of")
        given = {name: value for name, value in loop.items() if name in options.model_fields_set}
        try:
            task = task_class(
                {**options.of_options, **given},
                data,
                topology_file=self.topology_file,
                site_file=site_file,
            )
        except ConfigurationError as error:
            raise type(error)([_nested(problem) for problem in error.problems]) from error
        assert isinstance(task, FileTask)  # noqa: S101 - every one of them is
        return task

    def _check_backbone(self, site_file: Path) -> None:
        path, digest = self.data.backbone_path, self.options.backbone_sha256
        if path is None and digest is not None:
            reason = "the federation names the digest of a file of weights"
            problem = Problem(
                site_file, "data.backbone_path", None, reason, "name the file at this site"
            )
            raise ConfigurationError([problem])
        if path is not None:
            if digest is None:
                raise self._refused(
                    "backbone_sha256",
                    "a site names a file of weights, and the federation no digest for it",
                    f"add what sha256sum prints, or remove backbone_path from {site_file}",
                )
            check_digest(Path(path), digest)

    def _refused(self, key: str, reason: str, remedy: str) -> ConfigurationError:
        problem = Problem(self.topology_file, f"task.options.{key}", None, reason, remedy)
        return ConfigurationError([problem])


def _nested(problem: Problem) -> Problem:
    """A problem of the inner task's options, with its key as the topology file has it."""
    key = problem.key
    if key == "task.options" or key.startswith("task.options."):
        key = f"task.options.of_options{key.removeprefix('task.options')}"
    return Problem(problem.file, key, problem.value, problem.reason, problem.remedy)
