"""twilbert-vocab: train a SentencePiece vocabulary on a corpus' train split and write it as a `tokenizers` tokenizer.

    corpus texts ─ sample ▸ normalise ─▶ sentencepiece ─ convert ▸ compare ids ─▶ tokenizer folder

Deterministic: the same corpus and flags give the same bytes. Rare and unknown characters become their UTF-8 bytes (256
of the entries), so that [UNK] never appears and every emoji survives, joined ones too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twilbert import cli, outputs, storage
from twilbert.data.cleaning import recorded
from twilbert.data.corpus.corpus import Corpus, read_shard
from twilbert.data.stream.randomness import uniform
from twilbert.data.tokenizer import sentencepiece as tokenizer_json
from twilbert.data.tokenizer import tokenizer as runtime
from twilbert.errors import TwilbertError, UsageError

SETTINGS_FORMAT = 1
TYPES = ("bpe", "unigram")
DEFAULT_VOCAB_SIZE = 30_000
DEFAULT_MAX_SENTENCES = 5_000_000  # some 2 GB in training; more would hardly change 30,000 pieces
DEFAULT_COVERAGE = 0.99995
CHECKED_TEXTS = 50_000  # training texts that both sentencepiece and the converted tokenizer encode
LONGEST_SENTENCE = 4192  # bytes; sentencepiece leaves longer ones out without a word
_THREADS = 2  # fixed: the sums of unigram depend on it
_MODEL_FILE = "spm.model"
_FILES = (runtime.SETTINGS_FILE, runtime.TOKENIZER_FILE, runtime.CONFIG_FILE, _MODEL_FILE)
_SAMPLE_KEY, _CHECK_KEY = np.array([0x5EED_0001, 0x5EED_0002], np.uint64)


def vocab(
    corpus_path: str,
    out: str,
    *,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    model_type: str = "bpe",
    lowercase: bool = False,
    strip_accents: bool = False,
    max_sentences: int = DEFAULT_MAX_SENTENCES,
    character_coverage: float = DEFAULT_COVERAGE,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a tokenizer on both texts of the train split, write its folder `out` and return its settings.

    More than `max_sentences` texts are sampled by a hash of the row's number. UsageError for impossible sizes (the
    message names the largest, or the smallest); TwilbertError, and nothing is written, where the converted tokenizer
    and sentencepiece differ.
    """
    _check_flags(vocab_size, model_type, max_sentences, character_coverage)
    corpus = Corpus.open(corpus_path)
    replacing: dict[str, Any] = {"overwrite": overwrite, "inputs": [corpus.path], "before": _FILES}
    outputs.check_folder(out, "vocab", **replacing)
    reading: dict[str, Any] = {
        "lowercase": lowercase, "strip_accents": strip_accents, "cleaning": recorded(corpus.cleaning).name,
    }  # fmt: skip
    normaliser = tokenizer_json.text_normaliser(**reading)
    sample = _Sample(corpus, normaliser, max_sentences)
    cli.say(f"training {model_type} with {vocab_size:,} entries on {corpus.path}")
    model = train(sample, vocab_size, model_type, character_coverage)
    backend = tokenizer_json.from_sentencepiece(model, model_type, **reading)
    content = backend.to_str(pretty=False).encode()
    different = compare(model, runtime.Tokenizer({runtime.TOKENIZER_FILE: content}), sample.checked, sample.normalised)
    cli.say(f"{len(sample.checked):,} texts compared with sentencepiece: {len(different)} with other ids")
    if different and model_type == "bpe":
        raise TwilbertError(
            f"the converted tokenizer gives other ids than sentencepiece for {len(different)} of {len(sample.checked)} "
            f"texts, the first {sample.checked[different[0]]!r}; nothing was written. Please report this defect"
        )
    settings = {
        "format": SETTINGS_FORMAT,
        "type": model_type,
        "vocab_size": vocab_size,
        "lowercase": lowercase,
        "strip_accents": strip_accents,
        "character_coverage": character_coverage,
        "byte_fallback": True,
        "whole_words": ["url", "user"],
        "cleaning": corpus.cleaning,
        "corpus": corpus.id,
        "max_sentences": max_sentences,
        "sentences": sample.sentences,
        "long_texts_cut": sample.cut,
        "compared_with_sentencepiece": {"texts": len(sample.checked), "different": len(different)},
        "sentencepiece": importlib.metadata.version("sentencepiece"),
        runtime.SUM: hashlib.sha256(content).hexdigest(),
    }
    with outputs.new_folder(out, "vocab", **replacing) as folder:
        storage.write_bytes_atomic(storage.join(folder, runtime.TOKENIZER_FILE), content)
        storage.write_bytes_atomic(storage.join(folder, _MODEL_FILE), model)
        storage.write_json_atomic(storage.join(folder, runtime.CONFIG_FILE), tokenizer_json.TOKENIZER_CONFIG)
        storage.write_json_atomic(storage.join(folder, runtime.SETTINGS_FILE), settings)
    return settings


@dataclass
class _Sample:
    """The normalised training texts in order, one row group in memory; stores some texts to compare.

    A fault or an interruption while reading is stored in `fault`, as sentencepiece would wrap it.
    """

    corpus: Corpus
    normaliser: Any
    max_sentences: int
    sentences: int = 0
    cut: int = 0
    """Texts that were longer than LONGEST_SENTENCE, each several sentences."""
    checked: list[str] = field(default_factory=list)
    normalised: list[str] = field(default_factory=list)
    fault: TwilbertError | KeyboardInterrupt | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text, check in self._texts():
                normalised = self.normaliser.normalize_str(text)
                self.sentences += 1
                if check:
                    self.checked.append(text)
                    self.normalised.append(normalised)
                pieces = cut(normalised)
                self.cut += len(pieces) > 1
                yield from pieces
        except (TwilbertError, KeyboardInterrupt) as error:
            self.fault = error

    def _texts(self) -> Iterator[tuple[str, bool]]:
        rows = max(1, self.corpus.splits["train"].rows)
        sampled, checked = self.max_sentences / (2 * rows), CHECKED_TEXTS / min(self.max_sentences, 2 * rows)
        first = 0
        for shard in self.corpus.shards("train"):
            for table in read_shard(self.corpus.shard_path(shard), shard, ("orig_text", "reply_text")):
                numbers = np.arange(first, first + table.num_rows, dtype=np.uint64)
                first += table.num_rows
                chosen = np.flatnonzero(uniform(_SAMPLE_KEY, numbers) < sampled)
                check = uniform(_CHECK_KEY, numbers[chosen]) < checked
                for column in ("orig_text", "reply_text"):
                    texts = table.column(column).take(chosen).to_pylist()
                    yield from ((text, c) for text, c in zip(texts, check.tolist(), strict=True) if text)


def cut(text: str) -> list[str]:
    """Return a text in pieces of at most LONGEST_SENTENCE bytes: at spaces, inside a word where it is longer."""
    if len(text) <= LONGEST_SENTENCE and len(text.encode()) <= LONGEST_SENTENCE:
        return [text]
    pieces, data = [], text.encode()
    while len(data) > LONGEST_SENTENCE:
        end = data.rfind(b" ", 1, LONGEST_SENTENCE + 1)
        if end < 0:
            end = LONGEST_SENTENCE
            while data[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        pieces.append(data[:end])
        data = data[end:].lstrip(b" ")
    return [piece.decode() for piece in [*pieces, data] if piece]


def train(sample: _Sample, vocab_size: int, model_type: str, character_coverage: float) -> bytes:
    """Train a SentencePiece model and return its bytes; UsageError when the data cannot fill `vocab_size`."""
    try:
        import sentencepiece
    except ImportError as error:
        raise UsageError("sentencepiece is not installed; pip install 'twilbert[train]'") from error
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            byte_fallback=True,
            pad_id=0,
            pad_piece="[PAD]",
            unk_id=1,
            unk_piece="[UNK]",
            bos_id=-1,
            eos_id=-1,
            control_symbols=["[MASK]", "[CLS]", "[SEP]"],
            user_defined_symbols=list(tokenizer_json.WHOLE_WORDS),
            shuffle_input_sentence=False,
            max_sentence_length=LONGEST_SENTENCE,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise (sample.fault or _explained(error, sample, vocab_size)) from error
    if sample.fault is not None:
        raise sample.fault
    return model.getvalue()


def compare(model: bytes, tokenizer: runtime.Tokenizer, texts: list[str], normalised: list[str]) -> list[int]:
    """Return the numbers of the texts whose ids differ between sentencepiece and `tokenizer`."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    expected = processor.encode(normalised, num_threads=_THREADS)
    ids, offsets = tokenizer.encode_batch(texts)
    flat, bounds = ids.tolist(), offsets.tolist()
    return [i for i, wanted in enumerate(expected) if flat[bounds[i] : bounds[i + 1]] != wanted]


def _check_flags(vocab_size: int, model_type: str, max_sentences: int, character_coverage: float) -> None:
    largest = runtime.MAX_VOCAB_SIZE  # ids are stored in 16 bits
    bounds = {
        f"--vocab-size {vocab_size}: must be from 1 to at most {largest}": 1 <= vocab_size <= largest,
        f"--type {model_type}: must be one of {', '.join(TYPES)}": model_type in TYPES,
        f"--max-sentences {max_sentences}: must be at least 1": max_sentences >= 1,
        f"--character-coverage {character_coverage}: must be from 0.98 to 1": 0.98 <= character_coverage <= 1,
    }
    if faults := [fault for fault, fits in bounds.items() if not fits]:
        raise UsageError("; ".join(faults))


def _explained(error: Exception, sample: _Sample, vocab_size: int) -> TwilbertError:
    """Sentencepiece's fault with the flag and the value that would work."""
    where = sample.corpus.path
    if not sample.sentences:
        return UsageError(f"{where}: its train split holds no text; run twilbert-prepare on more data")
    if largest := re.search(r"Vocabulary size too high.*<= (\d+)", str(error)):
        return UsageError(
            f"--vocab-size {vocab_size}: too large for {where}, whose {sample.sentences:,} texts give at most "
            f"{largest[1]}; use --vocab-size {largest[1]} or less, or more text"
        )
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
        return UsageError(
            f"--vocab-size {vocab_size}: too small for the special tokens, 256 bytes and the characters of {where}; "
            f"use --vocab-size {smallest[1]} or more, or a lower --character-coverage"
        )
    return TwilbertError(f"sentencepiece could not train on {where}: {error}")


def main(argv: list[str] | None = None) -> int:
    """Run the command `twilbert-vocab`; return its exit code."""
    parser = cli.parser(
        "vocab",
        "Train a tokenizer on a corpus (SentencePiece, written as tokenizer.json).",
        "twilbert-vocab corpora/tweets --out tokenizers/tweets-30k --vocab-size 30000",
    )
    parser.add_argument("corpus", metavar="CORPUS", help="folder that twilbert-prepare wrote")
    parser.add_argument("--out", required=True, metavar="TOKENIZER", help="folder to write")
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        help="entries in all: 5 special tokens, url, user, 256 bytes, the learned pieces (default: %(default)s)",
    )
    parser.add_argument("--type", dest="model_type", default="bpe", help="bpe or unigram (default: %(default)s)")
    parser.add_argument("--lowercase", action="store_true", help="lower-case all text (default: cased)")
    parser.add_argument("--strip-accents", action="store_true", help="á to a, ñ to n (default: with accents)")
    parser.add_argument(
        "--max-sentences",
        type=int,
        default=DEFAULT_MAX_SENTENCES,
        help="train on a sample of about this many texts (default: %(default)s)",
    )
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=DEFAULT_COVERAGE,
        help="share of the text whose characters get entries; the rest become bytes (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what TOKENIZER holds")
    return cli.run(parser, _handle, argv)


def _handle(args: argparse.Namespace) -> str:
    options = vars(args)
    corpus, out = options.pop("corpus"), options.pop("out")
    settings = vocab(corpus, out, **options)
    long = settings["long_texts_cut"]
    texts = f"{settings['sentences']:,} texts"
    if long:
        texts += f", {long:,} of them over {LONGEST_SENTENCE:,} bytes and read in pieces"
    return f"tokenizer of {settings['vocab_size']:,} entries ({settings['type']}, {texts}) in {storage.absolute(out)}"


if __name__ == "__main__":
    from twilbert.vocab import main as _main

    raise SystemExit(_main())
