#!/usr/bin/env bash
# Make the paper's WMT16 En-De table, or the same rows on other data: prepare, train, average, translate, score, report.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/reproduce_table1.sh [--preset NAME] [--rows "ROW ..."] [--seeds "SEED ..."] [--gpus N] [--nodes K]
                                        [--slurm FLAGS] [--mirror DIR] [--out DIR] [--tflops X] [--dry-run] [KEY=VALUE ...]

  --preset NAME   wmt16_en_de (default), news_commentary for one GPU, news_commentary_cpu to see every stage work without
                  one, or multi30k
  --rows          some of the rows, by the names of their files in configs/ (default: all)
  --seeds         seeds of every row (default: 1 2 3 for wmt16_en_de, as in the paper; 1 otherwise)
  --gpus N        GPUs of a machine (default: every one)
  --slurm FLAGS   submit one array job that trains all runs, with these flags of sbatch, as in "--time 24:00:00", and
                  with --gpus; when it has ended, the same command without --slurm evaluates and reports
  --nodes K       machines of a training, with --slurm
  --mirror DIR    a folder or URL that has the corpus's files, for a machine that cannot download them
  --out DIR       a folder for the results and the report (default: runs/DATASET/report)
  --tflops X      what a GPU sustains in TFLOP/s, for the estimate (default: 40, an assumption)
  --dry-run       print every command, the estimated GPU hours and disk, and stop

Further words change every row's recipe, as in train.max_epoch=10. Stopped anywhere and started again it goes on where
it was; finished rows are not trained again. Each row's JSON is written to that folder as soon as the row is scored.
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
preset=wmt16_en_de
seeds=
dry_run=
flags=()
while (($#)); do
  case $1 in
    --preset | --rows | --seeds | --gpus | --nodes | --slurm | --mirror | --out | --tflops)
      (($# > 1)) || { echo "reproduce_table1.sh: error: $1 needs a value" >&2 && exit 2; }
      case $1 in
        --preset) preset=$2 ;;
        --rows) read -ra rows <<<"$2" && flags+=(--rows "${rows[@]}") ;;
        --seeds) seeds=$2 ;;
        --out) [[ $2 == /* ]] && flags+=("--out=$2") || flags+=("--out=${PWD%/}/$2") ;;
        # One word each, which may begin with a dash: the flags of sbatch.
        *) flags+=("$1=$2") ;;
      esac
      shift 2
      ;;
    --dry-run) dry_run=1 && flags+=("$1") && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && echo "reproduce_table1.sh: error: unknown argument $1" >&2 && exit 2 ;;
    *) break ;;
  esac
done
if [[ -z $seeds ]]; then
  [[ $preset == wmt16_en_de ]] && seeds="1 2 3" || seeds=1
fi
read -ra seeds_given <<<"$seeds"

export PATH="${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin:$PATH"
if [[ -z $dry_run ]]; then
  bash "$root/scripts/install.sh"
elif ! command -v fairseq-sharing >/dev/null; then
  echo "reproduce_table1.sh: error: --dry-run looks at the models: install first, with bash scripts/install.sh" >&2
  exit 2
fi
cd "$root"
exec fairseq-sharing table "$preset" "$@" --seeds "${seeds_given[@]}" "${flags[@]}"
