"""Mutation testing of the numerical core: change one operator or number at a time and see whether a test fails.

``make mutants`` draws a sample of mutants per folder with a fixed seed and runs the tests of that folder that reach the
changed function. A mutant that no test notices is printed as a diff. Numbers, comparisons, conditions and arguments are
changed, while texts and the sentences of errors are not.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("training", "transfer", "sampling", "evaluation", "preprocess")
# Arguments whose absence changes nothing where the code is right: checks of length, text encodings, memory layouts.
_UNSEEN = {"strict", "encoding", "memory_format"}
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = """
[tool.mutmut]
source_paths = ["dmx"]
only_mutate = ["dmx/{folder}/*"]
also_copy = ["dmx", "docs", "experiments", "README.md", "Makefile", "benchmarks"]
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:xdist"]
do_not_mutate_patterns = ['raise \\w+', 'Error\\(', 'warn\\(', '__all__']
process_isolation = "forkserver"
timeout_multiplier = 6.0
timeout_constant = 10.0
use_git_change_detection = false
track_dependencies = false
"""


def copy_project(target: Path, folder: str, tests: list[str]) -> None:
    """Copy the tracked files and add the settings of one folder."""
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    shared = ROOT.parent / "shared"
    if shared.is_dir() and not (target.parent / "shared").exists():
        (target.parent / "shared").symlink_to(shared)
    if shared.is_dir():
        (target / "shared").symlink_to(shared)
    with (target / "pyproject.toml").open("a") as file:
        file.write(SETTINGS.format(folder=folder, tests=json.dumps(tests)))


def keep_meaningful_operators() -> None:
    """Leave out changes of texts, and of values to None: those crash, while wrong numbers go unnoticed."""
    import libcst as cst
    from mutmut.mutation import mutators

    def drop_argument(node: cst.Call) -> Iterator[cst.Call]:
        for index, argument in enumerate(node.args):
            if argument.keyword is not None and argument.keyword.value not in _UNSEEN and len(node.args) > 1:
                yield node.with_changes(args=[*node.args[:index], *node.args[index + 1 :]])

    skipped = {"operator_string", "operator_assignment", "operator_dict_arguments", "operator_lambda"}
    skipped |= {"operator_arg_removal", "operator_augmented_assignment"}
    kept = [pair for pair in mutators.mutation_operators if pair[1].__name__ not in skipped]
    mutators.mutation_operators[:] = [*kept, (cst.Call, drop_argument)]


def measure(folder: str, sample: int, seed: int, jobs: int) -> dict[str, int]:
    """Run a sample of mutants in the current folder; return how many ended in which way."""
    keep_meaningful_operators()
    from mutmut import __main__ as mutmut
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    Path("mutants").mkdir()
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.setup_source_paths()
    mutmut.create_mutants(jobs)
    found, _ = mutmut.collect_source_file_mutation_data(mutant_names=())
    names = sorted(name for _, name, _ in found)
    chosen = sorted(random.Random(f"{seed}/{folder}").sample(names, min(sample, len(names))))
    mutmut._run(chosen, jobs)
    counts: dict[str, int] = {}
    ended, _ = mutmut.collect_source_file_mutation_data(mutant_names=chosen)
    for data, name, code in ended:
        status = mutmut.status_by_exit_code[code]
        counts[status] = counts.get(status, 0) + 1
        if status not in ("killed", "timeout"):
            print(f"\n{status}: {name}")
            print(get_diff_for_mutant(name, path=data.path))
    return counts


def report(folder: str, counts: dict[str, int]) -> str:
    """Say in a line how many mutants of a folder were noticed."""
    noticed = counts.get("killed", 0) + counts.get("timeout", 0)
    total = sum(counts.values())
    return f"{folder}: {noticed} of {total} mutants killed ({noticed / max(total, 1):.0%}); {counts}"


def main() -> None:
    """Read the command line and run each folder in a process and a copy of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", default=FOLDERS, help=f"of {', '.join(FOLDERS)} (default: all)")
    parser.add_argument("--sample", type=int, default=60, help="mutants per folder (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        counts = measure(arguments.inside, arguments.sample, arguments.seed, arguments.jobs)
        Path("counts.json").write_text(json.dumps(counts))
        return
    lines = []
    for folder in arguments.folders:
        target = ROOT / "build" / "mutants" / folder
        copy_project(target, folder, [f"tests/{folder}"])
        command = [sys.executable, str(Path(__file__).resolve()), "--inside", folder]
        command += ["--sample", str(arguments.sample), "--seed", str(arguments.seed), "--jobs", str(arguments.jobs)]
        subprocess.run(command, cwd=target, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines.append(report(folder, json.loads((target / "counts.json").read_text())))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
