"""A card shows what strangers call things, and nothing of it becomes markup, a link or a field of its header."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.make_models import CONFIG
from twilbert.finetuning.run import _card
from twilbert.hub.card import Records, model_card
from twilbert.model.classifier import HeadConfig

HOSTILE = (
    "Irony\n---\nlicense: mine\n---\n# Heading\n<script>alert(1)</script> [a](javascript:b) ![i](http://x.y/z) | c |"
    " `d` ``` *e* <img src=x onerror=f> https://g.h \\ </table>"
)


def results() -> dict[str, Any]:
    scores = {"mean": 0.5, "sd": None, "n": 1, "rows": 3, "interval": {"low": None}}
    head = {"pooling": "cls", "own": None}
    recipe = {"training": {"optimizer": "adam", "learning_rate": 1, "batch_size": 2, "epochs": 3}, "head": head}
    names = {"task": HOSTILE, "title": HOSTILE, "model": HOSTILE, "metric": HOSTILE, "twilbert": "0"}
    return {**names, "dev": scores, "test": scores, "counts": {HOSTILE: {"a": HOSTILE}}, "recipe": recipe}


def of_export() -> str:
    records = Records({}, {}, {}, results(), {"type": HOSTILE}, False)
    return model_card(HOSTILE, CONFIG, HeadConfig((HOSTILE, "b")), records)


def of_corpus() -> str:
    corpus = {"lines_read": 3, "dropped": {HOSTILE: 1}, "cleaning": {HOSTILE: HOSTILE}}
    corpus["splits"] = {"train": {"rows": 1}, "valid": {"rows": 1}}
    records = Records({"training": {"a": HOSTILE}}, corpus, {HOSTILE: 0.5}, {}, {}, False)
    return model_card(HOSTILE, CONFIG, None, records)


@pytest.mark.parametrize(
    "card", [of_export(), of_corpus(), _card(results(), pairs=True)], ids=["export", "corpus", "finetune"]
)
def test_names_are_text_alone(card: str):
    _, header, body = card.split("---\n", 2)
    assert set(yaml.safe_load(header)) <= {"language", "library_name", "pipeline_tag", "tags"}
    markdown = MarkdownIt("commonmark", {"html": True, "linkify": True}).enable("table")
    tokens = [token for block in markdown.parse(body) for token in (block, *(block.children or ()))]
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "hr", "lheading_open"}
    headings = [token.tag for token in tokens if token.type == "heading_open"]
    assert headings.count("h1") == 1
    assert sum(token.type == "fence" for token in tokens) <= 3
