#!/usr/bin/env bash
# Install, prepare a corpus, train a vanilla and a shared model with equally many parameters, translate, score, report.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/quickstart.sh [--data toy|multi30k] [--mirror DIR] [--dry-run]

  --data NAME    toy (default): a built-in artificial corpus, about six minutes on 2 CPU cores;
                 multi30k: 29,000 image captions, downloaded, two and a half hours on 2 CPU cores
  --mirror DIR   a folder or URL with the corpus files, for machines without internet access
  --dry-run      print the commands and stop

All files are written to data/ and runs/ at the top of the repository. The virtual environment is .venv there, or
FAIRSEQ_SHARING_VENV. Re-run the command to resume; finished steps are skipped.
USAGE
}

fail() {
  echo "quickstart.sh: error: $*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dataset=toy
mirror=
dry_run=
while (($#)); do
  case $1 in
    --data | --mirror)
      (($# > 1)) || fail "$1 needs a value"
      if [[ $1 == --data ]]; then dataset=$2; else mirror=$2; fi
      shift 2
      ;;
    --dry-run) dry_run=--dry-run && shift ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && fail "unknown argument $1" ;;
  esac
done
case $dataset in
  toy | multi30k) ;;
  *) fail "--data must be toy or multi30k, got '$dataset'" ;;
esac
if [[ -n $mirror && $mirror != *://* ]]; then
  [[ -d $mirror ]] || fail "--mirror $mirror: no such folder"
  mirror=$(cd "$mirror" && pwd)
fi

bash "$root/scripts/install.sh" $dry_run
cd "$root"
export PATH="${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin:$PATH"
began=$SECONDS

stage() {
  local title=$1
  shift
  printf '\n== %s (%d:%02d since the start)\n' "$title" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) >&2
  echo "\$ $*" >&2
  [[ -n $dry_run ]] || "$@"
}

stage "1/4 prepare the corpus" \
  fairseq-sharing prepare "$dataset" --out "data/$dataset" ${mirror:+--mirror "$mirror"}
for run in vanilla cycle_rev; do
  stage "2/4 train $run" fairseq-sharing train "$dataset" "row=$run"
done
for run in vanilla cycle_rev; do
  stage "3/4 translate and score with $run" fairseq-sharing evaluate "runs/$dataset/$run-seed1"
done
stage "4/4 compare" \
  fairseq-sharing report "runs/$dataset/report" --runs "runs/$dataset/vanilla-seed1" "runs/$dataset/cycle_rev-seed1"
[[ -n $dry_run ]] || printf '\ndone in %d:%02d after the installation\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) >&2
