#!/usr/bin/env bash
# Run fairseq-sharing prepare iwslt14_de_en; flags are passed to it.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../prepare.sh" iwslt14_de_en "$@"
