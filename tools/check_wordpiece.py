"""Compare the released vocabulary's ids and our cleaning with what the original program made of the same texts.

    python tools/check_wordpiece.py VOCAB GOLDEN.jsonl [--json FILE]

GOLDEN.jsonl has a text a line: `text`, `preprocessed` (by the original, where `preprocess_applied`), `ids`. Ids are
compared from `preprocessed`, twice: texts in one batch, and one by one. The cleaning is compared apart: every text on
which it differs is listed with the reason. Exit code 1 when an id differs, or a difference has no known reason.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from twilbert import cli, storage
from twilbert.data.text import clean
from twilbert.data.wordpiece import save_wordpiece_folder

NOT_APPLIED = "the golden file left this text as it was"
INSIDE_WORDS = "the original cuts RT out of words too, a defect"
UNKNOWN = "unexplained"


def why(row: dict[str, Any]) -> str | None:
    """Why our cleaning of a golden text is not the original's; None where it is."""
    if clean(row["text"], remove_rt=row["preprocess_applied"]) == row["preprocessed"]:
        return None
    if not row["preprocess_applied"] and row["preprocessed"] == row["text"]:
        return NOT_APPLIED
    everywhere = " ".join(clean(row["text"]).replace("RT", " ").split())
    return INSIDE_WORDS if everywhere == row["preprocessed"] else UNKNOWN


def main() -> int:
    """Print the counts and the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocab")
    parser.add_argument("golden", type=Path)
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.golden.read_text().split("\n") if line]
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = save_wordpiece_folder(args.vocab, storage.join(scratch, "tokenizer"))
        ids, offsets = tokenizer.encode_batch([row["preprocessed"] for row in rows])
        batched = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
        same = sum(got == row["ids"] for got, row in zip(batched, rows, strict=True))
        same_alone = sum(tokenizer.encode(row["preprocessed"]) == row["ids"] for row in rows)
    reasons = [(number, row, reason) for number, row in enumerate(rows, start=1) if (reason := why(row))]
    counts = Counter(reason for _, _, reason in reasons)
    print(f"ids: {same:,} of {len(rows):,} texts the same in a batch, {same_alone:,} one by one")
    print(f"cleaning: {len(rows) - len(reasons):,} of {len(rows):,} texts the same")
    for reason, count in counts.most_common():
        print(f"  {count}: {reason}")
    shown = [(n, ascii(r["text"])[:60], ascii(r["preprocessed"])[:60], why) for n, r, why in reasons]
    cli.table(("line", "text", "the original's", "reason"), shown)
    if args.json:
        figures = {"texts": len(rows), "same": same, "same_alone": same_alone, "cleaning": dict(counts)}
        storage.write_json_atomic(storage.absolute(args.json), figures)
    return 0 if same == same_alone == len(rows) and not counts[UNKNOWN] else 1


if __name__ == "__main__":
    raise SystemExit(main())
