#!/usr/bin/env bash
# Make the Multi30k table of results/multi30k; takes the arguments of reproduce_table1.sh, --rows and --seeds above all.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/reproduce_table1.sh" --preset multi30k "$@"
