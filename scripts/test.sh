#!/usr/bin/env bash
# Install with the test extra and run all checks and tests.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/test.sh [--dry-run | --static] [PYTEST ARGUMENT ...]

Run ruff (format and lint), shellcheck, import-linter, mypy and pytest. Other arguments are passed to pytest.

  --dry-run   print the commands and stop
  --static    run only the checks that take seconds: ruff, shellcheck and import-linter

environment:
  FAIRSEQ_SHARING_MIRROR   a folder with real corpora; the tests on real text are skipped without it
  FAIRSEQ_SHARING_VENV     the virtual environment (default: .venv at the top of the repository)
USAGE
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=
static=
case ${1:-} in
  -h | --help) usage && exit 0 ;;
  --dry-run) dry_run=--dry-run && shift ;;
  --static) static=1 && shift ;;
esac
bash "$root/scripts/install.sh" --extra test $dry_run
cd "$root"
export PATH="${FAIRSEQ_SHARING_VENV:-$root/.venv}/bin:$PATH"
# Tests of small models do not gain from threads, and several tests run in parallel.
export OMP_NUM_THREADS=1
jobs=$(getconf _NPROCESSORS_ONLN)
# install.sh does not write bytecode for tests; without it, each process would compile torch, which takes 10 s.
unset PYTHONDONTWRITEBYTECODE

check() {
  echo "== $*" >&2
  [[ -n $dry_run ]] || "$@"
}

check ruff format --check .
check ruff check .
check shellcheck .ci/run scripts/*.sh scripts/slurm/*.sbatch data-prep/*.sh data-prep/*/*.sh
check lint-imports
[[ -z $static ]] || exit 0
# Takes half a minute on one core; runs in parallel with the tests.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
check mypy fairseq_sharing benchmarks >"$types" 2>&1 &
if [[ -z ${FAIRSEQ_SHARING_MIRROR:-} ]]; then
  echo "FAIRSEQ_SHARING_MIRROR is not set: the tests on real text are skipped" >&2
fi
# Keep the order of the files: tests/integration takes longest and should not come last.
status=0
check pytest -q -ra --durations=5 --numprocesses "$((jobs < 4 ? jobs : 4))" --dist loadfile --no-loadscope-reorder "$@" ||
  status=$?
wait $! || status=$?
cat "$types" >&2
exit "$status"
