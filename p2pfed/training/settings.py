"""The part of ``[task.options]`` that is the training loop's, whatever the task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, Strict, create_model, model_validator

from p2pfed.settings import Settings, validate

MAX_HEADS = 64


class LoopSettings(Settings):
    """How a local step is taken; alike at every site."""

    batch_size: int = Field(
        32, ge=1, description="Records a local step; fewer where the site has fewer. Default 32."
    )
    optimiser: Literal["sgd", "adamw"] = Field(
        "sgd", description="torch's SGD or AdamW; its state is kept from round to round."
    )
    learning_rate: float = Field(0.1, gt=0, description="Step size. Default 0.1.")
    momentum: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="sgd: momentum; adamw: its first coefficient. Default 0.9; 0.97 was worse "
        "under unlike data.",
    )
    second_moment: float = Field(
        0.999, ge=0, lt=1, description="adamw: its second coefficient. Default 0.999."
    )
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty (adamw: decoupled). Default 0.")
    gradient_clip_norm: float | None = Field(
        None, gt=0, description="Largest 2-norm of a step's gradient; none by default."
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Records that are on the device at a time; a step adds up the gradients of as "
        "many such parts as batch_size takes. Default batch_size.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: the forward pass in mixed precision (torch.autocast); parameters, "
        "gradients and deltas stay float32. Default float32.",
    )
    proximal: float = Field(
        0.0, ge=0, description="FedProx: strength mu of the pull to the round's start. Default 0."
    )
    normalised_steps: bool = Field(
        False,
        description="FedNova: a site that takes fewer local steps has its change scaled up to the "
        "federation's number. Default no.",
    )
    gradient_tracking: bool = Field(
        False,
        description="A decentralised SCAFFOLD: local steps are corrected for what sets the site "
        "apart from the others; sgd only. Default no.",
    )
    quasi_global_momentum: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Momentum along the federation's way instead of the site's own; sgd only, with "
        "momentum = 0. Default 0.",
    )
    local_norm: Literal["batch", "all", "none"] = Field(
        "batch",
        description="Normalisation layers that stay at their site: batch (default, FedBN), all, or "
        "none. Each site then evaluates and exports with its own.",
    )
    local_head: Annotated[tuple[str, ...], Strict(strict=False)] = Field(
        (),
        max_length=MAX_HEADS,
        description="Modules of the model that stay at their site, by name; none by default.",
    )
    ditto: float = Field(
        0.0,
        ge=0,
        description="Strength lambda of the pull that ties a personal model at each site to the "
        "federation's; it is trained beside it, and its figures are called personal_*. Default 0: "
        "none.",
    )

    @model_validator(mode="after")
    def _fitting_momentum(self) -> Self:
        needs_sgd = [
            name
            for name in ("gradient_tracking", "quasi_global_momentum")
            if getattr(self, name) and self.optimiser != "sgd"
        ]
        if needs_sgd:
            raise ValueError(f"{needs_sgd[0]} needs optimiser = 'sgd'")
        if self.quasi_global_momentum and self.momentum:
            raise ValueError("quasi_global_momentum takes the place of momentum; set momentum = 0")
        return self


SettingsT = TypeVar("SettingsT", bound=Settings)


def loop_settings(options: Mapping[str, Any], file: Path) -> LoopSettings:
    """The loop's settings out of a task's options, whose other keys are the task's own.

    :raises ConfigurationError: one problem for each bad key.
    """
    own = {key: value for key, value in options.items() if key in LoopSettings.model_fields}
    return validate_table(LoopSettings, own, "task.options", file)


def validate_table(
    model: type[SettingsT], table: Mapping[str, Any], key: str, file: Path
) -> SettingsT:
    """Validate one table of a file, naming its keys as they stand in that file.

    :param key: where the table stands, dotted: ``task.options``.
    :raises ConfigurationError: one problem for each bad key.
    """
    excerpt: type[Settings] = model
    document: dict[str, Any] = dict(table)
    steps = key.split(".")
    for step in reversed(steps):
        excerpt = create_model("Excerpt", __base__=Settings, **{step: (excerpt, ...)})  # type: ignore[call-overload]
        document = {step: document}
    validated: Any = validate(excerpt, document, file)
    for step in steps:
        validated = getattr(validated, step)
    return validated  # type: ignore[no-any-return]
