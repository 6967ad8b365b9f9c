"""From a YAML file and `a.b=c` overrides to a checked `Recipe`, with every fault in one message.

Values are taken as they are written (`twilbert.parsing`): nothing is filled in from elsewhere.
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
from twilbert.recipe.pretraining import Recipe

_Schema = TypeVar("_Schema", bound=BaseModel)


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
    """What a recipe's YAML file holds, unchecked; UsageError when there is none or it does not parse."""
    return read_yaml(locate(path), path)


def build(values: Any, overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """The checked recipe of plain `values` and overrides."""
    return validated(values, overrides, where, Recipe, _pretraining_faults)


def _pretraining_faults(recipe: Recipe) -> list[str]:
    # What a model to start from fills in is judged once it has, by train/initial_model.py.
    open_still = ("model.", "corpus.max_len") if recipe.model.init_from else ()
    return [fault for fault in cross_faults(recipe) if not fault.startswith(open_still)]


def validated(
    values: Any, overrides: Sequence[str], where: str, schema: type[_Schema], judge: Callable[[_Schema], list[str]]
) -> _Schema:
    """`values` with overrides as `schema`; UsageError with its faults and those that `judge` sees across fields."""
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(
            f"{where}: expected sections ({', '.join(schema.model_fields)}), found a {type(values).__name__}"
        )
    merged, faults = _merge(values, overrides)
    try:
        recipe = schema.model_validate(merged)
    except ValidationError as error:
        found: dict[str, str] = {}  # pydantic tells the faults of `a | b` once for each side
        for fault in error.errors():
            said = explain(fault, schema)
            found.setdefault(said.partition(":")[0], said)
        faults += found.values()
        recipe = salvage(merged, error, schema)
    if recipe is not None:
        faults += judge(recipe)
    if faults or recipe is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UsageError(f"{where}: {count}\n" + "\n".join(f"  {fault}" for fault in faults))
    return recipe


def refuse_files(overrides: Sequence[str]) -> None:
    """UsageError for a recipe file among the overrides of a verb that takes it as --recipe."""
    for override in overrides:
        if override.endswith((".yaml", ".yml")) and "=" not in override:
            raise UsageError(f"{override}: a recipe file goes with --recipe: --recipe {override}")


def _merge(values: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A copy of `values` with the overrides in it, and the faults of those."""
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
                place[key] = parse_value(text, override)
            except UsageError as error:
                faults.append(str(error))
    return merged, faults + _unfit_texts(merged)


def _unfit_texts(value: Any, path: str = "") -> list[str]:
    """A fault for every key and value with a ${…}, as other programs fill in, or a password in an address."""
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
    """One pydantic fault of `schema` as `dotted.path: what is wrong; the remedy`."""
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
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{dotted}: {fault['input']!r:.200}: {message}"


def _path(fault: Any) -> tuple[str, ...]:
    """Where a pydantic fault is, without the sides of `a | b` that it names (literal[...], tuple[...])."""
    first, *others = map(str, fault["loc"])
    return first, *(part for part in others if "[" not in part)


def known_paths(schema: type[BaseModel], path: str = "") -> list[str]:
    """Dotted paths of all fields of a schema, sections before what they hold."""
    found: list[str] = []
    for key, field in schema.model_fields.items():
        found.append(f"{path}{key}")
        for section in (field.annotation, *get_args(field.annotation)):
            if isinstance(section, type) and issubclass(section, BaseModel):
                found += known_paths(section, f"{path}{key}.")
    return found


def salvage(
    values: dict[str, Any], error: ValidationError, schema: type[_Schema], *, whole_sections: bool = False
) -> _Schema | None:
    """`values` with the faulty fields at their defaults, so that cross-checks of the others are reported too.

    Where a faulty field has no default, its section goes; None where that is needed too.
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
    """Python's keyword arguments as `a.b=c` overrides: two underscores stand for a dot, values are plain data."""
    return [
        f"{key.replace('__', '.')}={json.dumps(value, default=str, ensure_ascii=False)}"
        for key, value in settings.items()
    ]


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that `load` reads back to an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with every path made absolute from this working directory (workers run in another)."""
    run = recipe.run.model_copy(update={"storage_path": storage.absolute(recipe.run.storage_path)})
    corpus = recipe.corpus.model_copy(
        update={
            "path": storage.absolute(recipe.corpus.path),
            "tokenizer": storage.absolute(recipe.corpus.tokenizer),
        }
    )
    init = recipe.model.init_from
    model = recipe.model.model_copy(update={"init_from": storage.absolute(init) if init else None})
    return recipe.model_copy(update={"run": run, "corpus": corpus, "model": model})


def relative_paths(recipe: Recipe) -> dict[str, str]:
    """Dotted path -> value of the recipe's relative paths."""
    paths = {
        "run.storage_path": recipe.run.storage_path,
        "corpus.path": recipe.corpus.path,
        "corpus.tokenizer": recipe.corpus.tokenizer,
        "model.init_from": recipe.model.init_from or "/",
    }
    return {
        key: path
        for key, path in paths.items()
        if not storage.is_uri(path) and not Path(path).expanduser().is_absolute()
    }


def short_hash(values: dict[str, Any]) -> str:
    """Eight hex digits of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
