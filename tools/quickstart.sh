#!/usr/bin/env bash
# From nothing to a pre-trained, evaluated encoder on generated tweets, in minutes on two cores.
# Everything goes to quickstart/ (or $1); run it again to go on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT="${1:-quickstart}"
source tools/environment.sh ".[train]"

run() {
    echo "\$ $*"
    "$@"
}

[ -e "$OUT/raw/sample.json" ] || run twilbert-sample pairs --pairs 60000 --out "$OUT/raw"
[ -e "$OUT/corpus/corpus.json" ] || run twilbert-prepare "$OUT/raw/pairs.tsv" --out "$OUT/corpus"
[ -e "$OUT/tokenizer/tokenizer.json" ] || run twilbert-vocab "$OUT/corpus" --vocab-size 8000 --out "$OUT/tokenizer"
run twilbert-pretrain recipes/tiny.yaml run.name=quickstart run.storage_path="$OUT/runs" \
    corpus.path="$OUT/corpus" corpus.tokenizer="$OUT/tokenizer"
run twilbert-evaluate "$OUT/runs/quickstart" "$OUT/corpus" --sample "$OUT/raw/sample.json" --json "$OUT/scores.json"
