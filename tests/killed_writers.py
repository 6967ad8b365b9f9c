"""Kills commands that replace their output, at random moments, and counts what is then there: python FILE HOME TIMES.

HOME: the folder of tests/test_verb_outputs.py's world. Every command has two settings, so that old and new can be
told apart; its output must be one of the two, and after it has once ended nothing else may be left beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from twilbert import convert, export, sample, vocab
from twilbert import prepare as prepare_verb
from twilbert.data.corpus.corpus import Corpus
from twilbert.data.encoded import encode as encoding
from twilbert.data.tokenizer.tokenizer import Tokenizer
from twilbert.tracking.run_folder import RunFolder

Work = Callable[[int, str], object]


def works(home: Path) -> dict[str, Work]:
    """Verb → what it does with setting 0 or 1 and an output."""
    raws = [str(home / "raw.tsv"), str(home / "raw2.tsv")]

    def encode(setting: int, out: str) -> None:
        corpus, tokenizer = Corpus.open(str(home / "corpus")), Tokenizer.load(str(home / "tokenizer"))
        shards = [(split, shard) for split in corpus.splits for shard in corpus.shards(split)]
        with encoding.outputs.new_folder(out, "encode", overwrite=True) as work:
            entries: dict[str, list] = {"train": [], "valid": []}
            for split, shard in shards:
                (Path(work) / split).mkdir(exist_ok=True)
                target = f"{work}/{shard.file}"
                entry = encoding.encode_shard(corpus.shard_path(shard), shard, target, tokenizer, 8 + setting)
                entries[split].append({"file": shard.file, **entry})
            encoding.layout.write_index(
                work, tokenizer=tokenizer.fingerprint, template=tokenizer.template, max_len=8 + setting,
                corpus=corpus.id, shards=entries,
            )  # fmt: skip

    def publish(setting: int, out: str) -> None:
        run = Path(out).parent
        for step in (0, 1):
            if not (run / f"checkpoint-00000{step}").exists():
                (run / f"checkpoint-00000{step}").mkdir()
                shutil.copytree(home / "model", run / f"checkpoint-00000{step}" / "model")
        RunFolder(str(run), "run", "id", {}).publish(setting, trained_steps=setting)

    data = home / "data"
    return {
        "publish": publish,
        "sample": lambda i, out: sample.sample_pairs(out, 100, seed=i, overwrite=True),
        "prepare": lambda i, out: prepare_verb.prepare(
            [raws[i]], out, valid_share=0.2, overwrite=True, runner=prepare_verb.run_here
        ),
        "encode": encode,
        "vocab": lambda i, out: vocab.vocab(str(home / "corpus"), out, vocab_size=400 + i, overwrite=True),
        "export": lambda i, out: export.export(str(home / "model"), out, title=f"title {i}", overwrite=True),
        "convert": lambda i, out: convert.convert(
            str(data / "weights.hdf5"), str(data / "config.json"), out, [None, str(data / "vocab50")][i], overwrite=True
        ),
    }


def digest(folder: Path) -> str:
    sha256 = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        sha256.update(f"{path.relative_to(folder)}".encode())
        sha256.update(path.read_bytes() if path.is_file() else b"/")
    return sha256.hexdigest()


def child(work: Work, setting: int, out: Path) -> int:
    """A process that does the work."""
    pid = os.fork()
    if pid == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            work(setting, str(out))
        except BaseException:  # noqa: BLE001 - the parent reads the exit code
            os._exit(1)
        os._exit(0)
    return pid


def attack(work: Work, out: Path, times: int) -> dict[str, int]:
    """Kills at random moments: how often the old output stood, the new one, anything else; and leftovers after."""
    known = []
    for setting in (0, 1):
        began = time.monotonic()
        assert os.waitstatus_to_exitcode(os.waitpid(child(work, setting, out), 0)[1]) == 0
        seconds = time.monotonic() - began
        known.append(digest(out))
    assert known[0] != known[1]
    rng, now = random.Random(0), 1
    counts = {"old": 0, "new": 0, "other": 0, "hidden folders": 0}
    for _ in range(times):
        pid, began, until = child(work, 1 - now, out), time.monotonic(), rng.uniform(0, 1.05 * seconds)
        while (waited := time.monotonic() - began) < until:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                seconds = min(seconds, waited)  # the machine has become faster
                break
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        content = digest(out)
        what = "old" if content == known[now] else "new" if content == known[1 - now] else "other"
        counts[what] += 1
        counts["hidden folders"] += any(path.name.startswith(".") for path in out.parent.iterdir())
        if what == "new":
            now = 1 - now
    assert os.waitstatus_to_exitcode(os.waitpid(child(work, 0, out), 0)[1]) == 0
    return counts | {"left over": sum(path.name.startswith(".") for path in out.parent.iterdir())}


if __name__ == "__main__":
    home, times = Path(sys.argv[1]), int(sys.argv[2])
    results = {}
    for verb, work in works(home).items():
        place = home.parent / f"killed {verb}"
        place.mkdir()
        results[verb] = attack(work, place / "model", times)
        print(f"{verb}: {results[verb]}", file=sys.stderr, flush=True)
    print(json.dumps(results))
