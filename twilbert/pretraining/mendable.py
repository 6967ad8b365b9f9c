"""Which of a worker's exceptions another start may mend.

A lost process, node or connection and a device's fault may be gone next time. A defect of the program, or a file that
does not hold what it should, meets the same step again with the same end: that is one message, not four starts.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path

# Whatever is not named here may be mended: a wrong «no» would end a run that could have gone on.
_FOR_GOOD = (
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
_ELSEWHERE = re.compile(r"gloo|nccl|cuda|cublas|cudnn|hip|xpu|peer|socket|connect|time[d-]?\s?out", re.IGNORECASE)
_OF_TENSORS = re.compile(r"\b(shapes?|sizes?|dimensions?|dtypes?|state_dict|scalar type|can't allocate memory)\b")


def may_be_mended(error: BaseException) -> bool:
    """Whether to start again after `error`."""
    from ray.exceptions import RayError
    from safetensors import SafetensorError

    error = _inner(error)
    if isinstance(error, (*_FOR_GOOD, SafetensorError)) and not isinstance(error, RayError):
        return False
    text = str(error)
    return not (isinstance(error, RuntimeError) and _OF_TENSORS.search(text) and not _ELSEWHERE.search(text))


def described(error: BaseException) -> str:
    """The error's kind and message, and where in the program it was raised."""
    error = _inner(error)
    text = " ".join(str(error).split())[:500]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "twilbert" in Path(frame.filename).parts]
    place = f" (in {Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _inner(error: BaseException) -> BaseException:
    """What was raised in a task, where Ray wraps it in an exception of both kinds."""
    cause = getattr(error, "cause", None)
    return _inner(cause) if isinstance(cause, Exception) else error
