#!/usr/bin/env bash
# Install twilbert for training, at the versions of constraints.txt, into the virtual environment $VIRTUAL_ENV, which is
# made when it is missing. TORCH_INDEX names a further package index that has PyTorch's build for your devices.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${VIRTUAL_ENV:?set it to the folder of the virtual environment to install into}"

[ -x "$VIRTUAL_ENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VIRTUAL_ENV"
install=("$VIRTUAL_ENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir -c constraints.txt)
"${install[@]}" wheel # pip builds DeepSpeed, which comes as source, through it
"${install[@]}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[train]"
