"""Stop signals, in this process."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from reasoner.display import Display
from reasoner.driver import StopSignals


def test_a_signal_asks_a_second_ctrl_c_stops_and_the_handlers_come_back(capsys):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with Display(total_steps=1) as display, StopSignals(display) as stop_requested:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a library may do
        stop_requested.catch()
        assert not stop_requested()
        signal.raise_signal(signal.SIGTERM)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert "Ctrl-C again stops at once" in capsys.readouterr().out


def test_in_another_thread_there_is_nothing_to_catch():
    def block() -> bool:
        with Display(total_steps=1) as display, StopSignals(display) as stop_requested:
            return stop_requested()

    with ThreadPoolExecutor() as pool:
        assert pool.submit(block).result() is False
