#!/usr/bin/env bash
# Everything that a GPU has to show, in under nine minutes, as one JSON document:
#   bench/gpu.sh OUT.json [--device cpu]
# Needs what `make setup` installs; parts that compare with TRL also what `make bench-setup` does.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
python=python
[ -x .venv/bin/python ] && python=.venv/bin/python
exec "$python" bench/gpu.py "$@"
