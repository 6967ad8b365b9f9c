"""Texts a second of twilbert-predict beside transformers' text-classification pipeline of the same size, in one run.

    python tools/bench_predict.py VOCAB TEXTS [--rows 200000] [--pipeline-rows N] [--base-rows 4000] [--json FILE]

VOCAB is a file of BERT word pieces, TEXTS one text a line, repeated up to --rows. Both get the same cleaned texts, the
same tokenizer, random weights of one size and a file to write (label and all probabilities of every row); each runs in
a process of its own, which counts seconds from the first text to the closed file (model loaded and warm), of the clock
and of the processors, and the largest memory it took. The pipeline, which streams too, may be given fewer rows, and
takes the batch size that was its fastest on a few hundred texts. "small": 3 layers of 256 channels; "base": 6 of 768,
on --base-rows. Ours takes a tenth of the rows too, to compare memory, and in fp32 that tenth alone; bf16 is its default
where the device has it. A busy machine shows in seconds, less in cpu_seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from twilbert import cli, storage

SIZES = {"small": (256, 3, 4), "base": (768, 6, 12)}  # channels, layers, heads of 64
MAX_LEN = 128
LABELS = ("N", "NEU", "P")
_TRIED, _TRIED_ROWS = (8, 32, 64), 500


def make_ours(folder: str, vocab: str, size: str) -> int:
    """A fine-tuned model folder with random weights; its number of parameters."""
    from twilbert.data.wordpiece import save_wordpiece_folder
    from twilbert.model.classifier import ClassificationModel, HeadConfig
    from twilbert.model.config import ModelConfig
    from twilbert.model.transformers_api import save_classifier_folder

    width, layers, heads = SIZES[size]
    tokenizer = save_wordpiece_folder(vocab, storage.join(folder, "tokenizer"))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        max_len=MAX_LEN,
        hidden_size=width,
        embedding_size=width,
        n_encoders=layers,
        n_heads=heads,
    )
    head = HeadConfig(LABELS)
    model = ClassificationModel(config, head)
    text = {"remove_rt": False, "max_len": MAX_LEN}
    save_classifier_folder(
        storage.join(folder, "ours"), config, head, text, model.state_dict(), storage.join(folder, "tokenizer")
    )
    return sum(parameter.numel() for parameter in model.parameters())


def make_theirs(folder: str, size: str, vocab_size: int) -> int:
    """The same for transformers; its number of parameters."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    width, layers, heads = SIZES[size]
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=2 * MAX_LEN + 4,
        num_labels=len(LABELS),
        pad_token_id=0,
    )
    model = BertForSequenceClassification(config)
    model.save_pretrained(storage.join(folder, "theirs"))
    AutoTokenizer.from_pretrained(storage.join(folder, "tokenizer")).save_pretrained(storage.join(folder, "theirs"))
    return sum(parameter.numel() for parameter in model.parameters())


def run_ours(folder: str, texts: str, out: str, precision: str) -> tuple[float, float]:
    """Seconds (clock, processors) of our command's function, the model loaded and warmed by a first text."""
    from twilbert import inference
    from twilbert.predict import predict

    model = storage.join(folder, "ours")
    inference.load(model, precision=precision).predict(["hola"] * 64)
    began, cpu = time.perf_counter(), time.process_time()
    predict(model, [texts], out, precision=precision, overwrite=True)
    return time.perf_counter() - began, time.process_time() - cpu


def run_theirs(folder: str, texts: str, out: str, precision: str, batch: int) -> tuple[float, float]:
    """Seconds (clock, processors) of transformers' pipeline over the same file, streamed in batches of `batch`."""
    from transformers import pipeline

    from twilbert.data.text import clean

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    classify: Any = pipeline("text-classification", model=storage.join(folder, "theirs"), dtype=dtype, device="cpu")
    settings = {"top_k": None, "truncation": True, "max_length": MAX_LEN + 2, "batch_size": batch}
    classify(["hola"] * 64, **settings)

    def cleaned() -> Iterator[str]:
        with Path(texts).open(encoding="utf-8") as lines:
            yield from (clean(line) for line in lines)

    began, cpu = time.perf_counter(), time.process_time()
    with Path(out).open("w", encoding="utf-8") as written:
        for number, scores in enumerate(classify(cleaned(), **settings)):
            best = max(scores, key=lambda one: one["score"])["label"]
            shares = "\t".join(f"{one['score']:.7g}" for one in sorted(scores, key=lambda one: one["label"]))
            written.write(f"{number}\t{best}\t{shares}\n")
    return time.perf_counter() - began, time.process_time() - cpu


def measured(folder: str, who: str, texts: str, rows: int, precision: str, batch: int) -> dict[str, Any]:
    """One run in a process of its own."""
    out = storage.join(folder, "out.tsv")
    command = [sys.executable, __file__, "--run", who, folder, texts, out, precision, str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    written = Path(out).read_bytes().count(b"\n") - (who == "twilbert")  # ours has a header
    assert written == rows, f"{rows} rows in, {written} out"
    name = who if who == "twilbert" else f"pipeline, batch {batch}"
    return {"program": name, "precision": precision, "rows": rows} | figures


def compare(vocab: str, source: list[str], size: str, rows: int, their_rows: int) -> list[dict[str, Any]]:
    """All runs of one size."""
    measurements = []
    with tempfile.TemporaryDirectory() as folder:
        ours = make_ours(folder, vocab, size)
        theirs = make_theirs(folder, size, len(Path(vocab).read_text(encoding="utf-8").splitlines()))
        cli.say(f"{size}: {ours:,} parameters, the pipeline's model {theirs:,}")
        tried_rows = min(_TRIED_ROWS, rows // 4)
        files = {n: storage.join(folder, f"{n}.txt") for n in {rows, rows // 10, their_rows, tried_rows}}
        for n, path in files.items():
            Path(path).write_text("".join(itertools.islice(itertools.cycle(source), n)), encoding="utf-8")
        for precision, n_ours in (("bf16", rows), ("fp32", rows // 10)):
            few = files[tried_rows]
            tried = {b: measured(folder, "pipeline", few, tried_rows, precision, b)["cpu_seconds"] for b in _TRIED}
            best = min(tried, key=lambda b: tried[b])
            runs = [("twilbert", n, 0) for n in sorted({rows // 10, n_ours})] + [("pipeline", their_rows, best)]
            for who, n, batch in runs:
                one = {"size": size} | measured(folder, who, files[n], n, precision, batch)
                one["texts_per_s"] = round(n / one["seconds"], 1)
                one["texts_per_cpu_s"] = round(n / one["cpu_seconds"], 1)
                measurements.append(one)
                cli.say(json.dumps(one))
    return measurements


def main() -> int:
    """Print the table, and write it where --json says."""
    if sys.argv[1:2] == ["--run"]:
        who, folder, texts, out, precision, batch = sys.argv[2:]
        ours = who == "twilbert"
        seconds, cpu = (
            run_ours(folder, texts, out, precision) if ours else run_theirs(folder, texts, out, precision, int(batch))
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(peak)}))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocab")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--pipeline-rows", type=int, help="rows of the small size for the pipeline (default: --rows)")
    parser.add_argument("--base-rows", type=int, default=4_000)
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    with args.texts.open(encoding="utf-8", newline="\n") as lines:
        source = [line for line in lines if line.strip()]
    measurements = []
    for size, rows, theirs in (
        ("small", args.rows, args.pipeline_rows or args.rows),
        ("base", args.base_rows, args.base_rows),
    ):
        if rows:
            measurements += compare(args.vocab, source, size, rows, theirs)
    columns = ("size", "program", "precision", "rows", "seconds", "texts_per_s", "texts_per_cpu_s", "peak_mb")
    cli.table(columns, [tuple(one[name] for name in columns) for one in measurements])
    if args.json:
        figures = {"threads": torch.get_num_threads(), "torch": torch.__version__, "runs": measurements}
        storage.write_json_atomic(storage.absolute(args.json), figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
