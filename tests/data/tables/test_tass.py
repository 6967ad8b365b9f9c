"""TASS XML comes in pieces of any size, and its tweets are bounded."""

from __future__ import annotations

import pytest

from twilbert.data.tables import tass
from twilbert.data.tables.cells import LONGEST_CELL
from twilbert.errors import TwilbertError

TWEETS = """<?xml version="1.0" encoding="UTF-8"?>
<tweets>
  <tweet>
    <tweetid>7</tweetid><user>ana</user>
    <content>¡qué <![CDATA[<día>]]> &#241; <b>muy</b> largo!</content>
    <sentiments>
      <polarity><entity>AVE</entity><value>N</value></polarity>
      <polarity><value>P</value><type>AGREEMENT</type></polarity>
    </sentiments>
  </tweet>
  <tweet><tweetid>8</tweetid><content/><lang>es</lang></tweet>
</tweets>
""".encode()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_pieces_of_any_size_give_the_same_rows(size: int):
    chunks = [TWEETS[start : start + size] for start in range(0, len(TWEETS), size)]
    assert list(tass.rows("t.xml", chunks)) == [
        (2, ["7", "ana", "¡qué <día> ñ muy largo!", "", "", "P"], None),
        (10, ["8", "", "", "", "es", ""], None),
    ]


def test_a_tweet_that_does_not_end_is_refused_with_its_line():
    head = b"<tweets>\n<tweet><tweetid>1</tweetid><content>"
    with pytest.raises(TwilbertError, match=r"t\.xml: line 2: a tweet of over 1,048,576 characters"):
        list(tass.rows("t.xml", [head, *[b"a" * 2**16] * (LONGEST_CELL // 2**16 + 1)]))
