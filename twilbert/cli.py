"""Shared parts of all commands: parser, exit codes, progress lines and tables.

Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from twilbert import __version__, signals
from twilbert.errors import Interrupted, TwilbertError, UsageError

_STREAMS = ("stdin", "stdout", "stderr")  # by file descriptor
_TRAIN_EXTRA = {"deepspeed", "pandas", "ray", "scipy", "sentencepiece", "sklearn", "wandb"}


def main() -> int:
    """Run the command that the console script is named after, handling Ctrl-C and SIGTERM from its first import on."""
    program = Path(sys.argv[0]).stem
    with signals.handled(signals.interrupt):
        try:
            with signals.deferred():  # libraries may catch all that is raised while they are imported
                verb = importlib.import_module(f"twilbert.{program.removeprefix('twilbert-')}")
            code = verb.main()
        except KeyboardInterrupt:
            print(f"{program}: interrupted", file=sys.stderr, flush=True)
            code = Interrupted.exit_code
    if code == Interrupted.exit_code:  # libraries that were interrupted while they started may crash in their own end
        with contextlib.suppress(OSError):  # a reader that ended
            sys.stdout.flush()
        os._exit(code)
    for number in signals.ENDING:  # all is done: what is left is the interpreter's own end
        signal.signal(number, lambda *_: os._exit(code))
    return code


def parser(verb: str, description: str, example: str) -> argparse.ArgumentParser:
    """Return a parser for `twilbert-VERB` whose --help ends with an example."""
    parser = argparse.ArgumentParser(
        prog=f"twilbert-{verb}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"twilbert {__version__}")
    return parser


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the flag of every command that opens models of third parties."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let MODEL run code that it contains or names (a custom head, pickled weights)",
    )


def run(
    parser: argparse.ArgumentParser, handler: Callable[[argparse.Namespace], str], argv: Sequence[str] | None
) -> int:
    """Parse `argv`, call `handler`, print the line it returns; user errors become one message and an exit code."""
    _open_standard_streams()
    for given in sys.argv[1:] if argv is None else argv:
        if "\ufffd" in (shown := os.fsencode(given).decode(errors="replace")) and "\ufffd" not in given:
            print(
                f"{parser.prog}: error: {shown}: not UTF-8; rename the file, or set the terminal to UTF-8",
                file=sys.stderr,
            )
            return UsageError.exit_code
    args = parser.parse_intermixed_args(argv)  # overrides may come before and after flags
    try:
        with signals.handled(signals.interrupt):
            last_line = handler(args)
    except Interrupted as error:
        print(f"{parser.prog}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except TwilbertError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name not in _TRAIN_EXTRA:
            raise
        print(f"{parser.prog}: error: needs the package {error.name}: pip install 'twilbert[train]'", file=sys.stderr)
        return UsageError.exit_code
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr, flush=True)
        return Interrupted.exit_code
    except OSError:
        if (failure := _output_failure()) is None:
            raise
        return _without_output(parser.prog, failure)
    try:
        print(last_line, flush=True)
    except OSError as failure:
        return _without_output(parser.prog, failure, f": {last_line}")
    return 0


def _output_failure() -> OSError | None:
    """Return why standard output cannot be written, found by writing an empty line to it; None if it can."""
    try:
        print(flush=True)
    except OSError as error:
        return error
    return None


def _without_output(program: str, failure: OSError, rest: str = "") -> int:
    """Say that standard output cannot be written (a full disk, a reader that ended); return the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    say(f"{program}: error: standard output cannot be written ({failure.strerror}){rest}")
    return 1


def _open_standard_streams() -> None:
    """Open closed standard streams (`>&-`) on the null device: the next file would get their number."""
    closed = [number for number, name in enumerate(_STREAMS) if getattr(sys, name) is None]
    for number in closed:
        nowhere = os.open(os.devnull, os.O_RDWR)
        try:
            os.fstat(number)  # just opened, or by a library meanwhile
        except OSError:
            os.dup2(nowhere, number)
        if nowhere == number:
            os.set_inheritable(number, True)
        else:
            os.close(nowhere)
    for number in closed:
        setattr(sys, _STREAMS[number], Path(os.devnull).open("w" if number else "r"))  # noqa: SIM115 - to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8


def say(line: str) -> None:
    """Print a progress line on standard error."""
    print(line, file=sys.stderr, flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns to standard output: numbers right, text left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(head), *(len(row[i]) for row in cells)]) for i, head in enumerate(headers)]
    numeric = [all(isinstance(row[i], int | float) for row in rows) and bool(rows) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        padded = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)]
        return "  ".join(padded).rstrip()

    print(line(headers))
    print("  ".join("-" * width for width in widths))
    for row in cells:
        print(line(row))
    sys.stdout.flush()
