"""What the daemon and its exporter process say to each other: a JSON object a line."""

from pydantic import BaseModel, ConfigDict, Field

MAX_LINE_BYTES = 1024 * 1024


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def line(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"


class Begin(Message):
    """The first line: where figures go, and of which run they are.

    :ivar parameters: the run's settings, by name.
    """

    tensorboard: str | None
    mlflow: str | None
    site: str
    federation: str
    federation_id: str
    parameters: dict[str, str] = Field(default_factory=dict)


class Figures(Message):
    """Every later line: the figures of a round."""

    round: int
    at_seconds: int
    scalars: dict[str, float]


class Written(Message):
    """The answer to every line. ``errors``: why a target has not all that it should, by target."""

    errors: dict[str, str]
