"""Generated data is reproducible, as hard to read as real tweets, and has the entropies that it states."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from twilbert import sample
from twilbert.data.cleaning import TWILBERT as clean
from twilbert.data.synthetic.language import STYLES, VARIED, figures, language
from twilbert.data.synthetic.pairs import draw_lines, draw_texts
from twilbert.data.synthetic.tasks import draw_labelled


@pytest.fixture(scope="module")
def lines() -> list[list[str]]:
    return [line.split("\t") for line in draw_lines(0, 0).data.decode().splitlines()]


def test_a_seed_gives_the_same_lines_and_fewer_are_the_first_of_more(tmp_path: Path):
    sample.sample_pairs(str(tmp_path / "a"), 300, seed=1)
    sample.sample_pairs(str(tmp_path / "b"), 200, seed=1)
    sample.sample_pairs(str(tmp_path / "c"), 200, seed=2)
    a, b, c = (Path(tmp_path, name, "pairs.tsv").read_text().split("\n") for name in "abc")
    assert a[0] == "ORIG_ID\tORIG_TEXT\tREPLY_ID\tREPLY_TEXT"
    assert (len(a), len(b)) == (302, 202)
    assert a[:201] == b[:201]
    assert b[1:5] != c[1:5]
    # Batches follow each other: ids never meet again.
    first, second = (draw_lines(1, number).data.decode().splitlines() for number in (0, 1))
    assert not {line.split("\t")[0] for line in first} & {line.split("\t")[0] for line in second}


def test_lines_look_like_tweets(lines: list[list[str]]):
    assert {len(line) for line in lines} == {4}
    assert all(line[i].isdigit() and len(line[i]) == 19 for line in lines for i in (0, 2))
    text = " ".join(line[1] + " " + line[3] for line in lines)
    marks = [
        "@",
        "https://t.co/",
        "#Fútbol",
        "&amp;",
        "&quot;",
        '"',
        "&lt;3",
        "…",
        "  ",
        "¿",
        "👩‍👩‍👧",
        "🤦🏽‍♀️",
        "aaaa",
    ]
    assert not [mark for mark in marks if mark not in text]


def test_threads_have_several_replies_under_one_tweet(lines: list[list[str]]):
    threads = Counter(line[0] for line in {tuple(line) for line in lines})
    assert max(threads.values()) >= 4
    assert 0.15 < np.mean([n > 1 for n in threads.values()]) < 0.45
    texts: dict[str, set[str]] = {}
    for orig_id, tweet, _, reply in lines:
        if clean.drop_reason(clean(tweet), clean(reply)) is None:
            texts.setdefault(orig_id, set()).add(tweet)
    assert all(len(tweets) == 1 for tweets in texts.values())


def test_cleaned_words_are_words_of_the_language_or_their_other_forms(lines: list[list[str]]):
    lang = language()
    known = {*lang.vocabulary, *(form for forms in lang.variants for form in forms)}
    for _, tweet, _, reply in lines[:2_000]:
        for word in f"{clean(tweet)} {clean(reply)}".split():
            assert word.removeprefix("¿").rstrip(",.!?") in known or word in known, word


def test_the_order_of_a_pair_shows_in_many_words(lines: list[list[str]]):
    lang = language()
    marks = {
        name: {w for w, c in zip(lang.vocabulary, lang.classes, strict=True) if c == name} for name in lang.classes
    }
    tweets, replies = (" ".join(clean(line[i]) for line in lines).replace(",", "").split() for i in (1, 3))
    assert not marks["OPEN"] & set(replies)
    in_tweets = sum(word in marks["ANSWER"] for word in tweets)
    in_replies = sum(word in marks["ANSWER"] for word in replies)
    assert in_tweets < 0.02 * in_replies  # only lines made to be dropped
    share = Counter(word for word in replies if word in marks["ANSWER"]).most_common(1)[0][1] / in_replies
    assert share < 0.2  # no single word gives it away


def _texts(topic: int, style: int, n: int, seed: int) -> np.ndarray:
    """Texts as local word numbers, [n, longest], -1 after the end."""
    lang = language()
    words = draw_texts(np.full(n, topic), np.full(n, style), np.random.default_rng(seed))
    local = np.full(len(lang.vocabulary), -1)
    local[lang.words[topic]] = np.arange(lang.words.shape[1])
    return np.where(words >= 0, local[words], -1)


def test_the_unigram_and_perfect_entropies_are_those_of_drawn_texts():
    # Independent of the closed form: the log-loss of the chain's posterior, and word counts, over drawn texts.
    lang, size = language(), language().words.shape[1]
    counts = np.zeros(len(lang.vocabulary))
    loss = {1: 0.0, 2: 0.0, 3: 0.0}
    hidden = {1: 0.0, 2: 0.0, 3: 0.0}
    for topic, style, share in lang.texts():
        chain = lang.chains[topic, style]
        between = chain[:size, :size]
        to_words, from_words = [chain[:, :size]], [chain[:size]]
        for _ in range(2):
            to_words.append(to_words[-1] @ between)
            from_words.append(between @ from_words[-1])
        around_words = [to_words[0] @ m for m in from_words]
        n = int(60_000 * share) + 1
        texts = _texts(topic, style, n, seed=100 * topic + style)
        weight = share / n
        np.add.at(counts, lang.words[topic][texts[texts >= 0]], weight)
        ends = np.full((n, 1), -1)
        padded = np.concatenate([np.full((n, 1), size), texts, ends, ends], axis=1)
        for length in (1, 2, 3):
            for offset in range(1, length + 1):
                to_word, from_word, around = to_words[offset - 1], from_words[length - offset], around_words[length - 1]
                left = padded[:, : -length - 1]
                word = padded[:, offset : padded.shape[1] - length - 1 + offset]
                right = padded[:, length + 1 :]
                # The whole span lies inside the text; what follows is a word or its end (column `size`).
                inside = (padded[:, length : padded.shape[1] - 1] >= 0) & (left >= 0)
                a, w, b = left[inside], word[inside], right[inside]
                b = np.where(b < 0, size, b)
                loss[length] -= weight * np.log(to_word[a, w] * from_word[w, b] / around[a, b]).sum() / length
                hidden[length] += weight * inside.sum() / length
    p = counts / counts.sum()
    unigram = -(p[p > 0] * np.log(p[p > 0])).sum()
    written = figures().perfect - loss[1] / hidden[1]  # how a word is written: the same in every figure
    assert 0.05 < written < 0.2
    assert unigram + written == pytest.approx(figures().unigram, abs=0.03)
    assert np.mean([loss[n] / hidden[n] for n in loss]) + written == pytest.approx(figures().span, abs=0.03)
    assert counts.sum() == pytest.approx(figures().words_per_text, rel=0.01)


def test_how_words_are_written_adds_the_entropy_it_should():
    lang = language()
    p = np.zeros(len(lang.vocabulary))
    for topic, style, share in lang.texts():
        texts = _texts(topic, style, int(20_000 * share) + 1, seed=style)
        np.add.at(p, lang.words[topic][texts[texts >= 0]], share)
    p /= p.sum()
    n = np.array([len(forms) for forms in lang.variants])
    each = np.where(n > 0, -(1 - VARIED) * np.log(1 - VARIED) - VARIED * np.log(VARIED / np.maximum(n, 1)), 0)
    bare = figures().perfect - (p * each).sum()
    assert 1.8 < bare < figures().perfect < figures().span < figures().unigram - 3


def test_every_text_tells_its_topic_and_every_clear_one_its_style():
    # This makes the closed form exact: whatever single word is hidden, the rest of the pair gives topic and styles.
    lang, size = language(), language().words.shape[1]
    names = np.array([lang.classes[w] for w in lang.words[0]])
    own = np.isin(names, ["NOUN_M", "NOUN_F"])
    marks = {"statement": [["OPEN"]], "question": [["QMARK"], ["QEND"]], "reply": [["ANSWER"]], "neutral": []}
    assert len(names) == size
    for style, style_name in enumerate(STYLES):
        texts = _texts(3, style, 2_000, seed=style)
        assert (own[texts] & (texts >= 0)).any(axis=1).all()
        for mark in ("OPEN", "QMARK", "QEND", "ANSWER"):
            held = ((names[texts] == mark) & (texts >= 0)).any(axis=1)
            assert held.all() if [mark] in marks[style_name] else not held.any(), (style_name, mark)


def test_the_command_prints_and_stores_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "sample"
    assert sample.main(["pairs", "--out", str(out), "--pairs", "1000"]) == 0
    info = json.loads((out / "sample.json").read_text())
    printed = capsys.readouterr().out
    for name in ("unigram", "perfect", "span"):
        assert f"{info['nats_per_word'][name]:.3f}" in printed
    assert "perfect: entropy of a word" in info["meaning"]
    assert info["nats_per_word"]["best_rop_accuracy"] == 0.97
    assert "1,000 pairs" in printed.splitlines()[-1]
    dropped, ids = Counter(), set()
    for line in (out / "pairs.tsv").read_text().splitlines()[1:]:
        orig_id, tweet, reply_id, reply = line.split("\t")
        dropped[clean.drop_reason(clean(tweet), clean(reply)) or "repeated"] += 1
        ids.add((orig_id, reply_id))
    n_whole = len(ids) - dropped["too_short"] - dropped["only_mentions_and_links"]
    dropped["repeated"] -= n_whole
    assert {reason: dropped[reason] for reason in info["to_drop"]} == info["to_drop"]


# Tasks


@pytest.mark.parametrize(
    ("n_labels", "multi", "two_texts"),
    [(2, False, False), (3, False, True), (7, False, False), (25, False, False), (11, True, False)],
)
def test_labelled_texts_can_be_learned_and_words_alone_do_not_tell_all(n_labels: int, multi: bool, two_texts: bool):
    rows = draw_labelled("a-task", n_labels, 2_000, 0, multi=multi, two_texts=two_texts)
    labels = rows.labels if multi else np.eye(n_labels, dtype=int)[rows.labels]
    texts = [clean(text, remove_rt=True) for text in rows.texts]
    if rows.texts_b is not None:
        texts = [f"{a} {clean(b)}" for a, b in zip(texts, rows.texts_b, strict=True)]
    bag = TfidfVectorizer(token_pattern=r"\S+")
    train, test = bag.fit_transform(texts[:1_500]), bag.transform(texts[1_500:])
    columns = [LogisticRegression(C=10).fit(train, y[:1_500]).predict_proba(test)[:, 1] for y in labels.T]
    predicted = np.stack(columns, axis=1)
    truth = labels[1_500:]
    if multi:
        right, blind = ((predicted > 0.5) == truth).mean(), np.maximum(labels.mean(0), 1 - labels.mean(0)).mean()
        assert blind + 0.04 < right < rows.best - 0.05
    else:
        right, blind = (predicted.argmax(1) == truth.argmax(1)).mean(), labels.mean(0).max()
        assert blind + 0.2 < right < rows.best - 0.05
        assert blind < 0.6
    assert 0.95 < rows.best < 0.99


def test_the_label_is_the_topic_of_the_last_clause():
    # A perfect reader of "pero el …" clauses reaches the best accuracy.
    rows = draw_labelled("a-task", 4, 600, 3, multi=False, two_texts=False)
    lang = language()
    topic_of = {}
    for topic, words in enumerate(lang.words):
        for word in words[-168:]:  # the topic's own
            topic_of |= dict.fromkeys([lang.vocabulary[word], *lang.variants[word]], topic)
    topics = []
    for text in rows.texts:
        words = [word for word in clean(text).split()[-3:] if word in topic_of]
        topics.append(Counter(topic_of[word] for word in words).most_common(1)[0][0])
    of_label = [Counter(np.array(topics)[rows.labels == label]).most_common(1)[0][0] for label in range(4)]
    assert len(set(of_label)) == 4
    assert np.mean([of_label[label] == topic for label, topic in zip(rows.labels, topics, strict=True)]) == rows.best


def test_a_task_is_written_in_its_own_layout_and_a_seed_gives_the_same_files(tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        info = sample.sample_task("multistance18", str(tmp_path / name), 200, seed)
        assert info["rows"] == {"train": 120, "dev": 40, "test": 40}
    a, b, c = ((tmp_path / name / "multistance18" / "train.csv").read_text() for name in "abc")
    assert a == b != c
    lines = [line.split("\t") for line in a.rstrip("\n").split("\n")]
    assert lines[0] == ["ID", "TEXT", "PREV", "NEXT", "CLASS"] and {len(line) for line in lines} == {5}
    assert {line[4] for line in lines[1:]} == {"AGAINST", "NEUTRAL", "FAVOR"}
    assert "vacío" in {line[3] for line in lines} and any(line[1].startswith("RT @") for line in lines)
    sample.sample_task("semeval18_affect", str(tmp_path), 200)
    affect = (tmp_path / "semeval18_affect" / "dev.csv").read_text().rstrip("\n").split("\n")[1:]
    flags = [line.split("\t")[2] for line in affect]
    assert {len(row.split("|")) for row in flags} == {11} and set("".join(flags)) == {"0", "1", "|"}
    files = {
        split: (tmp_path / "a" / "multistance18" / f"{split}.csv").read_text().split("\n")[1:]
        for split in ("train", "test")
    }
    assert not {line.split("\t")[0] for line in files["train"]} & {line.split("\t")[0] for line in files["test"]} - {""}


def test_the_task_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert sample.main(["task", "irosva19_es", "irosva19_mx", "--out", "tasks", "--rows", "50"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split() == ["irosva19_es", "30", "10", "10", printed[2].split()[-1]]
    assert printed[-1] == f"wrote generated 2 tasks to {tmp_path}/tasks, seed 0; where finetune and tune look"
    assert sorted(path.name for path in Path("tasks/irosva19").iterdir()) == ["subtask_a", "subtask_b"]
    assert json.loads(Path("tasks/irosva19/subtask_a/sample.json").read_text())["task"] == "irosva19_es"
    assert sample.main(["task", "tass20_task1", "--out", "else", "--rows", "50"]) == 0
    assert f"to {tmp_path}/else/tass20/subtask1, seed 0; read with data_dir={tmp_path}/else" in capsys.readouterr().out
    assert Path("else/tass20/subtask1/train/es.tsv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task"], "task: which? give names, or all: coset17"),
        (["task", "stance17", "stance18"], "stance18: no such task; registered are coset17"),
        (["task", "tass20_task2", "--rows", "60"], "needs at least 70 rows"),
        (["task", "stance17", "--seed", "-1"], "a seed from 0"),
        (["pairs", "--pairs", "0"], "at least one pair"),
        (["pairs", "stance17"], "pairs takes no names, got stance17"),
    ],
)
def test_wrong_use_is_refused(tmp_path: Path, arguments, message: str, capsys):
    assert sample.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["task", "stance17", "--out", "."], ["pairs", "--out", "stance17"]])
def test_files_are_not_replaced_without_a_flag(tmp_path: Path, arguments, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("stance17").mkdir()
    Path("stance17/train.csv").write_text("mine")
    assert sample.main(arguments) == 2
    assert "already holds something" in capsys.readouterr().err
    assert Path("stance17/train.csv").read_text() == "mine"
