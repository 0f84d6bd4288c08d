#!/usr/bin/env bash
# fairseq-sharing prepare wikitext103; flags are passed on.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../prepare.sh" wikitext103 "$@"
