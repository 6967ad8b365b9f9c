"""Fine-tune a model on a task, and score the test set once, at the end."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from twilbert import cli, storage
from twilbert.errors import UsageError
from twilbert.recipe import finetuning, loading
from twilbert.recipe.finetuning import FinetuneRecipe


def run(
    recipe: FinetuneRecipe, out: str, *, overwrite: bool = False, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Fine-tune as the recipe says into the folder `out`; return the content of results.json.

    An interrupted fine-tuning is resumed there; the results of a finished one are read.
    """
    from twilbert.finetuning.run import finetune

    return finetune(recipe, storage.absolute(out), overwrite=overwrite, trust_remote_code=trust_remote_code)


def _show(results: Mapping[str, Any]) -> None:
    from twilbert.finetuning.page import YARDSTICK_HEADERS, mean_and_sd, metric_name, score_with_spread, yardstick_rows

    rows = [
        [split, metric_name(results), score_with_spread(results.get(split)), _rows(results, split)]
        for split in ("dev", "test")
    ]
    new_texts = (results.get("test") or {}).get("without_rows_in_train")
    if new_texts:
        count = results["test"]["rows"] - results["test"]["rows_also_in_train"]
        rows.append(["test without texts of train", metric_name(results), mean_and_sd(new_texts), f"{count:,}"])
    cli.table([results["task"], "metric", "score", "rows"], rows)
    if compared := yardstick_rows(results):
        print()
        cli.table(YARDSTICK_HEADERS, compared)


def _rows(results: Mapping[str, Any], split: str) -> str:
    if split in results:
        return f"{results[split]['rows']:,}"
    return "no labels" if split in results["counts"] else "no file"


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "finetune",
        "Fine-tune a model on a task; dev chooses the best checkpoint, the test set is scored once, at the end.",
        "twilbert-finetune --task stance17 --model runs/tiny-1a2b3c4d --out stance seeds=5\n"
        "  twilbert-finetune --task my.yaml --model dccuchile/bert-base-spanish-wwm-cased training.epochs=3",
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that replace the recipe's")
    parser.add_argument("--task", metavar="NAME", help="registered task, or a task file's path")
    parser.add_argument(
        "--model", help="model folder, checkpoint, run, transformers folder or hub id (default: newest finished run)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder or URI (default: finetuned/TASK); resumes there")
    parser.add_argument("--recipe", metavar="FILE", default=finetuning.SHIPPED, help="YAML file (finetune.yaml)")
    parser.add_argument("--data-dir", metavar="DIR", help="where registered tasks' data lies (default: tasks)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier fine-tuning at DIR")
    cli.add_trust(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the resolved recipe and checks, train nothing")
    return parser


def resolved(args: argparse.Namespace) -> FinetuneRecipe:
    """Return the recipe with the flags' values, data_dir absolute."""
    loading.refuse_files(args.overrides)
    recipe = finetuning.load(args.recipe, args.overrides)
    given = {"task": args.task, "model": args.model, "data_dir": args.data_dir}
    recipe = recipe.model_copy(update={key: value for key, value in given.items() if value is not None})
    if recipe.task is None:
        from twilbert.tasks.task import registered

        raise UsageError(f"which task? --task NAME: a task file, or one of {', '.join(registered())}")
    if recipe.data_dir is not None:
        recipe = recipe.model_copy(update={"data_dir": storage.absolute(recipe.data_dir)})
    return recipe


def _command(args: argparse.Namespace) -> str:
    recipe = resolved(args)
    assert recipe.task is not None
    stem = recipe.task.rstrip("/").rsplit("/", 1)[-1].removesuffix(".yaml")
    out = storage.absolute(args.out or storage.join("finetuned", stem))
    if args.dry_run:
        from twilbert.finetuning.run import prepare

        print(loading.dump(recipe), end="")
        prepared = prepare(recipe, trust_remote_code=args.trust_remote_code)
        train, dev = len(prepared.data.train), len(prepared.data.dev)
        print(f"# model: {prepared.base.name}; {train:,} train and {dev:,} dev rows; would write {out}")
        return f"{recipe.task}: task, model and recipe fit; nothing was trained"
    results = run(recipe, out, overwrite=args.overwrite, trust_remote_code=args.trust_remote_code)
    from twilbert.finetuning.page import not_ahead

    _show(results)
    warning = f"{text}; " if (text := not_ahead(results)) else ""
    return f"{warning}model in {out}/model; results.json, report.html, predictions, errors in {out}"


def main(argv: list[str] | None = None) -> int:
    """Run the command twilbert-finetune."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.finetune import main as _main

    raise SystemExit(_main())
