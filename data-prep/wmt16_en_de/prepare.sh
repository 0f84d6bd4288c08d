#!/usr/bin/env bash
# Run fairseq-sharing prepare wmt16_en_de; flags are passed to it.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../prepare.sh" wmt16_en_de "$@"
