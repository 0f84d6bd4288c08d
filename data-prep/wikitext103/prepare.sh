#!/usr/bin/env bash
# Run fairseq-sharing prepare wikitext103; flags are passed to it.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../prepare.sh" wikitext103 "$@"
