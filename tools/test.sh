#!/usr/bin/env bash
# Set up a virtual environment in .venv (or $VENV) and run every check: style, types, layers, tests.
# Arguments go to pytest:  tools/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh ".[train,export,workspace,dev]"

ruff check .
ruff format --check .
pyright
lint-imports
python -m pytest "$@"
