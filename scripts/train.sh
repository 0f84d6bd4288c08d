#!/usr/bin/env bash
# Train a configuration on several GPUs of this machine (or, without one, in several CPU processes).
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/train.sh [--devices N] [--dry-run] CONFIG [KEY=VALUE ...]

  --devices N   how many GPUs or CPU processes (default: every GPU, or one process)
  --dry-run     print the fairseq-train commands and stop

Says the world size and the tokens per batch it got. The batch is max_tokens x devices x update_freq; a configuration
with tokens_per_batch gets the update_freq that keeps it whatever N is, or is refused. Example:

  bash scripts/train.sh --devices 4 configs/multi30k/cycle_rev.yaml tokens_per_batch=16384
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
flags=()
while (($#)); do
  case $1 in
    --devices)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "train.sh: error: --devices needs a number from 1, got '${2:-}'" >&2 && exit 2; }
      flags+=(--devices "$2") && shift 2
      ;;
    --dry-run) flags+=(--dry-run) && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && echo "train.sh: error: unknown argument $1" >&2 && exit 2 ;;
    *) break ;;
  esac
done
(($#)) || { usage >&2 && echo "train.sh: error: no CONFIG given" >&2 && exit 2; }

bash "$root/scripts/install.sh"
exec "${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin/fairseq-sharing" train "$@" "${flags[@]}"
