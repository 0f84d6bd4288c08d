#!/usr/bin/env bash
# Run fairseq-sharing prepare news_commentary; flags are passed to it.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../prepare.sh" news_commentary "$@"
