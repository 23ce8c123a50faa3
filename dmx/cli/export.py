"""``dmx export``."""

from pathlib import Path
from typing import Annotated

import typer

from dmx.cli.config import Trust
from dmx.cli.runs import RunName
from dmx.cli.ui import StoreAddress


def export(
    run: RunName,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="File: .safetensors, or .pth for torch.load.")
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="best, last, initial or epoch=N; else the best one, else the last."),
    ] = None,
    strip: Annotated[
        str | None,
        typer.Option("--strip", metavar="TEXT", help="Take this away from the front of all names (else 'network.')."),
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="TEXT", help="Put this before all names, e.g. module.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    store: StoreAddress = None,
    trust: Trust = None,
) -> None:
    """Write a run's weights as a plain state dict, for load_state_dict of any program."""
    from dmx.cli.report import TerminalReport, print_result
    from dmx.tracking.location import project_root
    from dmx.workflows.export import ExportRequest
    from dmx.workflows.export import export as run_export
    from dmx.workflows.session import Session

    request = ExportRequest(
        run=run,
        output=output,
        checkpoint=checkpoint,
        strip=strip,
        prefix=prefix,
        overwrite=overwrite,
        uri=store,
    )
    with TerminalReport() as report:
        done = run_export(request, Session(root=project_root(Path.cwd()), report=report))
    print_result(
        f"Wrote {done.tensors} tensors with {done.parameters:,} values, checkpoint '{done.checkpoint_name}' of "
        f"{done.run.experiment}/{done.run.name} ({done.run.id[:8]}), to {done.output}."
    )
