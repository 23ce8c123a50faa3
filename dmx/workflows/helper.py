"""``python -m dmx.workflows.helper CONNECTION MEMORY``: a process that helps another one to train.

Both are descriptors that the first process hands over. Heavy libraries are imported after the process has arranged how
it ends.
"""

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmx.workflows.checked import Checked
    from dmx.workflows.processes import Orders


def main(connection: Connection, memory: int) -> None:
    """Do what the first process asks until it is gone; its signals, and those of the terminal, are not for this one."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_first_process, daemon=True).start()

    from dmx.training.helper import tell_errors

    tell_errors(connection, lambda: _help(connection, memory))


def _end_with_first_process() -> None:
    """End at once, whatever else is done here, when the first process is gone, which closes the standard input."""
    while os.read(0, 1):
        pass
    os._exit(0)


def _help(connection: Connection, memory: int) -> None:
    import pickle

    from dmx.training.helper import StepShare, serve
    from dmx.workflows.assemble import assemble
    from dmx.workflows.session import Session

    # Of the process that has started this one, see dmx.workflows.processes.
    orders: Orders = pickle.loads(connection.recv_bytes())
    checked = _checked(orders)
    assembled = assemble(checked, Session(root=orders.root))
    with assembled.share(orders.process) as batches:
        share = StepShare(
            assembled.state,
            lambda epoch, step, part: batches.get((epoch, step, part)),
            checked.settings,
            process=orders.process,
            memory=memory,
        )
        serve(share, connection, settings=checked.settings, device=orders.device)


def _checked(orders: "Orders") -> "Checked":
    """Return the checked training with a network that is built here."""
    from dmx.config.trust import trust_factory
    from dmx.model.by_task import build_by_task

    if orders.trusted is not None:
        trust_factory(orders.trusted)
    experiment, contract = orders.values["experiment"], orders.values["contract"]
    network = build_by_task(
        experiment.model,
        task=experiment.task,
        num_channels=len(contract.channels),
        num_outputs=len(contract.outputs),
        compatibility=experiment.compatibility,
        seed=experiment.seed,
        spatial_dims=contract.spatial_dims,
    )
    return orders.kind(network=network, **orders.values)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
