"""twilbert-encode: write a corpus' token ids into CORPUS/encoded/<fingerprint>/, once.

The folder mirrors the corpus' shards and row groups (data/encoded/format.py); the fingerprint stands for tokenizer,
--max-len and corpus, so that several encodings exist side by side.
"""

from __future__ import annotations

import argparse

from twilbert import cli, storage
from twilbert.cluster.ray_session import ensure_ray
from twilbert.data import checksums
from twilbert.data.corpus.corpus import Corpus
from twilbert.data.encoded import encode as encoding
from twilbert.data.encoded.format import EncodedCorpus
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.errors import TwilbertError, UsageError
from twilbert.hub.encoder_files import download_tokenizer, is_hub_id

DEFAULT_MAX_LEN = 128


def encode(corpus_path: str, tokenizer_path: str, max_len: int = DEFAULT_MAX_LEN) -> EncodedCorpus:
    """Encode a corpus with a tokenizer, each text truncated to `max_len` tokens, or open the encoding that exists.

    `tokenizer_path`: a folder, or a hub id, which is downloaded.

    UsageError for a corpus or tokenizer that is not one; TwilbertError naming a damaged shard or a full disk.
    """
    corpus = Corpus.open(corpus_path)
    if not storage.exists(tokenizer_path) and is_hub_id(tokenizer_path):
        tokenizer_path = download_tokenizer(tokenizer_path)
    tokenizer = Tokenizer.load(tokenizer_path)
    try:
        encoded = encoding.find(corpus, tokenizer, max_len)
        if encoded is not None:
            checksums.check_files(encoded.listed)
            cli.say(f"{corpus.path} is already encoded with this tokenizer and --max-len {max_len}")
            return encoded
    except UsageError:
        raise
    except TwilbertError as error:
        cli.say(f"{error}: encoding again")
    shards = sum(len(corpus.shards(split)) for split in corpus.splits)
    rows = sum(split.rows for split in corpus.splits.values())
    cli.say(f"encoding {rows:,} rows in {shards} shards, at most {max_len} tokens a text")
    step = max(1, shards // 10)
    with ensure_ray():
        return encoding.encode_corpus(
            corpus,
            tokenizer,
            max_len,
            report=lambda done, of: (
                cli.say(f"encoded {done} of {of} shards") if done % step == 0 or done == of else None
            ),
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command `twilbert-encode`; return its exit code."""
    parser = cli.parser(
        "encode",
        "Turn the texts of a corpus into token ids, once. pretrain runs this when it is missing.",
        "twilbert-encode corpora/tweets --tokenizer tokenizers/tweets-30k --max-len 128",
    )
    parser.add_argument("corpus", metavar="CORPUS", help="folder that twilbert-prepare wrote")
    parser.add_argument("--tokenizer", required=True, help="twilbert-vocab's, or any model's: folder or hub id")
    parser.add_argument(
        "--max-len",
        type=int,
        default=DEFAULT_MAX_LEN,
        help="truncate each text to this many tokens (default: %(default)s)",
    )
    return cli.run(parser, _handle, argv)


def _handle(args: argparse.Namespace) -> str:
    encoded = encode(args.corpus, args.tokenizer, args.max_len)
    cli.table(
        ("split", "rows", "pairs", "singles", "tokens", "tokens a row"),
        [
            (n, s.rows, s.pairs, s.singles, s.tokens, round(s.tokens / max(1, s.rows), 1))
            for n, s in encoded.splits.items()
        ],
    )
    return f"encoded corpus (vocabulary {encoded.vocab_size}, max_len {encoded.max_len}) in {encoded.path}"


if __name__ == "__main__":
    from twilbert.encode import main as _main

    raise SystemExit(_main())
