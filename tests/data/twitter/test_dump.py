"""Dumps of tweets in every form that people have: the right ids, texts and replies, or a record refused by place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.raw_pairs import make, rejects
from twilbert.data.tables import blocks
from twilbert.data.tables import lines as lines_of
from twilbert.data.tables.blocks import Piece
from twilbert.data.tables.files import Source
from twilbert.data.tables.pairs import LOST_DIGITS
from twilbert.data.twitter import dump
from twilbert.data.twitter.objects import FIRST_MADE_ID, Tweets
from twilbert.errors import TwilbertError, UsageError

A, B, C = 1214000000000000001, 1214000000000000003, 1214000000000000009  # no float holds them
LONG = "un tweet largo que la interfaz antigua corta por la mitad y sigue aquí"
V1 = {"id": B, "id_str": str(B), "full_text": "@ana pues sí", "in_reply_to_status_id_str": str(A)}
V2 = {"id": str(B), "text": "@ana pues sí", "referenced_tweets": [{"type": "replied_to", "id": str(A)}]}
TWEET, REPLY = (A, LONG, 0), (B, "@ana pues sí", A)


def tweets_of(path: Path) -> list[Tweets]:
    file = dump.inspect(Source(str(path), path.name))
    assert file is not None
    return [tweets for piece in blocks.cut(file, 2**62) for tweets in dump.read(piece)]


def rows(stretches: list[Tweets]) -> list[tuple[int, str, int]]:
    assert not any(tweets.rejects for tweets in stretches)
    return [row for t in stretches for row in zip(t.ids, t.texts, t.reply_to, strict=True)]


def lines(*records: dict) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


CUT = {"id": A, "id_str": str(A), "text": LONG[:30] + "… https://t.co/x", "truncated": True}
WHOLE = {**CUT, "extended_tweet": {"full_text": LONG}}
PAGE = {"data": [V2], "includes": {"tweets": [{"id": str(A), "text": LONG}], "users": [{"id": "7", "name": "Ana"}]}}
FORMS: dict[str, tuple[str, str]] = {
    "v1.1, a line each": ("a.jsonl", lines(WHOLE, V1)),
    "v1.1, an array": ("a.json", json.dumps([WHOLE, V1], indent=1)),
    "v1.1, no name that says what it is": ("a.txt", lines(WHOLE, V1)),
    "UTF-16, as PowerShell redirects": ("a.jsonl", "\ufeff" + lines(WHOLE, V1)),
    "v1.1, pages of a search": ("a.json", json.dumps({"statuses": [WHOLE, V1], "search_metadata": {"count": 2}})),
    "v1.1, a quoted tweet": ("a.jsonl", lines({**V1, "quoted_status": WHOLE})),
    "v1.1, ids as numbers": (
        "a.jsonl", lines({"id": A, "text": LONG}, {"id": B, "text": "@ana pues sí", "in_reply_to_status_id": A})
    ),
    "v1.1, floats beside exact ids": ("a.jsonl", lines(
        {"id": 1.2e18, "id_str": str(A), "text": LONG, "in_reply_to_status_id": float("nan")},
        {**V1, "id": 1.2e18, "in_reply_to_status_id": 1.2e18},
    )),
    "MongoDB": ("a.jsonl", lines({**WHOLE, "_id": {"$oid": "5e"}, "id": {"$numberLong": str(A)}}, V1)),
    "v2, pages": ("a.jsonl", lines(PAGE)),
    "v2, an indented page": ("a.json", json.dumps(PAGE, indent=4)),
    "v2, an indented page over a megabyte": ("a.json", json.dumps({"meta": "z" * 2**21, **PAGE}, indent=4)),
    "v2, a stream": ("a.jsonl", lines({"data": V2, "includes": PAGE["includes"], "matching_rules": [{"id": "1"}]})),
    "v2, flattened": (
        "a.jsonl", lines({**V2, "referenced_tweets": [{"type": "replied_to", "id": str(A), "text": LONG}]})
    ),
    "v2, long texts": ("a.jsonl", lines(V2, {"id": str(A), "text": LONG[:40], "note_tweet": {"text": LONG}})),
    "the archive": (
        "tweets.js", "window.YTD.tweets.part0 = " + json.dumps([{"tweet": WHOLE}, {"tweet": V1}], indent=2) + ";\n"
    ),
    "the archive of 2015": ("2015_02.js", "Grailbird.data.tweets_2015_02 =\n" + json.dumps([WHOLE, V1])),
    "rtweet": (
        "a.csv", f'user_id,status_id,text,reply_to_status_id\nx1,x{A},"{LONG}",NA\nx2,x{B},@ana pues sí,x{A}\n'
    ),
    "twarc-csv": (
        "a.csv",
        "id,in_reply_to_user_id,text,referenced_tweets.replied_to.id,referenced_tweets.retweeted.id\n"
        f"{A},,{LONG},,\n{B},7,@ana pues sí,{A},\n",
    ),
    "semicolons": ("a.csv", f"id;text;in_reply_to_status_id\n{A};{LONG};\n{B};@ana pues sí;{A}\n"),
    "academictwitteR": (
        "a.csv", "tweet_id,text,sourcetweet_type,sourcetweet_id,sourcetweet_text\n"
        f"{B},@ana pues sí,replied_to,{A},{LONG}\n",
    ),
    "references as Python and tweepy print them": (
        "a.csv", f"id,text,referenced_tweets\n{A},{LONG},\n"
        f"{B},@ana pues sí,\"[{{'type': 'quoted', 'id': '5'}}, {{'type': 'replied_to', 'id': '{A}'}}]\"\n",
    ),
    "tweepy's objects": (
        "a.csv",
        f"id,text,referenced_tweets\n{A},{LONG},[]\n{B},@ana pues sí,[<ReferencedTweet id={A} type=replied_to]\n",
    ),
    "the election archives": (
        "a.csv", f'"tweetid","tweet_text","in_reply_to_tweetid"\n"{A}","{LONG}",""\n"{B}","@ana pues sí","{A}"\n'
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMS)
@pytest.mark.parametrize("is_packed", [False, True])
def test_every_form_gives_the_same_tweets(case: str, is_packed: bool, tmp_path: Path):
    name, text = FORMS[case]
    path = tmp_path / (name + ".gz" * is_packed)
    data = text.encode("utf-16-le" if case.startswith("UTF-16") else "utf-8")
    path.write_bytes(gzip.compress(data) if is_packed else data)
    assert sorted(rows(tweets_of(path))) == [TWEET, REPLY]


def test_parquet_is_a_table_too(tmp_path: Path):
    table = {"id": [A, B], "text": [LONG, "@ana pues sí"], "in_reply_to_status_id": [None, A], "likes": [1.5, None]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert rows(tweets_of(tmp_path / "a.parquet")) == [TWEET, REPLY]


def test_what_data_frames_write_for_no_id_is_none(tmp_path: Path):
    nan = float("nan")
    table = {
        "id": [A, B],
        "text": [LONG, "@ana pues sí"],
        "retweeted_status_id": [nan, nan],
        "quoted_status_id": [0, 0],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text(f"id,text,in_reply_to_status_id,retweet_status_id\n{A},{LONG},nan,0\n")
    assert rows(tweets_of(tmp_path / "a.parquet")) == [TWEET, (B, "@ana pues sí", 0)]
    assert rows(tweets_of(tmp_path / "b.csv")) == [TWEET]


RT = f"RT @ana: {LONG[:50]}…"
RETWEETS: dict[str, tuple[str, str]] = {
    "v1.1": ("a.jsonl", lines({"id": C, "text": RT, "retweeted_status": {**WHOLE, "id_str": str(A)}})),
    "v2 with includes": ("a.jsonl", lines({
        "data": [{"id": str(C), "text": RT, "referenced_tweets": [{"type": "retweeted", "id": str(A)}]}],
        "includes": {"tweets": [{"id": str(A), "text": LONG}]},
    })),
    "v2, flattened": ("a.jsonl", lines(
        {"id": str(C), "text": RT, "referenced_tweets": [{"type": "retweeted", "id": str(A), "text": LONG}]}
    )),
    "rtweet": ("a.csv", f"status_id,text,retweet_status_id,retweet_text\n{C},{RT},{A},{LONG}\n"),
    "twarc-csv": ("a.csv", f"id,text,referenced_tweets.retweeted.id\n{C},RT @ana: {LONG},{A}\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", RETWEETS)
def test_a_retweet_is_what_it_retweets(case: str, tmp_path: Path):
    name, text = RETWEETS[case]
    (tmp_path / name).write_text(text)
    info, made = make(tmp_path, tmp_path / name, form="twitter")
    assert [(row["orig_id"], row["orig_text"]) for row in made] == [(str(A), LONG)]
    assert info["twitter"]["retweets"] == 1 and info["twitter"]["tweets"] == 1


def test_retweets_without_the_id_of_the_tweet_stand_once(tmp_path: Path):
    path = tmp_path / "tweets.js"
    tweets = [{"id_str": str(A + i), "full_text": f"RT @ana: {LONG}"} for i in range(3)]
    path.write_text("window.YTD.tweets.part0 = " + json.dumps([{"tweet": tweet} for tweet in tweets]))
    assert {number >= FIRST_MADE_ID for number, _, _ in rows(tweets_of(path))} == {True}
    info, made = make(tmp_path, path, form="twitter")
    assert [row["orig_text"] for row in made] == [LONG] and made[0]["orig_id"].startswith("t")
    assert info["twitter"]["retweets"] == 3
    (tmp_path / "a.jsonl").write_text(lines({**V1, "full_text": "RT @ana: tecleado"}))
    assert rows(tweets_of(tmp_path / "a.jsonl")) == [(B, "RT @ana: tecleado", A)]  # a reply is none


def test_notices_are_counted_and_skipped(tmp_path: Path):
    notices = [
        {"delete": {"status": {"id": 1, "id_str": "1", "user_id": 3}}},
        {"limit": {"track": 5}},
        {"scrub_geo": {"user_id": 1}},
        {"status_withheld": {"id": 1}},
        {"errors": [{"title": "operational-disconnect"}]},
        {"meta": {"result_count": 0}},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text(lines(notices[0], WHOLE, *notices[1:4]) + "\n\r\n" + lines(V1, *notices[4:]))
    stretches = tweets_of(path)
    assert rows(stretches) == [TWEET, REPLY]
    assert sum(tweets.notices for tweets in stretches) == len(notices)


DAMAGED: list[tuple[dict | str, str]] = [
    ({"orig_id": "1", "orig_text": "x"}, "neither a tweet nor a page of tweets (keys: 'orig_id', 'orig_text')"),
    ({"text": "sin id"}, "a tweet without id (expected id or id_str)"),
    ({"id": A, "text": None}, "a tweet without text"),
    ({"id": 1.214e18, "text": "hola"}, LOST_DIGITS),
    ({"id": A, "text": "hola", "in_reply_to_status_id": 1.2e18}, LOST_DIGITS),
    ({"id": "1.214E+18", "text": "hola"}, LOST_DIGITS),
    ({"id": 2**64, "text": "hola"}, "an id that is no whole number of up to 63 bits"),
    ({"id": True, "text": "hola"}, "an id that is no whole number of up to 63 bits"),
    ({"id": "A1", "text": "hola"}, "an id that is no whole number of up to 63 bits"),
    ('{"id": "1", "text": "\\ud83d mitad"}', "not UTF-8"),
    ('{"id": "1", "text": "cort', "not JSON"),
    ("[1, 2]", "not a JSON object"),
]  # fmt: skip


def test_damaged_records_are_refused_by_line_and_the_rest_is_read(tmp_path: Path):
    bad = [record if isinstance(record, str) else json.dumps(record) for record, _ in DAMAGED]
    path = tmp_path / "a.jsonl"
    path.write_text(lines(V1) + "".join(line + "\n" for line in bad) + lines(WHOLE))
    for piece_bytes in (50, 2**20):
        info, made = make(tmp_path, path, name=f"c{piece_bytes}", form="twitter", piece_bytes=piece_bytes)
        assert [(row["orig_id"], row["reply_id"]) for row in made] == [(str(A), str(B))]
        expected = [(line, reason) for line, (_, reason) in enumerate(DAMAGED, start=2)]
        assert [(r["line"], r["reason"]) for r in rejects(tmp_path / f"c{piece_bytes}")] == expected
        assert info["rejected"] == len(DAMAGED)


def test_a_damaged_tweet_of_a_page_or_array_is_refused_by_its_place(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        lines(WHOLE, {"data": [V2, {"id": "9"}], "includes": {"tweets": [{"text": "x"}, 3]}})
    )
    (tmp_path / "b.json").write_text(json.dumps([WHOLE, 7, {"id": 1e18, "text": "x"}]))
    _, made = make(tmp_path, tmp_path / "a.jsonl", tmp_path / "b.json", form="twitter")
    assert [row["reply_id"] for row in made] == [str(B)]
    assert [(Path(r["file"]).name, r["line"], r["place"]) for r in rejects(tmp_path / "corpus")] == [
        ("a.jsonl", 2, "data 2"), ("a.jsonl", 2, "includes.tweets 1"), ("a.jsonl", 2, "includes.tweets 2"),
        ("b.json", 1, "record 2"), ("b.json", 1, "record 3"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", lines({"orig_id": "1", "orig_text": "x"}), "line 1: neither a tweet nor a page"),
        ("a.jsonl", lines({"delete": {}}, {"orig_id": "1"}), "line 2: neither a tweet nor a page"),
        ("a.json", json.dumps([{"name": "Ana"}], indent=1), "line 2 (record 1): neither a tweet"),
        ("a.csv", "orig_id,orig_text\n1,hola\n", "columns found: 'orig_id', 'orig_text'; expected those of tweets"),
        ("a.csv", f"{A},hola\n{B},adiós\n", "expected those of tweets"),
    ],
)
def test_what_is_no_dump_is_refused_at_the_start(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as error:
        make(tmp_path, tmp_path / name, form="twitter")
    assert message in str(error.value) and "--format twitter" in str(error.value)
    assert not (tmp_path / "corpus").exists()


def test_tweets_read_as_pairs_are_refused_with_the_option_that_reads_them(tmp_path: Path):
    for case in ("v2, pages", "the archive", "twarc-csv"):
        name, text = FORMS[case]
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=r"columns found: .*twilbert-prepare --format twitter"):
            make(tmp_path, tmp_path / name)


def test_an_array_of_one_line_is_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines_of, "LONGEST_LINE", 1_000)
    padded = {**WHOLE, "entities": "ñandú" * 1_000}
    (tmp_path / "a.json").write_text(json.dumps([padded, *[V1] * 300], ensure_ascii=False))
    file = dump.inspect(Source(str(tmp_path / "a.json"), "a.json"))
    assert file is not None
    for size in (7, 4_096):
        stretches = blocks.read_piece(Piece(file, file.data_start, file.size), size)
        assert [number for block in stretches for number in block.column("id")] == [A, *[B] * 300]


@pytest.mark.parametrize("cut", [-1, -2, -40])
def test_a_truncated_array_is_refused_by_file_and_line(cut: int, tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([WHOLE, V1], indent=1)[:cut])
    with pytest.raises(TwilbertError, match=r"a\.json: line \d+: JSON that is cut short; restore the file"):
        make(tmp_path, path, form="twitter")
    assert not (tmp_path / "corpus").exists()


def test_of_the_archive_only_tweets_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "tweets.js").write_text("window.YTD.tweets.part0 = " + json.dumps([{"tweet": WHOLE}]))
    (folder / "tweets-part1.js").write_text("window.YTD.tweets.part1 = " + json.dumps([{"tweet": V1}]))
    (folder / "like.js").write_text('window.YTD.like.part0 = [ {"like" : {"tweetId" : "1", "fullText" : "hola"}} ]')
    (folder / "account.txt.bak").write_text("")
    info, made = make(tmp_path, folder, form="twitter")
    assert [(row["orig_id"], row["reply_id"]) for row in made] == [(str(A), str(B))]
    assert "like.js: the archive's like, which are no tweets, skipped" in capsys.readouterr().err
    assert [Path(name).name for name in info["inputs"]] == ["tweets-part1.js", "tweets.js"]
