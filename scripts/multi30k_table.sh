#!/usr/bin/env bash
# Make the Multi30k table of results/multi30k: prepare, train every row with every seed, evaluate, report.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/multi30k_table.sh [--rows "ROW ..."] [--seeds "SEED ..."] [--mirror DIR] [--dry-run] [KEY=VALUE ...]

  --rows         configurations of configs/multi30k (default: vanilla sequence cycle cycle_rev universal vanilla_deep)
  --seeds        seeds (default: 1)
  --mirror DIR   a folder or URL that has the corpus's files, for a machine that cannot download them
  --dry-run      print the commands and stop

Further words change every row's recipe, as in train.max_epoch=60. Stopped anywhere and started again it goes on where
it was; finished rows are not trained again. Each row's JSON lands in results/multi30k as soon as it is scored.
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
rows="vanilla sequence cycle cycle_rev universal vanilla_deep"
seeds=1
mirror=
dry_run=
while (($#)); do
  case $1 in
    --rows | --seeds | --mirror)
      (($# > 1)) || { echo "multi30k_table.sh: error: $1 needs a value" >&2 && exit 2; }
      case $1 in
        --rows) rows=$2 ;;
        --seeds) seeds=$2 ;;
        --mirror) mirror=$2 ;;
      esac
      shift 2
      ;;
    --dry-run) dry_run=--dry-run && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && echo "multi30k_table.sh: error: unknown argument $1" >&2 && exit 2 ;;
    *) break ;;
  esac
done
if [[ -n $mirror && $mirror != *://* ]]; then
  [[ -d $mirror ]] || { echo "multi30k_table.sh: error: --mirror $mirror: no such folder" >&2 && exit 2; }
  mirror=$(cd "$mirror" && pwd)
fi

bash "$root/scripts/install.sh" $dry_run
cd "$root"
export PATH="${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin:$PATH"

stage() {
  echo "\$ $*" >&2
  [[ -n $dry_run ]] || "$@"
}

stage fairseq-sharing prepare multi30k --out data/multi30k ${mirror:+--mirror "$mirror"}
for seed in $seeds; do
  for row in $rows; do
    stage fairseq-sharing train "configs/multi30k/$row.yaml" seed="$seed" "$@"
    stage fairseq-sharing evaluate "runs/multi30k/$row-seed$seed" --out results/multi30k
  done
done
stage fairseq-sharing report results/multi30k
