"""Tasks that a small model can learn in a second, and recipes to learn them with."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import yaml

from tests.make_models import CONFIG, make_tokenizer
from twilbert.hub.folder import save_model_folder
from twilbert.model.heads import PretrainingModel
from twilbert.recipe import finetuning
from twilbert.recipe.finetuning import FinetuneRecipe

MARKS = {"N": "no", "P": "si"}
QUICK = (
    "tracking.mode=disabled", "training.precision=fp32", "training.device=cpu", "training.learning_rate=1e-2",
    "training.epochs=5", "training.batch_size=16", "head.dropout=0.0",
)  # fmt: skip


def make_base(folder: Path) -> str:
    """A pre-trained model's folder, with weights as training begins with them: it can learn."""
    torch.manual_seed(0)
    save_model_folder(str(folder / "model"), CONFIG, PretrainingModel(CONFIG).state_dict(), make_tokenizer(folder))
    return str(folder / "model")


def write_marked_task(
    folder: Path, *, rows: int = 192, problem: str = "single_label_classification", two: bool = False, **settings
) -> str:
    """A task file and its data: a mark among a text's words decides its label (with two texts: the second's)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for split, count in (("train", rows), ("dev", 32), ("test", 32)):
        lines = ["\t".join(["ID", "TEXT", *(["NEXT"] if two else []), "CLASS"])]
        for i in range(count):
            text = [f"w{rng.randrange(40)}" for _ in range(rng.randrange(1, 8))]
            marks, label = _label(problem, i)
            if two:
                cells = [" ".join(text), " ".join([*marks, f"w{rng.randrange(40)}"])]
            else:
                for word in marks:
                    text.insert(rng.randrange(len(text) + 1), word)
                cells = [" ".join(text)]
            lines.append("\t".join([f"{split}-{i}", *cells, label]))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    task = {
        "files": {split: f"{split}.tsv" for split in ("train", "dev", "test")},
        "problem": problem,
        "labels": ["score"] if problem == "regression" else list(MARKS),
        "metric": "mae" if problem == "regression" else "f1",
    }
    if two:
        task["columns"] = {"text_b": "NEXT"}
    path = folder / "marked.yaml"
    path.write_text(yaml.safe_dump(task | settings))
    return str(path)


def _label(problem: str, i: int) -> tuple[list[str], str]:
    """Return the marks of row i's label, and the label."""
    if problem == "multi_label_classification":
        flags = (i % 2, i // 2 % 2)
        return [mark for mark, flag in zip(MARKS.values(), flags, strict=True) if flag], "|".join(map(str, flags))
    label = list(MARKS)[i % 2]
    return [MARKS[label]], str(i % 2) if problem == "regression" else label


def quick_recipe(task: str, model: str | None, *overrides: str) -> FinetuneRecipe:
    """A recipe that learns such a task in about a second."""
    recipe = finetuning.load(overrides=[*QUICK, *overrides])
    return recipe.model_copy(update={"task": task, "model": model})
