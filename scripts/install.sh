#!/usr/bin/env bash
# Create the project's virtual environment with the versions of requirements.lock. Does nothing if it is up to date.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash scripts/install.sh [--extra NAME] [--dry-run]

  --extra NAME   an extra of the package: report (default), test, ctranslate2, huggingface or all
  --dry-run      print the commands and stop

environment:
  FAIRSEQ_SHARING_VENV   the virtual environment (default: .venv at the top of the repository)
  PYTHON                 the Python to create it with (default: the first of 3.11, 3.12 and 3.13 that runs)
USAGE
}

fail() {
  echo "install.sh: error: $*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${FAIRSEQ_SHARING_VENV:-$root/.venv}
extra=report
dry_run=false
while (($#)); do
  case $1 in
    --extra)
      extra=${2:-}
      shift $(($# > 1 ? 2 : 1))
      ;;
    --dry-run) dry_run=true && shift ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && fail "unknown argument $1" ;;
  esac
done
case $extra in
  report | test | ctranslate2 | huggingface | all) ;;
  *) fail "--extra must be report, test, ctranslate2, huggingface or all, got '$extra'" ;;
esac

# A pyenv shim may exist for a version that is not installed, so candidates are run, not only found.
usable() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
    if usable "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11, 3.12 or 3.13 with its venv module found; install one, or name it: PYTHON=/path/to/python3.11"
}

# Run a step with its output in the log; print the end of the log if it fails.
step() {
  local title=$1
  shift
  if $dry_run; then
    printf '%q ' "$@" && echo
    return
  fi
  local began=$SECONDS
  printf '  %s ... ' "$title" >&2
  if ! "$@" >>"$log" 2>&1; then
    printf 'failed\n' >&2
    tail -n 15 "$log" >&2
    fail "$title failed; the whole output is in $log"
  fi
  printf '%d s\n' $((SECONDS - began)) >&2
}

# Print the requirements of the chosen extra other than fairseq, one per line.
other_requirements() {
  "$venv/bin/python" - "$root/pyproject.toml" "$extra" <<'PYTHON'
import pathlib, sys, tomllib

project = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + extras[sys.argv[2]]
for name in wanted:  # grows during the loop
    if name.startswith("fairseq-sharing["):
        wanted += [line for extra in name[16:-1].split(",") for line in extras[extra]]
    elif not name.startswith("fairseq"):
        print(name)
PYTHON
}

log=$venv/install.log
stamp=$venv/.installed-$extra
fingerprint=$(cat "$root/requirements.lock" "$root/pyproject.toml" "$root/setup.py" <(echo "$root") | cksum)
if [[ -f $stamp && $(<"$stamp") == "$fingerprint" ]] && usable "$venv/bin/python"; then
  exit 0
fi

if [[ -z ${CXX:-} ]] && ! command -v c++ g++ clang++ >/dev/null; then
  fail "no C++ compiler found (c++, g++ or clang++); fairseq compiles against the installed torch"
fi
if ! usable "$venv/bin/python"; then
  if [[ -e $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
    fail "FAIRSEQ_SHARING_VENV=$venv exists and is not a virtual environment"
  fi
  python=$(find_python)
  echo "installing into $venv with $("$python" -V), once:" >&2
  $dry_run || { mkdir -p "$venv" && : >"$log"; }
  step "virtual environment" "$python" -m venv --clear "$venv"
else
  echo "installing into $venv:" >&2
fi
$dry_run || touch "$log"

pip=("$venv/bin/python" -m pip --disable-pip-version-check)
install=("${pip[@]}" install --constraint "$root/requirements.lock")
# Compiling all installed files takes half a minute; for tests, Python compiles only what they import.
[[ $extra != test ]] || install+=(--no-compile)
# fairseq compiles against an installed torch, and pip's build isolation would download another one. Hence the build
# requirements come first, then the rest without isolation. The other packages are installed while fairseq compiles.
# Its extensions compile in parallel, which torch allows only if it does not find ninja (it would write all extensions to
# one build.ninja). Without debugging symbols (-g0), they take little more than half as long.
step "torch and build tools (a large download)" "${install[@]}" torch numpy cython setuptools wheel ninja
build=$venv/build
optimized="-O2 -DNDEBUG -fwrapv -g0" # CFLAGS replace Python's own flags
compile=(env PATH="$build:$PATH" DIST_EXTRA_CONFIG="$build/parallel.cfg"
  CFLAGS="$optimized ${CFLAGS:-}" CXXFLAGS="$optimized ${CXXFLAGS:-}" "${pip[@]}" wheel --no-deps --no-build-isolation
  --constraint "$root/requirements.lock" --wheel-dir "$build" fairseq-fixed)
compiling=
if $dry_run; then
  others=("OTHER REQUIREMENTS")
  step "fairseq" "${compile[@]}"
else
  mapfile -t others < <(other_requirements)
  # Requirements of fairseq except for torchaudio: its last release cannot be imported with current versions of torch,
  # and libraries that look for it, such as transformers, fail. fairseq imports it for speech only.
  others+=(bitarray cffi hydra-core packaging regex scikit-learn tqdm)
  if ! "${pip[@]}" show --quiet fairseq-fixed 2>/dev/null; then
    mkdir -p "$build"
    printf '[build_ext]\nparallel = %s\n' "$(getconf _NPROCESSORS_ONLN)" >"$build/parallel.cfg"
    printf '#!/bin/sh\nexit 1\n' >"$build/ninja" && chmod +x "$build/ninja"
    "${compile[@]}" >"$venv/compile.log" 2>&1 &
    compiling=$!
    trap 'kill "$compiling" 2>/dev/null || true' EXIT
  fi
fi
step "the other packages, while fairseq compiles" "${install[@]}" --no-build-isolation "${others[@]}"
[[ -z $compiling ]] || log=$venv/compile.log step "fairseq (compiles for a minute or two)" wait "$compiling"
step "this project" \
  "${install[@]}" --no-deps --no-build-isolation --find-links "$build" fairseq-fixed --editable "${root}[$extra]"
$dry_run || { rm -rf "$build" && echo "$fingerprint" >"$stamp"; }
