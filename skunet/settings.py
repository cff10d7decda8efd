"""Settings of the whole process, changed for a while."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["SharedSetting"]


class SharedSetting:
    """A setting that several threads may change at a time: it is restored when the last one is done.

    Parameters
    ----------
    read : callable
        Returns the setting's value.
    write : callable
        Called with a value.

    Examples
    --------
    >>> values = [8]
    >>> setting = SharedSetting(lambda: values[0], lambda value: values.__setitem__(0, value))
    >>> with setting.changed(lambda before: before // 2):
    ...     values
    [4]
    >>> values
    [8]
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self.read = read
        self.write = write
        self.lock = threading.Lock()
        self.n_users = 0
        self.before: Any = None

    @contextmanager
    def changed(self, change: Callable[[Any], Any]) -> Iterator[None]:
        """Let the setting be `change(what it was before any thread changed it)` inside the block."""
        with self.lock:
            if self.n_users == 0:
                self.before = self.read()
            self.write(change(self.before))
            self.n_users += 1
        try:
            yield
        finally:
            with self.lock:
                self.n_users -= 1
                if self.n_users == 0:
                    self.write(self.before)
