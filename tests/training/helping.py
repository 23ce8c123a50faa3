"""A process that helps to train the tiny network of these tests: ``python -m tests.training.helping``."""

import pickle
import sys
from multiprocessing.connection import Connection

import torch

from dmx.training.helper import StepShare, serve, tell_errors
from dmx.training.settings import FitSettings
from dmx.training.state import new_state
from tests.training.conftest import TinyNetwork, make_batch


def main() -> None:
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])

    def work() -> None:
        settings: FitSettings
        process, settings = pickle.loads(connection.recv_bytes())
        share = StepShare(new_state(TinyNetwork(), settings), make_batch, settings, process=process, memory=memory)
        serve(share, connection, settings=settings, device=torch.device("cpu"))

    tell_errors(connection, work)


if __name__ == "__main__":
    main()
