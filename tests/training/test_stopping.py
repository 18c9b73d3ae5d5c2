import os
import signal
import threading

import pytest

from afactl.training.stopping import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_is_noted_and_the_second_one_stops(number):
    stop, before = threading.Event(), signal.getsignal(number)
    with stop_requests(stop):
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5), "the step at hand goes on"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            threading.Event().wait(5)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_signals_are_left_alone():
    before, ended = signal.getsignal(signal.SIGINT), []

    def job():
        with stop_requests(threading.Event()):
            ended.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert ended == [before]
