#!/usr/bin/env bash
# fairseq-sharing prepare news_commentary; flags are passed on.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/../prepare.sh" news_commentary "$@"
