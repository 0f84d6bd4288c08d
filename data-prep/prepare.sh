#!/usr/bin/env bash
# Install the package if necessary, then prepare one dataset in data/<dataset>.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash data-prep/<dataset>/prepare.sh [--dry-run] [FLAG ...]

  --dry-run   print the commands and stop
  FLAG ...    flags of fairseq-sharing prepare, such as --mirror DIR or --out DIR (default: data/<dataset>)
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dataset=${1:?dataset}
shift
command=("${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin/python" -m fairseq_sharing prepare "$dataset" --out "$root/data/$dataset")
case ${1:-} in
  -h | --help) usage && exit 0 ;;
  --dry-run)
    shift
    printf '%q ' bash "$root/scripts/install.sh" && echo
    printf '%q ' "${command[@]}" "$@" && echo
    exit 0
    ;;
esac
bash "$root/scripts/install.sh"
exec "${command[@]}" "$@"
