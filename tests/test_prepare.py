"""Raw pairs → corpus: every format, every fault, nothing lost, the same bytes however it is run."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.raw_pairs import CLEANED, HEADER, ROWS, make, rejects, rows_of, tsv
from twilbert import prepare as verb
from twilbert.data.corpus.spill import hashes, in_valid, valid_threshold
from twilbert.sample import sample_pairs

# Formats


def test_a_header_is_recognised_not_assumed(tmp_path: Path):
    for name, text in {
        "header": HEADER + tsv(ROWS),
        "none": tsv(ROWS),
        "mark": "\ufeff" + HEADER + tsv(ROWS),
        "windows": (HEADER + tsv(ROWS)).replace("\n", "\r\n"),
        "unended": tsv(ROWS).removesuffix("\n"),
        "lower": HEADER.lower() + tsv(ROWS),
    }.items():
        raw = tmp_path / f"{name}.tsv"
        raw.write_bytes(text.encode())
        info, rows = make(tmp_path, raw, name=name)
        assert rows == CLEANED, name
        assert info["lines_read"] == 5, name  # a header is not a line of data


def test_all_formats_give_the_same_corpus(tmp_path: Path):
    files = [tmp_path / name for name in ("a.tsv", "b.csv", "c.jsonl", "d.parquet", "e.tsv.gz", "f.jsonl.zst")]
    names = ["orig_id", "orig_text", "reply_id", "reply_text"]
    files[0].write_text(HEADER + tsv(ROWS))
    with files[1].open("w", newline="") as stream:
        csv.writer(stream).writerows([names, *ROWS])
    objects = "".join(json.dumps({k: v for k, v in zip(names, row, strict=True) if v}) + "\n" for row in ROWS)
    files[2].write_text(objects)
    numbered = [{**dict(zip(names, row, strict=True)), "orig_id": int(row[0])} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(numbered), files[3], row_group_size=2)
    files[4].write_bytes(gzip.compress(HEADER.encode()) + gzip.compress(tsv(ROWS).encode()))
    with pa.output_stream(str(files[5]), compression="zstd") as stream:
        stream.write(objects.encode())
    ids = {file.name: make(tmp_path, file, name=file.name + ".out") for file in files}
    assert {info["id"] for info, _ in ids.values()} == {ids["a.tsv"][0]["id"]}
    assert ids["a.tsv"][1] == CLEANED


def test_csv_keeps_quoted_line_breaks_and_refuses_broken_records_alone(tmp_path: Path):
    raw = tmp_path / "raw.csv"
    raw.write_bytes(
        b'orig_id,orig_text,reply_id,reply_text\n1,"una, dos\ny ""tres""",2,"vale, muy bien"\n'
        b'3,"mal"cerrado aqui,4,no\n5,bien otra vez aqui,6,\xff\n7,bien otra vez aqui,8,si\n'
    )
    _, rows = make(tmp_path, raw)
    assert [(row["orig_id"], row["orig_text"], row["reply_text"]) for row in rows] == [
        ("1", 'una, dos y "tres"', "vale, muy bien"),
        ("7", "bien otra vez aqui", "si"),
    ]
    assert [(reject["line"], reject["reason"][:12]) for reject in rejects(tmp_path / "corpus")] == [
        (4, "a stray quot"),
        (5, "not UTF-8"),
    ]


def test_columns_of_other_names_and_positions(tmp_path: Path):
    named, placed = tmp_path / "named.tsv", tmp_path / "placed.tsv"
    named.write_text("extra\tchild\tparent\tpid\tcid\n" + "x\tuna respuesta larga\tun tweet aquí\tp1\tc1\n")
    placed.write_text("una respuesta larga\tp1\tun tweet aquí\tc1\n")
    columns = {"orig_id": "pid", "orig_text": "parent", "reply_id": "cid", "reply_text": "child"}
    expected = [{"orig_id": "p1", "orig_text": "un tweet aquí", "reply_id": "c1", "reply_text": "una respuesta larga"}]
    assert make(tmp_path, named, name="n", columns=columns)[1] == expected
    columns = {"orig_id": "2", "orig_text": "3", "reply_id": "4", "reply_text": "1"}
    assert make(tmp_path, placed, name="p", columns=columns)[1] == expected


def test_texts_without_ids_get_ids_made_from_them(tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    raw.write_text(
        "orig_text\treply_text\n" + "un tweet aquí\tuna cosa\nun tweet aquí\totra cosa\nun tweet aquí\tuna cosa\n"
    )
    info, rows = make(tmp_path, raw)
    assert info["dropped"] == {"repeated": 1}
    assert len({row["orig_id"] for row in rows}) == 1
    assert len({row["reply_id"] for row in rows}) == 2


def test_folders_globs_and_files_are_read_in_a_fixed_order(tmp_path: Path):
    folder = tmp_path / "raw"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(["b.tsv", "a.tsv", "deep/c.tsv", "_SUCCESS", ".hidden.tsv", "readme.md"]):
        (folder / name).write_text(f"{number}\ttweet de aquí {number}\t1{number}\tuna respuesta\n")
    assert [row["orig_id"] for row in make(tmp_path, folder, name="f")[1]] == ["1", "0", "2"]
    assert [row["orig_id"] for row in make(tmp_path, folder / "*.tsv", folder / "a.tsv", name="g")[1]] == ["1", "0"]


# What is kept, dropped, refused


def test_stray_quotes_are_text(tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    raw.write_text(tsv([('"1', '"uno dos tres', "2", 'cuatro" cinco'), ("3", 'seis siete "ocho', "4", '"nueve"')]))
    assert [row["orig_text"] for row in make(tmp_path, raw)[1]] == ['"uno dos tres', 'seis siete "ocho']


def test_a_refused_line_is_listed_with_its_number_and_the_rest_is_kept(tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    good = [f"{i}\ttweet número {i} aquí\t1{i}\tuna respuesta" for i in range(100, 110)]
    bad = [
        b"1\tse\xf1or de aqui\t2\tx",
        b"5\tuno\t6\tdos\ttres",
        b"\ttweet sin id\t8\tx",
        b"9\tun tweet\t\tuna r",
        b"1\ta\0b\t2\tx",
    ]
    lines = [HEADER.strip().encode(), *(line.encode() for line in good)]
    for position, line in zip((3, 5, 7, 9, 11), bad, strict=True):
        lines.insert(position, line)
    raw.write_bytes(b"\n".join(lines))
    reasons = ["not UTF-8", "5 cells, expected 4", "no ORIG_ID", "a reply without REPLY_ID", "a NUL byte"]
    expected = list(zip((4, 6, 8, 10, 12), reasons, strict=True))
    for piece_bytes in (30, 2**20):  # line numbers do not depend on where the file is cut
        name = f"corpus{piece_bytes}"
        info, rows = make(tmp_path, raw, name=name, piece_bytes=piece_bytes)
        assert len(rows) == 10
        assert (info["lines_read"], info["rejected"]) == (15, 5)
        assert [(r["line"], r["reason"]) for r in rejects(tmp_path / name)] == expected
        assert {r["file"] for r in rejects(tmp_path / name)} == {str(raw)}


def test_bad_json_lines_are_refused_alone(tmp_path: Path):
    raw = tmp_path / "raw.jsonl"
    good = '{"orig_id": 1, "orig_text": "un tweet aquí", "reply_id": "2", "reply_text": "si"}'
    bad = [
        "{",
        "[]",
        '{"orig_id": 1.5, "orig_text": "a"}',
        '{"orig_id": 1, "orig_text": "\\ud800"}',
        '{"orig_id": true}',
    ]
    raw.write_text("\n".join([good, *bad]) + "\n")
    _, rows = make(tmp_path, raw)
    assert len(rows) == 1
    assert [reject["line"] for reject in rejects(tmp_path / "corpus")] == [2, 3, 4, 5, 6]


def test_poor_pairs_are_dropped_and_counted(tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    raw.write_text(
        tsv(
            [
                ("1", "@a @b https://t.co/x", "2", "@c"),
                ("3", "hola amigo", "4", "qué tal"),
                ("5", "…", "6", "una respuesta larga"),
                ("7", "un tweet con respuesta vacía", "8", "…"),
            ]
        )
        + "\n  \n"
    )
    info, rows = make(tmp_path, raw)
    assert info["dropped"] == {"blank_line": 2, "empty_tweet": 1, "only_mentions_and_links": 1, "too_short": 1}
    assert [(row["reply_id"], row["reply_text"]) for row in rows] == [(None, None)]


def test_repeats_are_dropped_across_files_and_the_first_stays(tmp_path: Path):
    first, second = tmp_path / "a.tsv", tmp_path / "b.tsv"
    first.write_text(
        tsv(
            [("1", "primera vez aquí", "2", "x"), ("1", "primera vez aquí", "3", "x"), ("4", "tweet solo aquí", "", "")]
        )
    )
    second.write_text(
        tsv(
            [("4", "tweet solo aquí", "", ""), ("1", "primera vez aquí", "2", "x"), ("1", "segunda vez aquí", "2", "y")]
        )
    )
    info, rows = make(tmp_path, first, second)
    assert info["dropped"] == {"repeated": 2}
    assert sorted((row["orig_id"], row["reply_id"] or "", row["orig_text"]) for row in rows) == [
        ("1", "2", "primera vez aquí"),
        ("1", "2", "segunda vez aquí"),  # an id that has lost digits, not a repeat
        ("1", "3", "primera vez aquí"),
        ("4", "", "tweet solo aquí"),
    ]


# The validation split


def test_conversations_are_held_out_whole(tmp_path: Path):
    raw = tmp_path / "raw.tsv"
    raw.write_text(
        tsv([(f"t{i // 3}", f"tweet número {i // 3} aquí", f"r{i}", f"respuesta {i}") for i in range(6_000)])
    )
    info, train = make(tmp_path, raw, valid_share=0.1)
    valid = rows_of(tmp_path / "corpus", "valid")
    assert len(train) + len(valid) == 6_000
    assert 450 < len(valid) < 750
    assert not {row["orig_id"] for row in train} & {row["orig_id"] for row in valid}
    assert info["splits"]["valid"]["rows"] == len(valid)


def test_valid_shares_no_id_and_no_pair_of_texts_with_train(tmp_path: Path):
    out = in_valid(hashes(str(i) for i in range(1_000)), valid_threshold(0.1))
    held, trained = ([str(i) for i in range(1_000) if out[i] == side] for side in (True, False))
    v, t = iter(held), iter(trained)
    reply, shared, kept = next(v), next(t), next(v)
    rows = [
        (next(t), "un tweet de train", reply, "respuesta de train"),
        (reply, "sigue la conversación aquí", "x1", "otra respuesta"),  # its tweet is a reply in train
        (shared, "otro tweet de train", "x2", "otra respuesta"),
        (next(v), "contesta a un tweet", shared, "que abre train"),  # its reply opens a conversation of train
        (next(t), "los mismos textos aquí", "x3", "en las dos partes"),
        (next(v), "los mismos textos aquí", "x4", "en las dos partes"),
        (next(t), "sin respuesta en ninguna", "", ""),
        (next(v), "sin respuesta en ninguna", "", ""),
        (kept, "los mismos textos aquí", "x5", "con otra respuesta"),
    ]
    raw = tmp_path / "raw.tsv"
    raw.write_text(tsv(rows))
    info, train = make(tmp_path, raw, valid_share=0.1)
    assert info["dropped"] == {"shares_id_with_train": 2, "shares_texts_with_train": 2}
    assert len(train) == 4
    assert [row["orig_id"] for row in rows_of(tmp_path / "corpus", "valid")] == [kept]


# Shards


def test_shards_are_the_same_bytes_wherever_the_input_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verb, "PARTITION_BYTES", 2**18)
    monkeypatch.setattr("twilbert.data.tables.blocks._PARQUET_ROWS", 1_000)
    sample_pairs(str(tmp_path / "sample"), 6_000)
    raw = tmp_path / "sample" / "pairs.tsv"
    infos = [
        make(tmp_path, raw, name=f"corpus{size}", piece_bytes=size, valid_share=0.1)[0]
        for size in (10_007, 2**17, 2**30)
    ]
    assert len(infos[0]["splits"]["train"]["shards"]) > 3
    assert infos[0]["splits"] == infos[1]["splits"] == infos[2]["splits"]


def test_row_groups_hold_8192_rows_and_drops_are_those_the_sample_was_given(tmp_path: Path):
    info = sample_pairs(str(tmp_path / "sample"), 20_000)
    made, _ = make(tmp_path, tmp_path / "sample" / "pairs.tsv", valid_share=0.05)
    assert made["dropped"] == info["to_drop"]
    footer = pq.read_metadata(tmp_path / "corpus" / "train" / "00000.parquet")
    sizes = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
    assert sizes[:-1] == [8_192] * (len(sizes) - 1)
