"""Sweep over one or several tasks and models; each test set is scored once, at the end."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twilbert import cli, storage
from twilbert.recipe import loading
from twilbert.recipe import tuning as recipes
from twilbert.recipe.tuning import TuneRecipe

if TYPE_CHECKING:
    from twilbert.tuning.sweep import Sweep


def run(
    recipe: str | Mapping[str, Any] | TuneRecipe = recipes.SHIPPED,
    out: str | None = None,
    trust_remote_code: bool = False,
    **overrides: Any,
) -> Sweep:
    """Sweep from Python, in the folder `out`: its results, every trial's scores on dev, each study's best model.

    `recipe`: a YAML file, a shipped one's name, or values; overrides as in `twilbert.pretrain.run`:
    run(tasks=["stance17"], models=["runs/a"], search__trials=8). As with the command, the same sweep goes on, and a
    finished one is read. `trust_remote_code`: as for `twilbert.load`.
    """
    from twilbert.tuning import sweep

    settings = loading.as_overrides(overrides)
    if isinstance(recipe, str):
        resolved = recipes.load(recipe, settings)
    else:
        values = recipe.model_dump(mode="json") if isinstance(recipe, TuneRecipe) else dict(recipe)
        resolved = recipes.build(values, settings)
    results = search(resolved, out, trust_remote_code)
    return sweep.of_results(results["out"], results)


def search(recipe: TuneRecipe, out: str | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """Sweep as the recipe says, in the folder `out`; what results.json holds, and "out". A finished one is read."""
    from twilbert.tuning import sweep

    recipe = sweep.resolve(recipe)
    out = storage.absolute(out) if out else sweep.default_out(recipe)
    return sweep.run(recipe, out, trust_remote_code) | {"out": out}


def _show(results: Mapping[str, Any]) -> None:
    from twilbert.tuning import page

    studies = results["studies"]
    cli.table(page.HEADERS, page.rows(studies))
    if len({study["model"] for study in studies}) > 1:
        print()
        headers, rows = page.model_table(studies)
        cli.table(headers, rows)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "tune",
        "Search the settings of fine-tuning for one task or several; dev chooses, each test set is scored once.",
        "twilbert-tune --task stance17\n"
        "  twilbert-tune --task all --model runs/a --model runs/b search.trials=8 final.seeds=5\n"
        "  twilbert-tune --task my.yaml training.epochs=3 training.batch_size={choice: [16, 64]}",
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that replace the recipe's")
    parser.add_argument("--task", metavar="NAME", action="extend", nargs="+", help="task names, task files, or all")
    parser.add_argument(
        "--model", metavar="MODEL", action="append", help="as in finetune; give it again for a table of models"
    )
    parser.add_argument("--out", metavar="DIR", help="folder or URI (default: tuned/TASK-HASH); the same sweep goes on")
    parser.add_argument("--recipe", metavar="FILE", default=recipes.SHIPPED, help="YAML file (tune.yaml)")
    parser.add_argument("--data-dir", metavar="DIR", help="where registered tasks' data lies (default: tasks)")
    cli.add_trust(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything and list the trials, train nothing")
    return parser


def resolved(args: argparse.Namespace) -> TuneRecipe:
    """The recipe with what the flags name."""
    overrides = list(args.overrides)
    named = list(args.task or ())
    # --task a b training.epochs=3: argparse gives the settings to --task.
    overrides += [name for name in named if "=" in name]
    tasks = [name for name in named if "=" not in name]
    loading.refuse_files(overrides)
    recipe = recipes.load(args.recipe, overrides)
    given = {"tasks": tuple(tasks) or None, "models": args.model and tuple(args.model), "data_dir": args.data_dir}
    return recipe.model_copy(update={key: value for key, value in given.items() if value})


def _dry_run(recipe: TuneRecipe, out: str | None, trust_remote_code: bool) -> str:
    from twilbert.tuning import page, sweep

    recipe = sweep.resolve(recipe)
    out = storage.absolute(out) if out else sweep.default_out(recipe)
    studies = sweep.studies(recipe, out, trust_remote_code)
    print(loading.dump(recipe), end="")
    lines = [[plan.key, page.settings_text(plan.drawn)] for study in studies for plan in study.plans]
    cli.table(["trial", "settings"], lines)
    count = "1 study" if len(studies) == 1 else f"{len(studies)} studies"
    return f"{count}, {len(lines)} trials fit; would write {out}; nothing was trained"


def _command(args: argparse.Namespace) -> str:
    recipe = resolved(args)
    if args.dry_run:
        return _dry_run(recipe, args.out, args.trust_remote_code)
    results = search(recipe, args.out, args.trust_remote_code)
    _show(results)
    out, studies = results["out"], results["studies"]
    where = f"{out}/{studies[0]['study'] if len(studies) == 1 else 'STUDY'}/model"
    return f"results.json and report.html in {out}; each study's best model in {where}"


def main(argv: list[str] | None = None) -> int:
    """The command twilbert-tune."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.tune import main as _main

    raise SystemExit(_main())
