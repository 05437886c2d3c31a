"""Ctrl-C and SIGTERM, heard between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, Self

import jax


class Stop(BaseException):
    """A signal asks for an end. Not an `Exception`, so that no evaluation swallows it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Signals:
    """Notes Ctrl-C and SIGTERM inside its context; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.number = 0
        self._urgent = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if self._urgent:
            raise Stop(number)

    @contextlib.contextmanager
    def urgent(self) -> Iterator[None]:
        """Let a signal raise `Stop` at once, where the state is not being changed."""
        # One of several processes must not leave the others in the middle of a collective.
        self._urgent = jax.process_count() == 1
        try:
            if self._urgent and self.number:
                raise Stop(self.number)
            yield
        finally:
            self._urgent = False
