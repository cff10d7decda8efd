"""Ctrl-C: tell it from a callback that stops training, and find out who else must hear of it."""

import dis
import sys
from types import FrameType

__all__ = ["is_in_search", "is_raised_by_statement"]

# Where estimators are fitted one after the other.
SEARCHES = ("sklearn.model_selection.", "skunet.thresholds", "skunet.ensemble")


def is_raised_by_statement(error: BaseException) -> bool:
    """Return whether the exception comes from a `raise` statement rather than from a signal.

    skorch's callbacks end training with `raise KeyboardInterrupt`. Ctrl-C raises the same exception, but at
    whatever instruction was running.
    """
    traceback = error.__traceback__
    if traceback is None:
        return True
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def is_in_search() -> bool:
    """Return whether scikit-learn's model selection, or an estimator of several, is calling, also in a worker."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(SEARCHES):
            return True
        frame = frame.f_back
    return False
