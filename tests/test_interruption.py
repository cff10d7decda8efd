import os
import signal

from skunet.interruption import is_in_search, is_raised_by_statement


def catch(function):
    try:
        function()
    except KeyboardInterrupt as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_statement_is_told_from_a_signal():
    def by_statement():
        raise KeyboardInterrupt

    def by_signal():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**6):
            pass

    assert is_raised_by_statement(catch(by_statement))
    assert not is_raised_by_statement(catch(by_signal))


def test_outside_of_a_search():
    assert not is_in_search()
