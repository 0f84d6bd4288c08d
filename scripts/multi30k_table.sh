#!/usr/bin/env bash
# Make the same table as results/multi30k: prepare, train every row with every seed, evaluate, report.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<'USAGE'
usage: bash scripts/multi30k_table.sh [ARGUMENT ...]

Is scripts/reproduce_table1.sh --preset multi30k; takes its arguments: --rows, --seeds, --mirror, --out, --dry-run and others.
USAGE
  exit
fi
exec bash "$(dirname "${BASH_SOURCE[0]}")/reproduce_table1.sh" --preset multi30k "$@"
