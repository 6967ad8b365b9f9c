"""Training that starts from a model folder (model.init_from): settings taken from it, and conflicts with the recipe.

Architecture, positions and vocabulary are the model's. A recipe need not repeat them; where it does, it must agree.
Dropout and the initialiser's range may differ: the recipe's values hold.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from twilbert import storage
from twilbert.data.tokenizer.tokenizer import TOKENIZER_FILE, Tokenizer
from twilbert.errors import UsageError
from twilbert.hub.folder import CONFIG_NAME, ModelFolder
from twilbert.model.config import ModelConfig, count_parameters
from twilbert.recipe.checks import cross_faults
from twilbert.recipe.pretraining import Recipe

_FREE_FIELDS = {"input_dropout", "output_dropout", "initializer_range"}
_ROP_FIELDS = {"use_rop": "use_rop", "n_hidden": "rop_n_hidden", "hidden_size": "rop_hidden_size"}


def inherit(recipe: Recipe) -> Recipe:
    """The recipe with the sizes, positions and, where it names none, the tokenizer of model.init_from.

    UsageError that lists every field which the recipe sets to something else. A folder that is missing changes
    nothing: a run that resumes does not need it, and `check_initial_model` reports it for a new one.
    """
    source = recipe.model.init_from
    if source is None or not storage.exists(storage.join(storage.absolute(source), CONFIG_NAME)):
        return recipe
    source = storage.absolute(source)
    folder = ModelFolder.open(source)
    if folder.is_fine_tuned:
        raise UsageError(f"model.init_from: {source} is a fine-tuned model; give the pre-trained one it came from")
    held: ModelConfig = folder.config
    faults: list[str] = []
    model = _merge(recipe.model, _model_fields(recipe, held), "model", faults)
    if held.pkm:
        params = {name: value for name, value in held.to_dict()["pkm_params"].items()}
        pkm_params = _merge(recipe.model.pkm_params, params, "model.pkm_params", faults)
        model = model.model_copy(update={"pkm_params": pkm_params})
    rop_values = {name: getattr(held, field) for name, field in _ROP_FIELDS.items()}
    rop = _merge(recipe.objective.rop, rop_values, "objective.rop", faults)
    objective = recipe.objective.model_copy(update={"rop": rop})
    taken = recipe.model_copy(update={"model": model, "objective": objective, "corpus": _corpus(recipe, held, source)})
    faults += [] if faults else cross_faults(taken)
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise UsageError(
            f"model.init_from: {source} is another model than the recipe asks for:\n{listed}\n"
            "  leave these keys out, or start from another model"
        )
    return taken


def check_initial_model(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """UsageError when model.init_from is no model, or was trained with another vocabulary than `tokenizer`."""
    source = recipe.model.init_from
    if source is None:
        return
    folder = ModelFolder.open(source)
    if folder.config.vocab_size != tokenizer.vocab_size:
        raise UsageError(
            f"corpus.tokenizer: {recipe.corpus.tokenizer} has {tokenizer.vocab_size:,} entries, the model of "
            f"model.init_from {folder.config.vocab_size:,}; leave corpus.tokenizer out to use the model's own"
        )
    if folder.has_tokenizer and folder.tokenizer.fingerprint != tokenizer.fingerprint:
        raise UsageError(
            f"corpus.tokenizer: {recipe.corpus.tokenizer} is not the tokenizer that {source} was trained with; "
            "leave corpus.tokenizer out to use the model's own"
        )


def check_room(recipe: Recipe, vocab_size: int) -> None:
    """UsageError when no node of the cluster has the memory for the weights in fp32."""
    import ray

    needed = 4 * count_parameters(ModelConfig.from_dict(recipe.architecture(vocab_size)))["total"]
    room = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
    if 0 < room < needed:
        raise UsageError(
            f"model: its weights take {needed / 1e9:,.1f} GB in fp32, the largest node has {room / 1e9:,.1f} GB; lower "
            "model.hidden_size, model.n_encoders or model.pkm_params.memory_size"
        )


def _model_fields(recipe: Recipe, held: ModelConfig) -> dict[str, Any]:
    """The model's values for the fields of the recipe's section `model`, without pkm_params."""
    names = set(type(recipe.model).model_fields) - {"init_from", "pkm_params"}
    return {name: getattr(held, name) for name in names}


def _merge(section: Any, held: dict[str, Any], path: str, faults: list[str]) -> Any:
    """`section` with the values in `held`; fields that it sets to other values are added to `faults`."""
    assert isinstance(section, BaseModel)
    update: dict[str, Any] = {}
    for name in sorted(held):
        value = tuple(held[name]) if isinstance(held[name], list) else held[name]
        asked, is_set = getattr(section, name), name in section.model_fields_set
        if not is_set or asked is None:
            update[name] = value
        elif asked != value and name not in _FREE_FIELDS:
            faults.append(f"{path}.{name}: {asked} in the recipe, {value} in the model")
    return section.model_copy(update=update)


def _corpus(recipe: Recipe, held: ModelConfig, source: str) -> Any:
    """The section `corpus` with the model's tokenizer and length where it sets none."""
    corpus, update = recipe.corpus, {}
    if "tokenizer" not in corpus.model_fields_set and storage.exists(storage.join(source, TOKENIZER_FILE)):
        update["tokenizer"] = source
    if "max_len" not in corpus.model_fields_set:
        update["max_len"] = min(corpus.max_len, held.max_len)
    return corpus.model_copy(update=update)
