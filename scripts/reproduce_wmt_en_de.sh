#!/usr/bin/env bash
# Reproduce the WMT16 English-German table of Takase & Kiyono 2023: prepare, train, average, translate, score, report.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/reproduce_wmt_en_de.sh [--study NAME] [ARGUMENT ...]

  --study NAME   wmt16_en_de (default); news_commentary for one GPU; news_commentary_cpu runs every stage without a GPU

Installs, then runs: fairseq-sharing study run NAME ARGUMENT ...
Common arguments: --dry-run (print every command, the estimated GPU hours and disk), --rows ROW ..., --seeds SEED ...,
--gpus N, --jobs N, --slurm FLAGS, --mirror DIR, --out DIR. Re-run the command to resume; finished rows are not trained again.
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
study=wmt16_en_de
dry_run=
arguments=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --study)
      (($# > 1)) || { echo "reproduce_wmt_en_de.sh: error: --study needs a value" >&2 && exit 2; }
      study=$2 && shift 2
      ;;
    --out) # relative to the folder in which the script was started
      (($# > 1)) || { echo "reproduce_wmt_en_de.sh: error: --out needs a value" >&2 && exit 2; }
      [[ $2 == /* ]] && arguments+=("--out=$2") || arguments+=("--out=${PWD%/}/$2")
      shift 2
      ;;
    --slurm) # one word, because the flags of sbatch begin with dashes
      (($# > 1)) || { echo "reproduce_wmt_en_de.sh: error: --slurm needs a value" >&2 && exit 2; }
      arguments+=("--slurm=$2") && shift 2
      ;;
    --dry-run) dry_run=1 && arguments+=("$1") && shift ;;
    *) arguments+=("$1") && shift ;;
  esac
done

export PATH="${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin:$PATH"
if [[ -z $dry_run ]]; then
  bash "$root/scripts/install.sh"
elif ! command -v fairseq-sharing >/dev/null; then
  echo "reproduce_wmt_en_de.sh: error: --dry-run builds the models: install first, with bash scripts/install.sh" >&2
  exit 2
fi
cd "$root"
exec fairseq-sharing study run "$study" "${arguments[@]}"
