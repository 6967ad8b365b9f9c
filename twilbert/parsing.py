"""Readers of small YAML and JSON files, which may be damaged, hand-written or hostile.

A reader returns a value of the expected shape or raises one error that names file and place: a folder or pipe instead
of a file, too many bytes, too deep nesting, duplicate keys, numbers that are not finite. Size limits bound memory and
time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn, TypeVar, cast

import yaml
from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from twilbert import storage
from twilbert.errors import TwilbertError, UsageError

_YAML_BYTES = 2**19  # a recipe has 5 kB, a task of ten thousand labels 200 kB
_RECORD_BYTES = 2**26  # results of a sweep of ten thousand trials
_ROW_BYTES = 2**26  # of a line of JSON: a trace's has some 10 bytes a sample
_DEPTH = 32
REMEDY = "restore it or make it anew"
_MOVE = "move it away"
_TAGS = {name: f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_PLAIN = {  # of YAML 1.2's core schema: NO, 007, 1:30 and 2024-01-01 are text
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"),
    "float": re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+))$|^[-+]?\.(?:inf|Inf|INF)$"
        r"|^\.(?:nan|NaN|NAN)$"
    ),
}
_Shape = TypeVar("_Shape")


def read_small(path: str, most: int, remedy: str = _MOVE) -> bytes:
    """Return the bytes of a file; TwilbertError for one of more than `most`, one that is unreadable, or no file."""
    with _opened(path, remedy) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise TwilbertError(f"{path}: larger than {most:,} bytes, the limit of such files; is it the right one?")
    return content


@contextlib.contextmanager
def _opened(path: str, remedy: str = _MOVE) -> Iterator[IO[bytes]]:
    system, inner = storage.filesystem(path)
    try:
        kind = system.get_file_info(inner).type
        if kind == fs.FileType.NotFound:
            raise TwilbertError(f"{path}: no such file")
        if kind != fs.FileType.File:
            what = "a folder" if kind == fs.FileType.Directory else "a pipe or device"
            raise TwilbertError(f"{path}: expected a file, this is {what}; {remedy}")
        with system.open_input_stream(inner) as stream:
            yield stream
    except OSError as error:
        raise TwilbertError(f"{path}: cannot be read ({error}); {remedy}") from error


# ---- JSON of this program ----------------------------------------------------------------------------------


def read_record(path: str, shape: type[_Shape], remedy: str = REMEDY) -> _Shape:
    """Return a JSON file's value as `shape` (a dataclass, list[…], dict[…]); TwilbertError naming the wrong place."""
    return check_record(read_small(path, _RECORD_BYTES, remedy), shape, path, remedy)


def read_checked(path: str, shape: type) -> dict[str, Any]:
    """Return a whole JSON object that has the fields of the dataclass `shape`; TwilbertError as `read_record`."""
    content = read_small(path, _RECORD_BYTES)
    check_record(content, shape, path)
    return check_record(content, dict[str, Any], path)


def check_record(content: bytes | str, shape: type[_Shape], where: str, remedy: str = REMEDY) -> _Shape:
    """Return JSON text as `shape`; TwilbertError as `read_record`, starting with `where`."""
    try:
        return _adapter(shape).validate_json(content, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        at = "".join(f"{part}: " for part in fault["loc"][:3])
        message = fault["msg"][0].lower() + fault["msg"][1:]
        raise TwilbertError(f"{where}: {at}{message}; the file is damaged, or of another program: {remedy}") from error


@functools.cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def read_rows(path: str, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON lines file, each an object with a whole number "step"; none where there is no file.

    An incomplete last line is skipped; damaged lines are too, and reported by one call of `say`. TwilbertError for a
    folder, pipe or device.
    """
    if not storage.exists(path):
        return
    damaged: list[int] = []
    with _opened(path) as stream:
        lines = io.BufferedReader(cast(io.RawIOBase, stream), 2**16)
        for number in itertools.count(1):
            line = lines.readline(_ROW_BYTES)
            while len(line) == _ROW_BYTES and not line.endswith(b"\n"):  # too long for a row: skip to its end
                line = b"\0" + lines.readline(_ROW_BYTES - 1)
            if not line.endswith(b"\n"):
                break
            row = _row(line)
            if row is None:
                damaged.append(number)
            else:
                yield row
    if damaged:
        others = f" and {len(damaged) - 1:,} others" if len(damaged) > 1 else ""
        say(f"{path}: line {damaged[0]}{others} damaged, skipped")


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = check_record(line, dict[str, Any], "")
    except TwilbertError:
        return None
    numbers = [value for value in row.values() if isinstance(value, int)]
    sound = type(row.get("step")) is int and row["step"] >= 0 and all(abs(number) < 2**63 for number in numbers)
    return row if sound else None


# ---- JSON of other programs ----------------------------------------------------------------------------------------


def read_json(path: str) -> Any:
    """Return a JSON file's value; UsageError naming the file, also for duplicate keys and numbers not finite."""
    try:
        return json.loads(read_small(path, _YAML_BYTES), object_pairs_hook=_once, parse_constant=float)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON: {error}; mend it") from error
    except TwilbertError as error:
        raise UsageError(str(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"the key {key} is given twice")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} is not a finite number")
        mapping[key] = value
    return mapping


# ---- YAML ----------------------------------------------------------------------------------------------------------


def read_yaml(path: str, where: str | None = None) -> Any:
    """Return the value of a user's YAML file, named `where` in messages; UsageError as `parse_yaml`."""
    where = where or path
    try:
        content = read_small(path, _YAML_BYTES)
        return parse_yaml(content.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except UsageError:
        raise
    except TwilbertError as error:
        raise UsageError(str(error)) from error


def parse_yaml(text: str, where: str) -> Any:
    """Return a YAML document's value, of plain types and finite numbers; UsageError with file, line and column.

    Keys are text, each once. Aliases and tags are refused.
    """
    return _document(text, where)[0]


def _document(text: str, where: str) -> tuple[Any, int]:
    """Return a document's value and its length in characters."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None, 0) if node is None else (loader.construct_object(node, deep=True), node.end_mark.index)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{where}{place}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def parse_value(text: str, where: str, *, is_text: bool = False) -> Any:
    """Return the value of a setting on a command line: YAML where it begins with [, {, " or ', else one scalar.

    A setting that `is_text` is what was typed: a number or true too, but for null and for quotes around all of it.
    """
    stripped = text.strip()
    starts = ('"', "'") if is_text else ("[", "{", '"', "'")
    if stripped.startswith(starts):
        value, end = _document(stripped, where)
        if end < len(stripped):
            raise UsageError(f"{where}: {stripped[end:].strip()!r} follows the value; put quotes around all of it")
        return value
    if any(_PLAIN[kind].match(stripped) for kind in (["null"] if is_text else _PLAIN)):
        return parse_yaml(stripped, where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where!a}: not UTF-8 text; write it in UTF-8") from error
    return text


def dump_yaml(value: Any) -> str:
    """Return plain data as YAML that `parse_yaml` reads back to an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """PyYAML's loader restricted to trees of plain values."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as yaml.Resolver has it
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            _refuse(event, f"*{event.anchor} refers to another value; write the value itself")
        if getattr(event, "tag", None) is not None:
            _refuse(event, f"the tag {event.tag}; write the value without it")
        self.depth += 1
        if self.depth > _DEPTH:
            _refuse(event, f"nested more than {_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                _refuse(key_node, "a list or mapping as a key; expected a name")
            key = _text(key_node)
            if key in mapping:
                _refuse(key_node, f"the key {key} is given twice; remove one")
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper that quotes text which our rules or YAML 1.1 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _refuse(at: Any, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _text(node: Any) -> str:
    if "\0" in node.value or any("\ud800" <= character <= "\udfff" for character in node.value):
        _refuse(node, "a character that no text has (NUL, or half of a pair)")
    return node.value


def _integer(node: Any) -> int:
    if len(node.value) > 18:
        _refuse(node, f"a whole number of {len(node.value)} digits; expected 18 at most")
    return int(node.value)


def _number(node: Any) -> float:
    value = float("inf" if "n" in node.value.lower() else node.value)
    if not math.isfinite(value):
        _refuse(node, f"{node.value} is not a finite number")
    return value


for _name, _pattern in _PLAIN.items():
    _firsts = {"null": ["~", "n", "N", ""], "bool": list("tTfF")}.get(_name, list("-+.0123456789"))
    _Loader.add_implicit_resolver(_TAGS[_name], _pattern, _firsts)
    _Dumper.add_implicit_resolver(_TAGS[_name], _pattern, _firsts)
_Loader.yaml_constructors = {
    _TAGS["null"]: lambda loader, node: None,
    _TAGS["bool"]: lambda loader, node: node.value.lower() == "true",
    _TAGS["int"]: lambda loader, node: _integer(node),
    _TAGS["float"]: lambda loader, node: _number(node),
    _TAGS["str"]: lambda loader, node: _text(node),
    _TAGS["seq"]: lambda loader, node: [loader.construct_object(item, deep=True) for item in node.value],
    _TAGS["map"]: lambda loader, node: loader.construct_mapping(node),
}
