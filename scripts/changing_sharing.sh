#!/usr/bin/env bash
# Repeat the study of results/changing_sharing: sharing that changes while training, on Multi30k with 6+6 layers.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/changing_sharing.sh [--rows "ROW ..."] [--seeds "SEED ..."] [--mirror DIR] [--out DIR] [--dry-run]
                                        [KEY=VALUE ...]

  --rows         configurations of configs/changing_sharing (default: vanilla cycle_rev swe_f swe_a swe_m dlt
                 dlt_random dlt_final vanilla_half swe_f_half; dlt_final needs the dlt of its seed)
  --seeds        seeds (default: 1 2)
  --mirror DIR   a folder or URL that has the corpus's files, for a machine that cannot download them
  --out DIR      a folder for the results and the report (default: runs/changing_sharing/multi30k/report)
  --dry-run      print the commands and stop

Further words change every row's recipe, as in train.max_epoch=60. Stopped anywhere and started again it goes on where
it was; finished rows are not trained again. Each row's JSON is written to that folder as soon as the row is scored.
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
rows="vanilla cycle_rev swe_f swe_a swe_m dlt dlt_random dlt_final vanilla_half swe_f_half"
seeds="1 2"
mirror=
runs=runs/changing_sharing
out=$runs/multi30k/report
dry_run=
while (($#)); do
  case $1 in
    --rows | --seeds | --mirror | --out)
      (($# > 1)) || { echo "changing_sharing.sh: error: $1 needs a value" >&2 && exit 2; }
      case $1 in
        --rows) rows=$2 ;;
        --seeds) seeds=$2 ;;
        --mirror) mirror=$2 ;;
        --out) [[ $2 == /* ]] && out=$2 || out=${PWD%/}/$2 ;;
      esac
      shift 2
      ;;
    --dry-run) dry_run=--dry-run && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && echo "changing_sharing.sh: error: unknown argument $1" >&2 && exit 2 ;;
    *) break ;;
  esac
done
if [[ -n $mirror && $mirror != *://* ]]; then
  [[ -d $mirror ]] || { echo "changing_sharing.sh: error: --mirror $mirror: no such folder" >&2 && exit 2; }
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
    map=()
    [[ $row != dlt_final ]] || map=(--map-of "$runs/multi30k/dlt-seed$seed")
    stage fairseq-sharing train "configs/changing_sharing/$row.yaml" seed="$seed" --runs "$runs" "${map[@]}" "$@"
    stage fairseq-sharing evaluate "$runs/multi30k/$row-seed$seed" --out "$out"
  done
done
stage fairseq-sharing report "$out"
