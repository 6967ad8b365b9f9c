"""What all commands share: the parser's look, exit codes, plain progress lines and tables.

Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from twilbert import __version__, signals
from twilbert.errors import Interrupted, TwilbertError, UsageError

_STREAMS = ("stdin", "stdout", "stderr")  # by their numbers
_TRAIN_EXTRA = {"deepspeed", "pandas", "ray", "scipy", "sentencepiece", "sklearn", "wandb"}


def main() -> int:
    """What each console script calls: the verb that it is named after, interrupted from its first import to its end."""
    program = Path(sys.argv[0]).stem
    with signals.handled(signals.interrupt):
        try:
            with signals.deferred():  # libraries may catch all that is raised while they are imported
                verb = importlib.import_module(f"twilbert.{program.removeprefix('twilbert-')}")
            code = verb.main()
        except KeyboardInterrupt:
            print(f"{program}: interrupted", file=sys.stderr, flush=True)
            code = Interrupted.exit_code
    for number in signals.ENDING:  # all is done: what is left is the interpreter's own end
        signal.signal(number, lambda *_: os._exit(code))
    return code


def parser(verb: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser for `twilbert-VERB` whose --help ends with an example."""
    made = argparse.ArgumentParser(
        prog=f"twilbert-{verb}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"twilbert {__version__}")
    return made


def add_trust(made: argparse.ArgumentParser) -> None:
    """The flag of every command that opens models of strangers."""
    made.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let MODEL run the code that it brings or names (a head of somebody's own, pickled weights)",
    )


def run(made: argparse.ArgumentParser, handler: Callable[[argparse.Namespace], str], argv: Sequence[str] | None) -> int:
    """Parse `argv`, call `handler`, print the line it returns; user errors become one message and an exit code."""
    _open_standard_streams()
    args = made.parse_intermixed_args(argv)  # overrides may stand before and after flags
    try:
        with signals.handled(signals.interrupt):
            last_line = handler(args)
    except Interrupted as error:
        print(f"{made.prog}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except TwilbertError as error:
        print(f"{made.prog}: error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name not in _TRAIN_EXTRA:
            raise
        print(f"{made.prog}: error: needs the package {error.name}: pip install 'twilbert[train]'", file=sys.stderr)
        return UsageError.exit_code
    except KeyboardInterrupt:
        print(f"{made.prog}: interrupted", file=sys.stderr, flush=True)
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader went away (`| head`): not this program's failure, and nothing can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    print(last_line, flush=True)
    return 0


def _open_standard_streams() -> None:
    """Let closed standard streams (`>&-`) lead nowhere: prints would fail, and the next file get their number."""
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


def say(line: str) -> None:
    """One plain progress line on standard error."""
    print(line, file=sys.stderr, flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns to standard output: numbers to the right, text to the left."""
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
