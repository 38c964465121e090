#!/usr/bin/env bash
# From nothing to a small language model that learned to reason from a verifier's reward alone. Two cores, no GPU.
#   scripts/demo.sh                    the demo
#   scripts/demo.sh seed=1 loss=grpo   any override of python -m r1.train
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh math
exec .venv/bin/python -m r1.train "$@"
