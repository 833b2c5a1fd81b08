"""How long the parts of a round took, by the daemon's own clock."""

from dataclasses import dataclass, field

from p2pfed.protocol.phases import Phase


@dataclass(slots=True)
class RoundTimes:
    """Seconds spent in each phase of the current round and of the last whole one."""

    phase: Phase = Phase.STARTING
    since_seconds: float = 0.0
    current: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    def entered(self, phase: Phase, now: float) -> None:
        """Note a change of phase; entering TRAINING begins another round."""
        if phase is self.phase:
            return
        spent = self.current.get(self.phase.value, 0.0) + now - self.since_seconds
        self.current[self.phase.value] = spent
        if phase in (Phase.TRAINING, Phase.FINISHED):
            self.last, self.current = self.current, {}
        self.phase, self.since_seconds = phase, now
