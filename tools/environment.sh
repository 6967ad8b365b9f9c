# Sourced by quickstart.sh and test.sh: a virtual environment in $VENV (.venv) with the package and the tested versions.
#   source tools/environment.sh ".[train]"
VENV="${VENV:-.venv}"
PYTHON="${PYTHON:-python3}"
"$PYTHON" - <<'PY' || exit 2
import sys
if not (3, 11) <= sys.version_info[:2] < (3, 14):
    sys.exit(f"Python {sys.version.split()[0]} at {sys.executable}: twilbert needs 3.11 to 3.13; set PYTHON=python3.12, say")
PY
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
# shellcheck disable=SC1091
source "$VENV/bin/activate"
# wheel: pip builds DeepSpeed, which comes as source, through it.
python -m pip install --quiet --disable-pip-version-check wheel
python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$1"
