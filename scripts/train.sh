#!/usr/bin/env bash
# Train a configuration on several GPUs (or, without one, CPU processes) of this machine or of several.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/train.sh [--devices N] [--nodes K --node-rank R --master HOST:PORT] [--fit-memory] [--dry-run]
                             CONFIG [KEY=VALUE ...]

  --devices N          how many GPUs or CPU processes of each machine (default: every GPU, or one process)
  --nodes K            how many machines; run this on each of them, with its own
  --node-rank R        number from 0, and with
  --master HOST:PORT   a free port of number 0
  --fit-memory         choose max_tokens by the memory of a device
  --dry-run            print the command that trains and stop

Says the world size, the ranks' devices and the tokens per batch. The batch is max_tokens x devices x machines x
update_freq; a configuration with tokens_per_batch gets the update_freq that keeps it whatever N and K are, or is
refused. Started again it goes on from the last complete checkpoint. Under Slurm: scripts/slurm/train.sbatch. Example:

  bash scripts/train.sh --devices 4 wmt16_en_de row=cycle_rev_n12
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
flags=()
while (($#)); do
  case $1 in
    --devices)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "train.sh: error: --devices needs a number from 1, got '${2:-}'" >&2 && exit 2; }
      flags+=("$1" "$2") && shift 2
      ;;
    --nodes | --node-rank | --master)
      (($# > 1)) || { echo "train.sh: error: $1 needs a value" >&2 && exit 2; }
      flags+=("$1" "$2") && shift 2
      ;;
    --fit-memory | --dry-run) flags+=("$1") && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && echo "train.sh: error: unknown argument $1" >&2 && exit 2 ;;
    *) break ;;
  esac
done
(($#)) || { usage >&2 && echo "train.sh: error: no CONFIG given" >&2 && exit 2; }

bash "$root/scripts/install.sh"
exec "${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin/fairseq-sharing" train "$@" "${flags[@]}"
