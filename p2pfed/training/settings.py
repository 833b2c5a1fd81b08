"""The part of ``[task.options]`` that is the training loop's, whatever the task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, create_model

from p2pfed.settings import Settings, validate


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
