"""Convert weights of the original Keras program: its HDF5 file and JSON configuration → a model folder with a recipe.

WEIGHTS.hdf5 ─ open_keras ─▶ layers ─┐
C.json ─ read_original_config ─▶ sizes, head, recipe ─┴─ load_original ─▶ tensors ─▶ MODEL
vocabulary ─ save_wordpiece_folder ─▶ tokenizer ────────────────────────────────────▶ MODEL
"""

from __future__ import annotations

import argparse
import tempfile

from twilbert import cli, outputs, storage
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.data.tokenizer.wordpiece import save_wordpiece_folder
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub.folder import RECIPE_NAME, save_model_folder
from twilbert.model.classifier import HeadConfig
from twilbert.model.config import ModelConfig
from twilbert.original.config import OriginalConfig, read_original_config
from twilbert.original.hdf5 import KerasFile, open_keras
from twilbert.original.weights import check_pooling, is_finetuned, load_original, n_classes, vocab_size


def convert(
    weights: str, config: str, out: str, vocab: str | None = None, *, overwrite: bool = False
) -> OriginalConfig:
    """Write the model folder `out` and return the translated configuration.

    `weights`: a file that the original saved in pre-training or fine-tuning; `config`: its JSON; `vocab`: the
    vocabulary file, without which the folder has no tokenizer. UsageError for files that do not belong together,
    TwilbertError for a damaged one, with the tensor, its shape and the expected one.
    """
    original = read_original_config(config)
    new = outputs.new_folder(out, "convert", overwrite=overwrite, inputs=filter(None, [weights, config, vocab]))
    with open_keras(weights) as file, new as folder, tempfile.TemporaryDirectory() as scratch:
        tokenizer = _tokenizer(vocab, storage.join(scratch, "tokenizer"), file)
        sizes = ModelConfig.from_dict(original.recipe.architecture(vocab_size(file)))
        head = _head(original, file) if is_finetuned(file) else None
        state = load_original(file, sizes, head, untrained_norm=original.untrained_norm)
        recipe = {RECIPE_NAME: original.recipe_yaml().encode()}
        text = None if head is None else original.text()
        save_model_folder(folder, sizes, state, tokenizer, head=head, text=text, files=recipe)
    return original


def _tokenizer(vocab: str | None, folder: str, file: KerasFile) -> str | None:
    """Write the tokenizer folder of a vocabulary file; UsageError unless it has as many entries as the weights."""
    if vocab is None:
        return None
    save_wordpiece_folder(vocab, folder)
    entries, expected = Tokenizer.load(folder).vocab_size, vocab_size(file)
    if entries != expected:
        raise UsageError(
            f"{vocab}: {entries:,} entries, but the token table of {file.path} has {expected + 1:,} rows, which is "
            f"{expected:,} entries and one; give the vocabulary that the weights were made with"
        )
    return folder


def _head(original: OriginalConfig, file: KerasFile) -> HeadConfig:
    if not original.is_finetuning:
        raise UsageError(
            f"{file.path}: a fine-tuned model, but {original.file} is no configuration of fine-tuning (sections task "
            "and finetuning); give the one that it was fine-tuned with"
        )
    try:
        head = HeadConfig.from_dict(original.head(n_classes(file)))
    except UsageError:
        raise
    except TwilbertError as error:
        raise UsageError(f"{original.file}: {error}") from error
    check_pooling(file, head.pooling)
    return head


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "convert",
        "Convert weights of the original TWilBERT (Keras HDF5) to a model folder, with its configuration as a recipe.",
        "twilbert-convert weights.hdf5 --config config_large.json --vocab vocab --out twilbert-large",
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="weight file of pre-training or fine-tuning (.hdf5, .h5)")
    parser.add_argument("--config", metavar="C.json", required=True, help="the JSON configuration it was made with")
    parser.add_argument("--vocab", metavar="FILE", help="its vocabulary file; without it the folder has no tokenizer")
    parser.add_argument("--out", metavar="MODEL", required=True, help="model folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what MODEL holds")
    return parser


def _command(args: argparse.Namespace) -> str:
    original = convert(args.weights, args.config, args.out, args.vocab, overwrite=args.overwrite)
    cli.table(["the original's setting", "became"], original.fates)
    if args.vocab is None:
        cli.say("no --vocab: the folder has no tokenizer, so that it takes token ids and no texts")
    out = storage.absolute(args.out)
    return f"model in {out}; the recipe of {args.config} in {storage.join(out, RECIPE_NAME)}"


def main(argv: list[str] | None = None) -> int:
    """The command twilbert-convert."""
    return cli.run(_parser(), _command, argv)


if __name__ == "__main__":
    from twilbert.convert import main as _main

    raise SystemExit(_main())
