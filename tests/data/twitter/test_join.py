"""Replies and their tweets: every pair that is there, every tweet once, the same corpus however it is computed."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from tests.raw_pairs import make, rows_of
from twilbert import prepare as verb
from twilbert.prepare import prepare, run_here


def page(*tweets: dict, includes: list[dict] | None = None) -> str:
    return json.dumps({"data": tweets, "includes": {"tweets": includes or []}}) + "\n"


def tweet(number: int, reply_to: int | None = None, text: str | None = None) -> dict:
    references = {} if reply_to is None else {"referenced_tweets": [{"type": "replied_to", "id": str(reply_to)}]}
    return {"id": str(number), "text": text or f"este es el tweet {number}", **references}


def pairs_of(rows: list[dict]) -> set[tuple[str, str | None]]:
    pairs = [(row["orig_id"], row["reply_id"]) for row in rows]
    assert len(pairs) == len(set(pairs))
    return set(pairs)


def test_replies_are_joined_across_files_and_includes(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(page(tweet(2, 1), tweet(3, 2), tweet(5, 4), tweet(6)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(page(tweet(7, 99), includes=[tweet(1), tweet(4)]).encode()))
    (tmp_path / "c.csv").write_text("id,text,in_reply_to_status_id\n8,un tweet de tabla,7\n9,otra respuesta más,98\n")
    info, rows = make(tmp_path, tmp_path, form="twitter")
    assert pairs_of(rows) == {("1", "2"), ("2", "3"), ("4", "5"), ("6", None), ("7", "8"), ("9", None)}
    assert info["twitter"] == {
        "tweets": 9, "tweets_read": 9, "retweets": 0, "notices": 0, "replies": 6, "pairs": 4, "replies_without_tweet": 2
    }  # fmt: skip
    assert info["splits"]["train"]["single_tweets"] == 2


def test_equal_ids_are_one_tweet_of_the_longest_text_the_first_of_equal_ones(tmp_path: Path):
    copies = [
        tweet(2, text="respuesta cortada…"),
        tweet(2, 1),
        tweet(2, text="una respuesta que es la más larga de todas"),
    ]
    (tmp_path / "a.jsonl").write_text(page(*copies, includes=[tweet(1, text="primera de igual largo")]))
    (tmp_path / "b.jsonl").write_text(page(tweet(1, text="segunda de igual largo")))
    info, rows = make(tmp_path, tmp_path / "a.jsonl", tmp_path / "b.jsonl", form="twitter")
    assert [(row["orig_text"], row["reply_text"]) for row in rows] == [
        ("primera de igual largo", "una respuesta que es la más larga de todas")
    ]
    assert (info["twitter"]["tweets_read"], info["twitter"]["tweets"], info["dropped"]) == (5, 2, {})


def test_a_tweet_that_answers_itself_is_a_single_one(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(page(tweet(1, 1), tweet(2, 3), tweet(3, 2)))
    assert pairs_of(make(tmp_path, tmp_path / "a.jsonl", form="twitter")[1]) == {("1", None), ("2", "3"), ("3", "2")}


def test_a_random_dump_is_joined_as_by_a_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(3)
    ids = [1_500_000_000_000_000_000 + (i << 22) for i in range(1, 1_200)]
    there = ids[:1_000]
    parents = {number: draw.choice(ids) for number in there if draw.random() < 0.5}
    parents = {number: parent for number, parent in parents.items() if parent != number}
    copies = [*there, *draw.choices(there, k=300)]
    draw.shuffle(copies)
    for part in range(7):
        stretch = [tweet(number, parents.get(number)) for number in copies[part::7]]
        (tmp_path / f"{part}.jsonl").write_text(page(*stretch[:50]) + "".join(page(one) for one in stretch[50:]))
    found = {(str(parents[number]), str(number)) for number in parents if parents[number] in set(there)}
    in_pairs = {number for pair in found for number in pair}
    expected = found | {(str(number), None) for number in there if str(number) not in in_pairs}
    made = []
    for partition_bytes, piece_bytes, runner in ((2**30, 2**30, run_here), (40_000, 30_000, reversed_run)):
        monkeypatch.setattr(verb, "PARTITION_BYTES", partition_bytes)
        name = f"corpus{piece_bytes}"
        info, rows = make(
            tmp_path, tmp_path / "*.jsonl", form="twitter", piece_bytes=piece_bytes, runner=runner, name=name
        )
        assert info["twitter"]["pairs"] == len(found)
        assert info["twitter"]["replies_without_tweet"] == len(parents) - len(found)
        made.append((info["options"]["partitions"], info["twitter"], pairs_of(rows)))
    assert made[0][0] == 1 < made[1][0] and made[0][1:] == made[1][1:]
    assert made[0][2] == expected


def reversed_run(work, count: int) -> list:
    """As processes may end: the last first."""
    return [work(index) for index in reversed(range(count))]


def test_the_shards_are_the_same_bytes_in_any_pieces_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verb, "PARTITION_BYTES", 30_000)
    raw = tmp_path / "a.jsonl"
    raw.write_text(
        "".join(page(tweet(i, i // 3), tweet(i // 2, text=f"copia {i % 5} de {i // 2}")) for i in range(2, 400))
    )
    ids = {
        prepare([str(raw)], str(tmp_path / f"{size}"), form="twitter", piece_bytes=size, runner=run)["id"]
        for size, run in ((5_000, run_here), (17_000, reversed_run), (2**20, reversed_run))
    }
    assert len(ids) == 1


@pytest.mark.ray
def test_the_whole_command(ray_local, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw, out = tmp_path / "raw.jsonl", tmp_path / "corpus"
    original = tweet(500, text="lo que otros repiten")
    retweet = {**tweet(501, text="RT @ana: lo que…"), "referenced_tweets": [{"type": "retweeted", "id": "500"}]}
    raw.write_text(
        "".join(page(tweet(i), tweet(1_000 + i, i)) for i in range(1, 101))
        + page(retweet, tweet(7, 6_000), includes=[original])
        + '{"delete": {"status": {"id": 1}}}\n{"id": "3"}\n'
    )
    assert (
        verb.main([str(raw), "--format", "twitter", "--out", str(out), "--num-cpus", "1", "--valid-share", "0.1"]) == 0
    )
    captured = capsys.readouterr()
    assert "read 203 tweets (201 different ones, 1 retweets), skipped 1 notices" in captured.err
    assert "101 replies: 100 pairs found, 1 whose tweet is absent" in captured.err
    assert "refused 1 lines" in captured.err and "neither a tweet nor a page of tweets (keys: 'id')" in captured.err
    assert "of 102 pairs, single tweets and refused records 0 were dropped and 1 refused" in captured.out
    rows = rows_of(out, "train") + rows_of(out, "valid")
    assert {("7", "1007"), ("500", None), ("1", "1001")} < pairs_of(rows) and len(rows) == 101
    assert rows_of(out, "valid")


def test_columns_belong_to_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.jsonl").write_text(page(tweet(1)))
    argv = [
        str(tmp_path / "a.jsonl"),
        "--format",
        "twitter",
        "--out",
        str(tmp_path / "c"),
        "--columns",
        "orig_text=text",
    ]
    assert verb.main(argv) == 2
    assert "--columns: only with --format pairs" in capsys.readouterr().err
