"""A site's process: what is to happen in it happens in the life that asked for it, if at all, and
not while it stands still."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfed.simulation.world import World

Action = Callable[..., None]


@dataclass(frozen=True, slots=True)
class _Held:
    """What came due while the process stood still, so many seconds after it began to; a timer of
    its own, or something from outside."""

    after_seconds: float
    is_timer: bool
    action: Action
    arguments: tuple[Any, ...]


class Process:
    """One site's process, through all its lives.

    A process that is frozen (SIGSTOP) finds on waking up what its kernel kept for it: messages,
    broken links, timers that are overdue. Where its clock stood still as well, as in a virtual
    machine that was paused, its own timers still have as long to run as before.

    :ivar life: 1 for the first; ``up``: whether one lasts.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.life = 0
        self.up = False
        self.frozen = False
        self.freezes = 0
        self._frozen_at_seconds = 0.0
        self._stood_seconds = 0.0  # for how long its clock did
        self._held: list[_Held] = []

    def start(self) -> None:
        self.up = True
        self.life += 1

    def end(self) -> None:
        self.up = self.frozen = False
        self._held.clear()

    def later(self, seconds: float, action: Action, *arguments: Any) -> None:
        """Let something happen in this life, by the process's own timer; its end forgets it."""
        self._world.after(seconds, self._due, self.life, self._stood_seconds, action, arguments)

    def when_awake(self, action: Action, *arguments: Any) -> None:
        """Let something happen that comes from outside: now, or when the process wakes up."""
        if self.frozen:
            self._held.append(_Held(0.0, False, action, arguments))
        else:
            action(*arguments)

    def freeze(self) -> None:
        self.frozen = True
        self.freezes += 1
        self._frozen_at_seconds = self._world.now

    def thaw(self, *, clock_stood: bool) -> float:
        """Go on.

        :param clock_stood: by its own clock, no time has passed.
        :returns: for how many of the world's seconds it stood still.
        """
        stood_seconds = self._world.now - self._frozen_at_seconds
        if clock_stood:
            self._stood_seconds += stood_seconds
        self.frozen = False
        held, self._held = self._held, []
        for one in held:
            if one.is_timer:
                wait = one.after_seconds if clock_stood else 0.0
                self.later(wait, one.action, *one.arguments)
            else:
                self._world.after(0.0, self._from_outside, self.life, one.action, one.arguments)
        return stood_seconds

    def _from_outside(self, life: int, action: Action, arguments: tuple[Any, ...]) -> None:
        if self.up and self.life == life:
            self.when_awake(action, *arguments)

    def _due(
        self, life: int, stood_seconds: float, action: Action, arguments: tuple[Any, ...]
    ) -> None:
        if not self.up or self.life != life:
            return
        if self.frozen:
            waited = self._world.now - self._frozen_at_seconds
            self._held.append(_Held(waited, True, action, arguments))
        elif self._stood_seconds > stood_seconds:
            left = self._stood_seconds - stood_seconds
            self._world.after(left, self._due, life, self._stood_seconds, action, arguments)
        else:
            action(*arguments)
