"""Load a recipe from a YAML file and `a.b=c` overrides, with every fault in one message.

Values are taken literally (`twilbert.parsing`): no environment variable or other source is filled in.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from twilbert import credentials, storage
from twilbert.errors import UsageError
from twilbert.parsing import dump_yaml, parse_value, read_yaml
from twilbert.recipe.checks import cross_faults
from twilbert.recipe.pretraining import Recipe, flattened

_Schema = TypeVar("_Schema", bound=BaseModel)
_PATHS = ("run.storage_path", "corpus.path", "corpus.tokenizer", "model.init_from")


def locate(path: str) -> str:
    """`path` itself, or the shipped recipe of that name (recipes/tiny.yaml) when no such file is here."""
    if storage.exists(path):
        return storage.absolute(path)
    shipped = shipped_recipes() / Path(path).name
    if str(Path(path).parent) in (".", "recipes") and shipped.is_file():
        return str(shipped)
    names = sorted(item.name for item in shipped_recipes().glob("*.yaml"))
    raise UsageError(f"{path}: no such recipe; give a YAML file, or one of the shipped ones: {', '.join(names)}")


def shipped_recipes() -> Path:
    """The folder of recipes inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def load(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of a YAML file with `section.key=value` overrides; UsageError that lists every fault."""
    return build(read_values(path), overrides, where=path)


def read_values(path: str) -> Any:
    """Return the values of a recipe's YAML file, unchecked; UsageError when there is none or it does not parse."""
    return read_yaml(locate(path), path)


def build(values: Any, overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """The checked recipe of plain `values` and overrides."""
    return validated(values, overrides, where, Recipe, _pretraining_faults)


def _pretraining_faults(recipe: Recipe) -> list[str]:
    # pretraining/initial_model.py checks the fields that a model to start from fills in, once it has.
    unchecked = ("model.", "corpus.max_len") if recipe.model.init_from else ()
    return [fault for fault in cross_faults(recipe) if not fault.startswith(unchecked)]


def validated(
    values: Any, overrides: Sequence[str], where: str, schema: type[_Schema], check: Callable[[_Schema], list[str]]
) -> _Schema:
    """Return `values` with overrides as `schema`; UsageError with its faults and those of `check` across fields."""
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UsageError(
            f"{where}: expected sections ({', '.join(schema.model_fields)}), found a {type(values).__name__}"
        )
    merged, faults = _merge(values, overrides, schema)
    try:
        recipe = schema.model_validate(merged)
    except ValidationError as error:
        lines: dict[str, str] = {}  # pydantic reports the faults of `a | b` once for each member
        for fault in error.errors():
            line = explain(fault, schema)
            lines.setdefault(line.partition(":")[0], line)
        faults += lines.values()
        recipe = salvage(merged, error, schema)
    if recipe is not None:
        faults += check(recipe)
    if faults or recipe is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UsageError(f"{where}: {count}\n" + "\n".join(f"  {fault}" for fault in faults))
    return recipe


def refuse_files(overrides: Sequence[str]) -> None:
    """Raise UsageError for a recipe file among the overrides of a command that takes it as --recipe."""
    for override in overrides:
        if override.endswith((".yaml", ".yml")) and "=" not in override:
            raise UsageError(f"{override}: a recipe file goes with --recipe: --recipe {override}")


def _merge(
    values: dict[str, Any], overrides: Sequence[str], schema: type[BaseModel]
) -> tuple[dict[str, Any], list[str]]:
    """Return a copy of `values` with the overrides applied, and the overrides' faults."""
    merged, faults = copy.deepcopy(values), []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", path):
            faults.append(f"{override}: expected an override section.key=value, e.g. training.max_steps=1000")
            continue
        place: Any = merged
        *sections, key = path.split(".")
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                faults.append(f"{override}: {section} is a value, which has no keys; name a section's key")
                break
        else:
            try:
                place[key] = parse_value(text, override, is_text=_takes_text(schema, path))
            except UsageError as error:
                faults.append(str(error))
    return merged, faults + _unfit_texts(merged)


def _takes_text(schema: Any, path: str) -> bool:
    """Return whether the field at a dotted path holds text (a path, a name) and nothing else but null."""
    first, _, rest = path.partition(".")
    field = getattr(schema, "model_fields", {}).get(first)
    kinds = [] if field is None else [kind for kind in get_args(field.annotation) or [field.annotation]]
    kinds = [kind for kind in kinds if kind is not type(None)]
    return any(_takes_text(kind, rest) for kind in kinds) if rest else kinds == [str]


def _unfit_texts(value: Any, path: str = "") -> list[str]:
    """Return a fault for each key or value with a ${…} (interpolation of other programs) or a password in a URI."""
    if isinstance(value, dict):
        inside = [(f"{path}.{key}" if path else str(key), key, item) for key, item in value.items()]
        return [fault for at, key, item in inside for fault in (*_unfit_texts(key, at), *_unfit_texts(item, at))]
    if isinstance(value, list):
        return [fault for number, item in enumerate(value) for fault in _unfit_texts(item, f"{path}.{number}")]
    if isinstance(value, str) and "${" in value:
        return [f"{path}: holds a ${{…}}, and nothing is filled in here; write the value itself, but no secret"]
    if isinstance(value, str) and credentials.in_address(value):
        return [f"{path}: {credentials.IN_ADDRESS}"]
    return []


def explain(fault: Any, schema: type[BaseModel]) -> str:
    """Return one pydantic fault of `schema` as `dotted.path: what is wrong; the remedy`."""
    where = _path(fault)
    dotted = ".".join(where)
    if fault["type"] == "extra_forbidden":
        known = known_paths(schema)
        siblings = [path for path in known if path.rpartition(".")[0] == ".".join(where[:-1])]
        names = {path.rpartition(".")[2]: path for path in siblings}
        near = difflib.get_close_matches(where[-1], names, 1) or difflib.get_close_matches(dotted, known, 1, 0.7)
        elsewhere = [path for path in known if path.endswith("." + where[-1])]
        hint = names.get(near[0], near[0]) if near else (elsewhere[0] if elsewhere else None)
        return f"{dotted}: unknown key" + (f"; did you mean {hint}?" if hint else f"; known here: {', '.join(names)}")
    if fault["type"] == "missing":
        return f"{dotted}: missing"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{dotted}: {fault['input']!r:.200}: {message}"


def _path(fault: Any) -> tuple[str, ...]:
    """Return a pydantic fault's keys, without the members of unions among them (literal[...], tuple[...])."""
    first, *others = map(str, fault["loc"])
    return first, *(part for part in others if "[" not in part)


def known_paths(schema: type[BaseModel], path: str = "") -> list[str]:
    """Return the dotted paths of all fields of a schema, sections before their fields."""
    paths: list[str] = []
    for key, field in schema.model_fields.items():
        paths.append(f"{path}{key}")
        for section in (field.annotation, *get_args(field.annotation)):
            if isinstance(section, type) and issubclass(section, BaseModel):
                paths += known_paths(section, f"{path}{key}.")
    return paths


def salvage(
    values: dict[str, Any], error: ValidationError, schema: type[_Schema], *, whole_sections: bool = False
) -> _Schema | None:
    """Return `values` with faulty fields at their defaults, so that cross-checks of the others are reported too.

    Where a faulty field has no default, its section is left out; None where that is needed too.
    """
    copy = json.loads(json.dumps(values, default=str))
    if whole_sections:
        for fault in error.errors():
            copy.pop(str(fault["loc"][0]), None)
    for fault in error.errors():
        *parents, last = _path(fault)
        place: Any = copy
        for part in parents:
            place = place.get(part, {}) if isinstance(place, dict) else {}
        if isinstance(place, dict):
            place.pop(last, None)
    try:
        return schema.model_validate(copy)
    except ValidationError:
        return None if whole_sections else salvage(values, error, schema, whole_sections=True)


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return Python's keyword arguments as `a.b=c` overrides: two underscores stand for a dot."""
    return [
        f"{key.replace('__', '.')}={json.dumps(value, default=str, ensure_ascii=False)}"
        for key, value in settings.items()
    ]


def dump(recipe: BaseModel) -> str:
    """Return a recipe of any kind as YAML that reads back to an equal one."""
    return dump_yaml(recipe.model_dump(mode="json"))


def absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with every path absolute, since workers run in another working directory."""
    sections: dict[str, dict[str, str]] = {}
    for key, path in _paths(recipe).items():
        section, _, field = key.partition(".")
        sections.setdefault(section, {})[field] = storage.absolute(path)
    changed = {name: getattr(recipe, name).model_copy(update=paths) for name, paths in sections.items()}
    return recipe.model_copy(update=changed)


def relative_paths(recipe: Recipe) -> dict[str, str]:
    """Return dotted path -> value of the recipe's relative paths."""
    return {
        key: path
        for key, path in _paths(recipe).items()
        if not storage.is_uri(path) and not Path(path).expanduser().is_absolute()
    }


def _paths(recipe: Recipe) -> dict[str, str]:
    values = flattened(recipe.model_dump())
    return {key: values[key] for key in _PATHS if values[key]}


def short_hash(values: dict[str, Any]) -> str:
    """Return eight hex digits of the hash of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
