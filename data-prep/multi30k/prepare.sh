#!/usr/bin/env bash
# Run fairseq-sharing prepare multi30k; flags are passed to it.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../prepare.sh" multi30k "$@"
