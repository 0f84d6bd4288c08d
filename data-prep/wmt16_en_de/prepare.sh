#!/usr/bin/env bash
# fairseq-sharing prepare wmt16_en_de; flags are passed on.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../prepare.sh" wmt16_en_de "$@"
