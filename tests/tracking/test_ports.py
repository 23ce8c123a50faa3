"""Where MLflow's pages are served."""

import socket

from dmx.tracking.ui import HOST, free_port


def test_a_port_that_browsers_refuse_is_passed_over() -> None:
    assert free_port(6665) in range(6670, 6679)


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]

        assert free_port(port) > port
