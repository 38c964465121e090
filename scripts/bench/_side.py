"""One side of a comparison: a trainer in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class TooSlow(RuntimeError):
    """The side had not answered by its deadline."""


class Side:
    """One trainer in a process of its own, which makes a step when told to.

    Attributes:
        check: what the process reported before its first turn (TRL's side: the comparison of the two losses; ours: the
            rate of matrix products).
    """

    def __init__(
        self, take: Callable[..., None], name: str, settings: Any, mode: str = "", *, seconds: float | None = None
    ) -> None:
        """
        Args:
            take: (connection, name, settings, mode) trains, one step each time that it is told to over the connection.
            name: of the side, such as "ours".
            settings: of the comparison, with `threads`.
            mode: of the side's trainer.
            seconds: after which it is given up (`TooSlow`); None waits for ever.
        """
        self.deadline = None if seconds is None else time.monotonic() + seconds
        context = multiprocessing.get_context("spawn")
        self.connection, remote = context.Pipe()
        self.process = context.Process(target=_serve, args=(remote, take, name, settings, mode), daemon=True)
        self.process.start()
        remote.close()
        self.check: Any = None
        while (message := self._receive()) != "ready":
            self.check = message

    def step(self) -> Any:
        """Have it make a step, and return what that cost."""
        self.connection.send(True)
        return self._receive()

    def close(self) -> None:
        self.connection.send(False)
        self.process.join(timeout=60)

    def _receive(self) -> Any:
        if self.deadline is not None and not self.connection.poll(max(0.0, self.deadline - time.monotonic())):
            self.process.kill()
            self.process.join()
            raise TooSlow
        try:
            message = self.connection.recv()
        except EOFError:
            raise RuntimeError("the process of one side ended before its turn") from None
        if isinstance(message, Exception):
            raise message
        return message


def _serve(connection: Connection, take: Callable[..., None], name: str, settings: Any, mode: str) -> None:
    import torch

    torch.set_num_threads(settings.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    try:
        take(connection, name, settings, mode)
    except (EOFError, BrokenPipeError):
        return  # the other end gave up, and says why
    except Exception as error:
        connection.send(RuntimeError(f"{name}: {type(error).__name__}: {error}"))
