"""Raw pairs and the corpora that prepare makes of them, for its tests."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from twilbert import prepare as verb
from twilbert.data import checksums
from twilbert.data.corpus.corpus import Corpus
from twilbert.prepare import prepare, run_here

HEADER = "ORIG_ID\tORIG_TEXT\tREPLY_ID\tREPLY_TEXT\n"
ROWS = [
    ("1", "¿Quién viene hoy al partido?", "11", "@ana yo voy seguro"),
    ("2", 'Dice "hola y se va', "12", "una comilla ' suelta"),
    ("3", "Hoy &amp; siempre 👩‍👩‍👧 https://t.co/x", "13", "claro que sí…"),
    ("4", "un tweet sin respuesta", "", ""),
    ("1", "¿Quién viene hoy al partido?", "14", "yo no puedo ir"),
]
CLEANED = [
    {"orig_id": "1", "orig_text": "¿Quién viene hoy al partido?", "reply_id": "11", "reply_text": "user yo voy seguro"},
    {"orig_id": "2", "orig_text": 'Dice "hola y se va', "reply_id": "12", "reply_text": "una comilla ' suelta"},
    {"orig_id": "3", "orig_text": "Hoy & siempre 👩‍👩‍👧 url", "reply_id": "13", "reply_text": "claro que sí"},
    {"orig_id": "4", "orig_text": "un tweet sin respuesta", "reply_id": None, "reply_text": None},
    {"orig_id": "1", "orig_text": "¿Quién viene hoy al partido?", "reply_id": "14", "reply_text": "yo no puedo ir"},
]


def tsv(rows: list[tuple[str, ...]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def make(tmp_path: Path, *inputs: Path | str, name: str = "corpus", **options) -> tuple[dict, list[dict]]:
    """Prepare without Ray, nothing held out; returns corpus.json and the train rows. No record may be lost."""
    out = tmp_path / name
    info = prepare([str(i) for i in inputs], str(out), **{"valid_share": 0.0, "runner": run_here, **options})
    assert info["lines_read"] == info["kept"] + sum(info["dropped"].values()) + info["rejected"]
    assert len(rejects(out)) == info["rejected"]
    return info, rows_of(out, "train")


def rows_of(out: Path, split: str) -> list[dict]:
    corpus = Corpus.open(str(out))
    checksums.check_files(corpus.listed)
    return [row for shard in corpus.shards(split) for row in pq.read_table(corpus.shard_path(shard)).to_pylist()]


def rejects(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, *argv: str) -> tuple[int, str]:
    """Run the command, which must fail with one message, no trace, and nothing left behind."""
    code = verb.main([*argv, "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]
    return code, err
