"""Small files that were written by hand or by a process that may have been killed: YAML and JSON, read within bounds.

Whatever lies there, a reader gets a value of the expected shape or one message that names the file and the place: a
folder or a pipe where a file should be, too many bytes, nesting without end, keys given twice, a number that is none.
Memory and time are bounded by the size that a file may have.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any, NoReturn, TypeVar

import yaml
from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from twilbert import storage
from twilbert.errors import TwilbertError, UsageError

_YAML_BYTES = 2**19  # a recipe has 5 kB, a task of ten thousand labels 200 kB
_RECORD_BYTES = 2**26  # results of a sweep of ten thousand trials
_DEPTH = 32
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


def read_small(path: str, most: int) -> bytes:
    """The bytes of a file of at most `most`; TwilbertError for one that is larger, is no file, or cannot be read."""
    system, inner = storage.filesystem(path)
    try:
        kind = system.get_file_info(inner).type
        if kind == fs.FileType.NotFound:
            raise TwilbertError(f"{path}: no such file")
        if kind != fs.FileType.File:
            found = "a folder" if kind == fs.FileType.Directory else "a pipe or device"
            raise TwilbertError(f"{path}: expected a file, this is {found}; move it away")
        with system.open_input_stream(inner) as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise TwilbertError(f"{path}: cannot be read ({error})") from error
    if len(content) > most:
        raise TwilbertError(f"{path}: larger than {most:,} bytes, which no such file is; is it the right one?")
    return content


# ---- JSON that this program wrote ----------------------------------------------------------------------------------


def read_record(path: str, shape: type[_Shape]) -> _Shape:
    """A JSON file's value as `shape` (a dataclass, list[…], dict[…]); TwilbertError naming the place that differs."""
    return check_record(read_small(path, _RECORD_BYTES), shape, path)


def check_record(content: bytes | str, shape: type[_Shape], where: str) -> _Shape:
    """JSON text as `shape`; TwilbertError as `read_record`, which begins with `where`."""
    try:
        return _adapter(shape).validate_json(content, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        at = "".join(f"{part}: " for part in fault["loc"][:3])
        message = fault["msg"][0].lower() + fault["msg"][1:]
        raise TwilbertError(
            f"{where}: {at}{message}; the file is damaged, or of another program: restore it or make it anew"
        ) from error


@functools.cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


# ---- YAML ----------------------------------------------------------------------------------------------------------


def read_yaml(path: str, where: str | None = None) -> Any:
    """The value of a YAML file that a user wrote, told of as `where`; UsageError as `parse_yaml`."""
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
    """A YAML document's value, of plain types and finite; UsageError with file, line and column where it is none.

    Keys are text as they stand there, each once. Aliases and tags are refused, so that nothing refers to anything.
    """
    return _document(text, where)[0]


def _document(text: str, where: str) -> tuple[Any, int]:
    """A document's value, and how many characters of the text stand before its end."""
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


def parse_value(text: str, where: str) -> Any:
    """The value of a setting on a command line: YAML where it begins with [, {, " or ', else one scalar, all of it."""
    stripped = text.strip()
    if stripped[:1] in ("[", "{", '"', "'"):
        value, end = _document(stripped, where)
        if end < len(stripped):
            raise UsageError(f"{where}: {stripped[end:].strip()!r} follows the value; put quotes around all of it")
        return value
    if any(pattern.match(stripped) for pattern in _PLAIN.values()):
        return parse_yaml(stripped, where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where!a}: not UTF-8 text; write it in UTF-8") from error
    return text


def dump_yaml(value: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back to an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """PyYAML without what makes a document more than a tree of plain values."""

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
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                _refuse(key_node, "a list or mapping as a key; expected a name")
            key = _text(key_node)
            if key in found:
                _refuse(key_node, f"the key {key} is given twice; remove one")
            found[key] = self.construct_object(value_node, deep=True)
        return found


class _Dumper(yaml.SafeDumper):
    """Quotes what either our rules or YAML 1.1 would read as something else than text."""

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
