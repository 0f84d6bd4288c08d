#!/usr/bin/env bash
# Install, then run a small study: prepare a corpus, train a vanilla and a shared model, translate, score and report.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/quickstart.sh [--data toy|multi30k] [--mirror DIR] [--dry-run]

  --data NAME    toy (default): a built-in artificial corpus, two to six minutes on 2 CPU cores;
                 multi30k: 29,000 downloaded image captions, two and a half hours on 2 CPU cores
  --mirror DIR   directory or URL of the corpus files, for a machine that cannot download them
  --dry-run      print the commands and stop

Data, runs and the virtual environment are written to data/, runs/ and .venv of the repository; FAIRSEQ_SHARING_VENV
selects another virtual environment. Re-run the script to resume; finished steps are skipped.
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

case $dataset in
  toy) study=(toy) ;;
  multi30k) study=(multi30k --rows vanilla_admin cycle_rev --seeds 1) ;;
esac
command=(fairseq-sharing study run "${study[@]}" ${mirror:+--mirror "$mirror"})
echo "\$ ${command[*]}" >&2
[[ -n $dry_run ]] && exit
"${command[@]}"
printf '\ndone in %d:%02d after the installation\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) >&2
echo "to use fairseq-sharing in this shell: . ${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin/activate" >&2
