"""Trials an hour of a twilbert-tune sweep beside the same sweep with transformers' Trainer, in one run on two cores.

    python -m tools.bench_trials --task FILE [--model FOLDER] [--trials 4] [--epochs 1] [--json OUT.json]

Both sweep over the same learning rates, rows (cleaned and cut alike), batch size, epochs, warm-up and dropout, in bf16,
with a look at dev each epoch and the best checkpoint kept, and predict test with the best trial. The other model is a
BertForSequenceClassification of random weights with the same hidden size, layers, heads and vocabulary, its inner width
lowered until parameters agree to 1 %. Its sweep is run as users write it, one trial after another on all cores
("sequential"), then as Ray Tune function trials, one core each ("ray"); its best counts. `--peers` may add "grouped":
sequential, with batches of like lengths. --model: a pre-trained folder; default: random weights of 4 layers of 256.

trials_s runs from the first trial's start to the last one's end; whole_s is the command, from its start to its last
line. Needs `pip install accelerate`. Anything else that the machine does shows in both.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twilbert import cli, metrics, storage
from twilbert.data.text import clean
from twilbert.errors import TwilbertError, UsageError
from twilbert.inference import find_model
from twilbert.task_rows import Rows, read_split, read_test
from twilbert.tasks import SINGLE, Task, load_task

_RATES = (2e-5, 5e-4)  # the ends of recipes/tune.yaml
_WARMUP, _DECAY, _DROPOUT = 0.1, 0.01, 0.1
_EVALUATION_BATCH = 64
_STEP = 32  # by which the other model's inner width is lowered


def learning_rates(trials: int) -> list[float]:
    """As many rates as trials, from end to end in equal ratios."""
    return [float(f"{rate:.3g}") for rate in np.geomspace(*_RATES, trials)]


# ---- the model both start from


def make_model(folder: str, task: Task, vocab_size: int) -> str:
    """A pre-trained model's folder with random weights, whose vocabulary is the task's frequent words and letters."""
    from twilbert.data.wordpiece import save_wordpiece_folder
    from twilbert.model.config import ModelConfig
    from twilbert.model.heads import PretrainingModel
    from twilbert.model.transformers_api import save_model_folder

    words = collections.Counter(word for text in _texts(task, read_split(task, "train")) for word in text.split())
    letters = sorted({letter for word in words for letter in word})
    pieces = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    pieces = list(dict.fromkeys([*pieces, *(word for word, _ in words.most_common())]))[:vocab_size]
    Path(folder, "vocab").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    tokenizer = save_wordpiece_folder(storage.join(folder, "vocab"), storage.join(folder, "tokenizer"))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, max_len=72, hidden_size=256, embedding_size=256, n_encoders=4, n_heads=4
    )
    path = storage.join(folder, "model")
    save_model_folder(path, config, PretrainingModel(config).state_dict(), storage.join(folder, "tokenizer"))
    return path


def make_peer(path: str, model: str, n_labels: int) -> dict[str, Any]:
    """The other model's folder of the same size; what of the sizes is told."""
    from transformers import BertConfig, BertForSequenceClassification

    from twilbert.model.classifier import ClassificationModel, HeadConfig
    from twilbert.model.transformers_api import load_model_folder

    config, _ = load_model_folder(model)
    ours = _parameters(ClassificationModel(config, HeadConfig(tuple(map(str, range(n_labels))))))
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "num_hidden_layers": config.n_encoders,
        "num_attention_heads": config.n_heads, "max_position_embeddings": config.n_positions, "num_labels": n_labels,
    }  # fmt: skip
    dropout: dict[str, Any] = {
        "hidden_dropout_prob": config.output_dropout, "attention_probs_dropout_prob": config.output_dropout,
        "classifier_dropout": _DROPOUT,
    }  # fmt: skip
    for inner in range(4 * config.hidden_size, 0, -_STEP):
        theirs = BertForSequenceClassification(BertConfig(intermediate_size=inner, pad_token_id=0, **sizes, **dropout))
        if _parameters(theirs) <= 1.01 * ours:
            break
    else:
        raise UsageError(f"{model}: no BERT of its sizes has as few parameters; give another --model")
    theirs.save_pretrained(path)
    return {
        "hidden": config.hidden_size, "layers": config.n_encoders, "heads": config.n_heads,
        "vocabulary": config.vocab_size, "max_len": config.max_len, "inner_width": inner,
        "parameters": ours, "peer_parameters": _parameters(theirs),
    }  # fmt: skip


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _texts(task: Task, rows: Rows) -> list[str]:
    return [clean(text, task.remove_rt) for text in rows.texts]


# ---- our sweep


def run_ours(spec: dict[str, Any], out: str) -> dict[str, Any]:
    """The command twilbert-tune, as a user gives it."""
    rates = ", ".join(map(str, spec["rates"]))
    settings = [
        "search.kind=grid", "scheduler.kind=none", f"training.learning_rate={{choice: [{rates}]}}",
        f"training.batch_size={spec['batch_size']}", f"training.epochs={spec['epochs']}", "training.precision=bf16",
        f"training.warmup={_WARMUP}", f"training.weight_decay={_DECAY}", "training.patience=null", "head.pooling=cls",
        f"head.dropout={_DROPOUT}", "encoder.layer_decay=1.0", "loss.name=cross_entropy", "tracking.mode=disabled",
        "cluster.cpus_per_trial=1", "cluster.gpus_per_trial=0", f"cluster.num_cpus={spec['cores']}",
        f"cluster.max_concurrent={spec['cores']}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "twilbert.tune", "--task", spec["task"], "--model", spec["model"], "--out", out]
    began = time.monotonic()
    done = subprocess.run([*command, *settings], capture_output=True, text=True)
    whole = time.monotonic() - began
    if done.returncode:
        raise TwilbertError(f"twilbert-tune ended with {done.returncode}: {done.stderr[-2000:]}")
    [study] = storage.read_json(storage.join(out, "results.json"))["studies"]
    times = {name: [p.stat().st_mtime for p in Path(out).rglob(name)] for name in ("started.json", "ended.json")}
    assert len(times["ended.json"]) == len(spec["rates"])
    trials_s = max(times["ended.json"]) - min(times["started.json"])
    assert all(trial["status"] == "finished" for trial in study["trials"])
    best = study["dev"]["mean"]
    return {"program": "twilbert-tune", "trials_s": trials_s, "whole_s": whole, "dev": best}


# ---- the other sweep, in a process of its own


def run_peer(kind: str, spec: dict[str, Any], folder: str) -> dict[str, Any]:
    """One of the peer's ways."""
    path = storage.join(folder, f"{kind}.json")
    storage.write_json_atomic(path, spec | {"folder": storage.join(folder, kind)})
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench_trials", "--peer", kind, path], capture_output=True, text=True
    )
    whole = time.monotonic() - began
    if done.returncode:
        raise TwilbertError(f"the Trainer's sweep ended with {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {"program": f"Trainer, {kind}", "whole_s": whole} | found


def peer_main(kind: str, path: str) -> dict[str, Any]:
    """The sweep: tokenise once, train every rate, predict test with the best."""
    spec = storage.read_json(path)
    data = peer_data(spec)
    if kind == "ray":
        trials = _ray_trials(spec, data)
    else:
        torch.set_num_threads(spec["cores"])
        trials = [_timed_trial(spec, data, rate, kind == "grouped") for rate in spec["rates"]]
    best = max(trials, key=lambda trial: trial["score"])
    if data["test"] is not None:
        torch.set_num_threads(spec["cores"])
        trainer = peer_trainer(spec | {"peer": best["checkpoint"]}, data, best["rate"], False)
        trainer.predict(data["test"])
    spent = max(trial["ended"] for trial in trials) - min(trial["began"] for trial in trials)
    return {"trials_s": spent, "dev": best["score"]}


def peer_data(spec: dict[str, Any]) -> dict[str, Any]:
    """Each split's rows as a Trainer takes them; the tokenizer; how dev is scored."""
    from transformers import PreTrainedTokenizerFast

    task = load_task(spec["task"], spec["data_dir"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(spec["model"])
    data: dict[str, Any] = {"tokenizer": tokenizer, "task": task}
    for name, rows in (
        ("train", read_split(task, "train")), ("dev", read_split(task, "dev")), ("test", read_test(task))
    ):  # fmt: skip
        if rows is None:
            data[name] = None
            continue
        ids = tokenizer(_texts(task, rows), truncation=True, max_length=spec["max_len"] + 2)["input_ids"]
        labels = rows.labels if rows.labels is not None else np.zeros(len(rows), np.int64)
        data[name] = [{"input_ids": row, "labels": int(label)} for row, label in zip(ids, labels, strict=True)]
    return data


def peer_trainer(spec: dict[str, Any], data: dict[str, Any], rate: float, grouped: bool) -> Any:
    """A Trainer with its default collator, on the CPU, in bf16."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    settings = TrainingArguments(
        output_dir=storage.join(spec["folder"], f"{rate:g}"), learning_rate=rate, num_train_epochs=spec["epochs"],
        per_device_train_batch_size=spec["batch_size"], per_device_eval_batch_size=_EVALUATION_BATCH,
        warmup_steps=_WARMUP, weight_decay=_DECAY, max_grad_norm=1.0, lr_scheduler_type="linear", bf16=True,
        use_cpu=True, eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True,
        metric_for_best_model="score", greater_is_better=True, report_to="none", logging_strategy="epoch",
        disable_tqdm=True, seed=0, train_sampling_strategy="group_by_length" if grouped else "random",
    )  # fmt: skip
    task: Task = data["task"]

    def scored(judged: Any) -> dict[str, float]:
        truths, said = judged.label_ids, judged.predictions.argmax(1)
        score = metrics.score(truths, said, task.metric, average=task.averaging, labels=task.metric_labels)
        return {"score": score}

    return Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(spec["peer"]), args=settings,
        train_dataset=data["train"], eval_dataset=data["dev"], processing_class=data["tokenizer"],
        compute_metrics=scored,
    )  # fmt: skip


def _timed_trial(spec: dict[str, Any], data: dict[str, Any], rate: float, grouped: bool = False) -> dict[str, Any]:
    began = time.time()
    trainer = peer_trainer(spec, data, rate, grouped)
    trainer.train()
    state = trainer.state
    return {
        "rate": rate, "score": state.best_metric, "checkpoint": state.best_model_checkpoint, "began": began,
        "ended": time.time(),
    }  # fmt: skip


def _ray_trials(spec: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    import ray
    from ray import tune

    def trial(config: dict[str, Any], data: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        tune.report(_timed_trial(spec, data, config["rate"]))

    ray.init(address="local", num_cpus=spec["cores"], include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, data=data), {"cpu": 1}),
        param_space={"rate": tune.grid_search(spec["rates"])},
        tune_config=tune.TuneConfig(metric="score", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(storage_path=storage.join(spec["folder"], "ray"), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors, results.errors
    found = [dict(result.metrics or {}) for result in results]
    ray.shutdown()
    return found


# ---- both


def compare(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """All sweeps, one after another."""
    task = load_task(args.task, args.data_dir)
    if task.problem != SINGLE or task.columns.text_b is not None:
        raise UsageError(f"{task.name}: has two texts, or several labels, a row; this bench takes one of each")
    model = find_model(args.model, "runs") if args.model else make_model(folder, task, args.vocab_size)
    sizes = make_peer(storage.join(folder, "peer"), model, len(task.labels))
    cli.say(json.dumps(sizes))
    spec = {
        "task": storage.absolute(args.task) if storage.exists(args.task) else args.task, "data_dir": args.data_dir,
        "model": storage.absolute(model), "peer": storage.join(folder, "peer"), "rates": learning_rates(args.trials),
        "epochs": args.epochs, "batch_size": args.batch_size, "cores": args.cores, "max_len": sizes["max_len"],
    }  # fmt: skip
    runs = [run_ours(spec, storage.join(folder, "ours"))]
    cli.say(json.dumps(runs[0]))
    for kind in args.peers:
        runs.append(run_peer(kind, spec, folder))
        cli.say(json.dumps(runs[-1]))
    for one in runs:
        for key in ("trials_s", "whole_s"):
            one["an_hour" if key == "trials_s" else "an_hour_whole"] = round(3600 * args.trials / one[key], 1)
            one[key] = round(one[key], 1)
        one["dev"] = round(one["dev"], 4)
    best = {key: max(one[key] for one in runs[1:]) for key in ("an_hour", "an_hour_whole")}
    ratios = {key: round(runs[0][key] / value, 2) for key, value in best.items()}
    settings = {key: spec[key] for key in ("rates", "epochs", "batch_size", "cores")}
    rows = {name: len(read_split(task, name)) for name in ("train", "dev")}
    return {
        "task": task.name, "rows": rows, "sizes": sizes, "settings": settings, "torch": torch.__version__,
        "runs": runs, "ratio": ratios["an_hour"], "ratio_whole": ratios["an_hour_whole"],
    }  # fmt: skip


def main() -> int:
    """Print the table and the ratios; write them where --json says. 1 where ours is not twice as fast."""
    if sys.argv[1:2] == ["--peer"]:
        print(json.dumps(peer_main(*sys.argv[2:4])))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="registered task or a task file")
    parser.add_argument("--data-dir", help="where registered tasks' data lies")
    parser.add_argument("--model", help="a model folder that pretrain wrote (default: random weights)")
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=8000, help="of the default model")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=("sequential", "ray", "grouped"), default=["sequential", "ray"])
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    if importlib.util.find_spec("accelerate") is None:
        raise SystemExit("transformers' Trainer needs accelerate: pip install accelerate")
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: args.cores]))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="bench-trials-") as folder:
        try:
            found = compare(args, folder)
        except TwilbertError as error:
            raise SystemExit(f"bench_trials: {error}") from error
    columns = ("program", "trials_s", "an_hour", "whole_s", "an_hour_whole", "dev")
    cli.table(columns, [[one[name] for name in columns] for one in found["runs"]])
    share = abs(found["sizes"]["peer_parameters"] / found["sizes"]["parameters"] - 1)
    print(f"parameters {found['sizes']['parameters']:,}, the other's {share:.2%} off")
    print(f"trials an hour: {found['ratio']} times the other's best; whole commands: {found['ratio_whole']} times")
    if args.json:
        storage.write_json_atomic(storage.absolute(args.json), found)
    return 0 if math.floor(100 * found["ratio"]) >= 200 else 1


if __name__ == "__main__":
    raise SystemExit(main())
