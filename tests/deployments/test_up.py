import signal
import threading

from deployments.up import _signals


def test_a_signal_is_heard_though_it_comes_while_another_is_being_heard() -> None:
    stopping = threading.Event()
    with _signals(stopping) as listen:
        listen()
        with stopping._cond:  # type: ignore[attr-defined]  # as `set` and `wait` hold it
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert stopping.wait(10)
