"""Which exceptions of a worker are worth a restart.

A lost process, node or connection and a device error may be gone after one. A defect of the program or a file with
wrong content fails in the same way again, and is reported at once.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path

# Anything else is restarted: a wrong False would end a run that could have gone on.
_PERMANENT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
)
# torch raises RuntimeError for wrong shapes, for lost peers (gloo, NCCL) and for devices alike.
_OF_COMMUNICATION = re.compile(
    r"gloo|nccl|cuda|cublas|cudnn|hip|xpu|peer|socket|connect|time[d-]?\s?out", re.IGNORECASE
)
_OF_TENSORS = re.compile(r"\b(shapes?|sizes?|dimensions?|dtypes?|state_dict|scalar type|can't allocate memory)\b")


def is_recoverable(error: BaseException) -> bool:
    """Whether a restart may succeed after `error`."""
    from ray.exceptions import RayError
    from safetensors import SafetensorError

    error = _root_cause(error)
    if isinstance(error, (*_PERMANENT, SafetensorError)) and not isinstance(error, RayError):
        return False
    text = str(error)
    return not (isinstance(error, RuntimeError) and _OF_TENSORS.search(text) and not _OF_COMMUNICATION.search(text))


def describe(error: BaseException) -> str:
    """The type and message of the error, and the line of this program that raised it."""
    error = _root_cause(error)
    text = " ".join(str(error).split())[:500]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "twilbert" in Path(frame.filename).parts]
    place = f" (in {Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _root_cause(error: BaseException) -> BaseException:
    """The exception that a Ray task raised, without Ray's wrapper."""
    cause = getattr(error, "cause", None)
    return _root_cause(cause) if isinstance(cause, Exception) else error
