#!/usr/bin/env bash
# Train a configuration on several GPUs (or CPU processes) of one or several machines.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/train.sh [--devices N] [--nodes K --node-rank R --master HOST:PORT] [--fit-memory] [--dry-run]
                             CONFIG [KEY=VALUE ...]

  --devices N          GPUs or CPU processes per machine (default: all GPUs, or one process)
  --nodes K            number of machines; run the script on each of them
  --node-rank R        rank of this machine, from 0
  --master HOST:PORT   address and free port of machine 0
  --fit-memory         choose max_tokens by device memory
  --dry-run            print the training command and stop

The script prints the world size, the device of each rank and the tokens per batch. The batch is max_tokens x devices x
machines x update_freq. For a configuration with tokens_per_batch, update_freq is chosen to keep that batch; if this is
impossible, the configuration is refused. Re-run the command to resume from the last complete checkpoint. Under Slurm,
use scripts/slurm/train.sbatch. Example:

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

command=${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin/fairseq-sharing
if [[ " ${flags[*]} " != *" --dry-run "* ]]; then
  bash "$root/scripts/install.sh"
elif [[ ! -x $command ]]; then
  echo "train.sh: error: --dry-run checks the configuration: install first, with bash scripts/install.sh" >&2
  exit 2
fi
exec "$command" train "$@" "${flags[@]}"
