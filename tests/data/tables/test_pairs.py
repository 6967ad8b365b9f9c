"""Pairs in tables as people have them: read under the right columns, or refused with the reason."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.raw_pairs import HEADER, make, rows_of, tsv
from twilbert.errors import TwilbertError, UsageError
from twilbert.prepare import prepare, run_here

GOOD = [(str(i), f"tweet número {i} aquí", f"9{i}", f"respuesta número {i}") for i in range(10, 20)]
NAMES = ("orig_id", "orig_text", "reply_id", "reply_text")


def test_what_stands_for_nothing_is_a_single_tweet(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    nothing = ["", "  ", "\\N", "NULL", "null", "nan", "NaN", "None", "<NA>", "NA"]
    rows = [(str(i), f"tweet número {i} aquí", f"9{i}", reply) for i, reply in enumerate(nothing)]
    raw = tmp_path / "raw.tsv"
    raw.write_text(tsv([*rows, *GOOD, ("NULL", "sin id aquí", "1", "hola"), ("5", "otra vez aquí", "nan", "hola")]))
    info, made = make(tmp_path, raw)
    assert sum(row["reply_text"] is None and row["reply_id"] is None for row in made) == len(nothing)
    assert info["splits"]["train"]["single_tweets"] == len(nothing)
    assert info["rejected_because"] == {"no ORIG_ID": 1, "a reply without REPLY_ID": 1}


LOST = "an id in scientific notation or with decimals, which has lost digits: export ids as text"


@pytest.mark.parametrize(
    "spelt", ["1.27813E+18", "1,27813E+18", "1.278130000000001e+18", "1278130000.0", "1e+18", "1,5"]
)
def test_ids_that_have_lost_digits_are_refused(spelt: str, tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    raw.write_text(HEADER + tsv([*GOOD, (spelt, "un tweet aquí", "7", "hola"), ("7", "un tweet aquí", spelt, "hola")]))
    info, made = make(tmp_path, raw)
    assert len(made) == len(GOOD) and info["rejected_because"] == {LOST: 2}
    for kept in ("12e45678", "1.2.3", "t1.5"):  # ids of other kinds
        raw.write_text(tsv([(kept, "un tweet aquí", "7", "hola")]))
        assert make(tmp_path, raw, name=kept)[1][0]["orig_id"] == kept


def test_refused_lines_are_counted_by_reason(tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    lines = tsv([*GOOD, ("1", "dos", "3")]) + "x\ty\n" * 2 + tsv([("1e+18", "un tweet aquí", "7", "hola")])
    raw.write_bytes(lines.encode() + b"1\tse\xf1or de aqui\t2\tx\n" * 3)
    info = prepare([str(raw)], str(tmp_path / "some"), runner=run_here)
    assert list(info["rejected_because"].values()) == [3, 2, 1, 1]
    raw.write_bytes(b"1\tse\xf1or de aqui\t2\tx\n" * 3 + b"1\t2\n")
    with pytest.raises(TwilbertError, match=r"4 were refused \(3 × not UTF-8, 1 × 2 cells, expected 4\)"):
        make(tmp_path, raw)


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (("id_respuesta", "respuesta", "id_tweet", "tweet"), {}, "columns found: 'id_respuesta', 'respuesta'"),
        (("tweet_id", "tweet", "reply_id", "reply"), {}, "columns found: 'tweet_id'"),
        (("id1", "text1", "id2", "text2"), {}, "columns found: 'id1'"),
        (("id", "text", "id", "text"), {"orig_text": "text"}, "two columns are named 'text'"),
        (("a", "b", "c", "d"), {"orig_text": "b", "reply_text": "B"}, "column 'b' is asked for twice"),
        (("a", "b", "c", "d"), {"orig_text": "2", "reply_text": "2"}, "asked for twice"),
        (("a", "b", "c", "d"), {"orig_id": "0", "orig_text": "2"}, "positions count from 1"),
        (("a", "b", "c", "d"), {"orig_id": "5", "orig_text": "2"}, "has 4 columns"),
    ],
)
@pytest.mark.parametrize("form", ["tsv", "csv"])
def test_a_header_is_understood_or_refused(names, columns, message, form: str, tmp_path: Path):
    raw = tmp_path / f"raw.{form}"
    raw.write_text(tsv([names, *GOOD]).replace("\t", "," if form == "csv" else "\t"))
    with pytest.raises(UsageError) as error:
        make(tmp_path, raw, columns=columns)
    assert message in str(error.value)


def test_a_header_above_positions_is_no_row(tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    raw.write_text(tsv([("status", "cuerpo", "a", "b"), *GOOD]))
    info, made = make(tmp_path, raw, columns={name: str(i) for i, name in enumerate(NAMES, start=1)})
    assert info["lines_read"] == len(made) == len(GOOD)


JSON = [dict(zip(NAMES, row, strict=True)) for row in GOOD]


@pytest.mark.parametrize(
    ("first", "rejected"),
    [
        ({"delete": {"status": {"id": 1}}}, 1),
        ({"orig_id": "1", "orig_text": "un tweet aquí", "reply_text": "sin id"}, 1),
        ({"orig_id": "1", "orig_text": "un tweet solo aquí"}, 0),
        ({"orig_id": 1e18, "orig_text": "un tweet aquí"}, 1),
        ({"orig_id": {"$numberLong": "1"}, "orig_text": "un tweet aquí"}, 1),
        ({**JSON[0], "orig_id": 1, "raw": "z" * 70_000}, 0),
    ],
)
@pytest.mark.parametrize("is_array", [False, True])
def test_the_first_json_record_does_not_stand_for_all(first: dict, rejected: int, is_array: bool, tmp_path: Path):
    raw = tmp_path / "raw.json"
    records = [first, *JSON]
    raw.write_text(json.dumps(records, indent=1) if is_array else "\n".join(map(json.dumps, records)))
    info, made = make(tmp_path, raw)
    assert info["rejected"] == rejected
    assert [row["orig_id"] for row in made[-len(GOOD) :]] == [row[0] for row in GOOD]


def test_what_a_folder_holds_and_is_not_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "raw"
    folder.mkdir()
    lines = [line + "\n" for line in tsv(GOOD).splitlines()]
    (folder / "2018").write_text(lines[0])
    (folder / "2021.jsonl.bz2").write_bytes(b"BZh9")
    (folder / "2022.TSV.GZ").write_bytes(gzip.compress(lines[1].encode()))
    (folder / "2023.tab").write_text(lines[2])
    (folder / "2024.JSON").write_text(json.dumps([JSON[3]]))
    (folder / "2025.txt").write_text(lines[4])
    os.mkfifo(folder / "pipe.tsv")
    assert len(make(tmp_path, folder)[1]) == 4
    assert (
        "not read: 2018 (a name without a format), 2021.jsonl.bz2 (unknown format .bz2), pipe.tsv (no regular file); "
        in capsys.readouterr().err
    )


def test_pipes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fifo, out, data = tmp_path / "fifo", tmp_path / "out", HEADER + tsv(GOOD)
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=[data])
    writer.start()
    info, made = make(tmp_path, fifo)
    writer.join()
    assert len(made) == len(GOOD) and info["inputs"] == [str(fifo)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
    assert make(tmp_path, "-", name="dash")[1] == made
    code = f"from twilbert.prepare import prepare, run_here; prepare(['/dev/stdin'], {str(out)!r}, runner=run_here)"
    subprocess.run([sys.executable, "-c", code], input=data.encode(), check=True)
    assert len(rows_of(out, "train")) + len(rows_of(out, "valid")) == len(GOOD)
