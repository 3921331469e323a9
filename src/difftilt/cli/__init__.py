"""The command line: ``difftilt COMMAND``.

Exit status: 0 done; 1 a bug of ours, with its traceback, or a claim that `verify` found to fail; 2 an error that one
line explains; 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from difftilt.errors import DiffTiltError, nearest

COMMANDS = {
    "demo": ("demo", "command", "tilt a shipped model of 5'UTRs toward higher ribosome load, in a few minutes"),
    "list": ("listing", "list_command", "show tasks, models, algorithms, samplers, strategies and rewards"),
    "data": ("listing", "data_command", "show where data sets are; `data prepare NAME` downloads one"),
    "pretrain": ("pretrain", "command", "train a model of a task, its reward and its judge"),
    "finetune": ("finetune", "command", "tilt a model toward a reward"),
    "steer": ("steer", "command", "draw designs of a tilted law without training"),
    "sample": ("sample", "command", "draw designs from a run, a task or a model folder"),
    "evaluate": ("results", "evaluate_command", "measure a finished run again"),
    "report": ("results", "report_command", "write a run's page again"),
    "compare": ("results", "compare_command", "put runs side by side"),
    "campaign": ("campaign", "command", "lab in the loop: propose plates, record results, within a budget"),
    "verify": ("verify", "command", "the truth table: what each method really samples, on problems with exact answers"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process by default); returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except DiffTiltError as error:
        print(f"difftilt: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"difftilt: {stop or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `difftilt list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # help was printed
        return int(stop.code or 0)


def _dispatch(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"difftilt {version('difftilt')}")
        return 0
    if name not in COMMANDS:
        raise nearest(name, [*COMMANDS, "--help", "--version"], what="command")
    module, function, _ = COMMANDS[name]
    getattr(importlib.import_module(f"difftilt.cli.{module}"), function)(rest)
    sys.stdout.flush()
    return 0


def _help() -> str:
    lines = ["usage: difftilt COMMAND ...", "", "Tilt any diffusion model toward a reward.", ""]
    lines += [f"  {name:<10} {summary}" for name, (_, _, summary) in COMMANDS.items()]
    lines += ["", "`difftilt COMMAND --help` explains a command's flags; `difftilt --version` prints the version."]
    return "\n".join(lines)
