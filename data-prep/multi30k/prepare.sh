#!/usr/bin/env bash
# fairseq-sharing prepare multi30k; flags are passed on.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../prepare.sh" multi30k "$@"
