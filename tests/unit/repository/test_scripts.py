"""The shell scripts: the commands that they run, their errors, and the Python that they choose."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def _bash(*words: object, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [shutil.which("bash"), *map(str, words)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "FAIRSEQ_SHARING_VENV": "/nonexistent/venv", **environment},
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.mark.parametrize(
    ("data", "study"), [("toy", "toy"), ("multi30k", "multi30k --rows vanilla_admin cycle_rev --seeds 1")]
)
def test_quickstart_runs_a_study(data, study):
    told = _bash(ROOT / "scripts/quickstart.sh", "--data", data, "--dry-run").stderr
    assert told.splitlines()[-1] == f"$ fairseq-sharing study run {study}"


def test_quickstart_mirror_is_made_absolute(tmp_path):
    told = _bash(ROOT / "scripts/quickstart.sh", "--data", "multi30k", "--mirror", tmp_path, "--dry-run").stderr
    assert told.endswith(f" --seeds 1 --mirror {tmp_path}\n")


def test_test_dry_run_prints_every_check():
    told = _bash(ROOT / "scripts/test.sh", "--dry-run", "tests/unit", FAIRSEQ_SHARING_MIRROR="").stderr
    for check in (
        "ruff format --check .",
        "ruff check .",
        "lint-imports",
        "mypy fairseq_sharing benchmarks",
        "shellcheck .ci/run",
        "pytest -q",
    ):
        assert f"== {check}" in told
    (tests,) = [line for line in told.splitlines() if line.startswith("== pytest")]
    assert tests.endswith(" tests/unit")
    assert "FAIRSEQ_SHARING_MIRROR is not set: the tests on real text are skipped" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quickstart.sh", "--data", "wmt"], "quickstart.sh: error: --data must be toy or multi30k, got 'wmt'"),
        (["quickstart.sh", "--mirror", "/nonexistent"], "quickstart.sh: error: --mirror /nonexistent: no such folder"),
        (["quickstart.sh", "--data"], "quickstart.sh: error: --data needs a value"),
        (["quickstart.sh", "--fast"], "quickstart.sh: error: unknown argument --fast"),
        (
            ["install.sh", "--extra", "gpu"],
            "install.sh: error: --extra must be report, test, ctranslate2, huggingface or all, got",
        ),
        (["train.sh", "--devices", "0", "x"], "train.sh: error: --devices needs a number from 1, got '0'"),
        (["train.sh"], "train.sh: error: no CONFIG given"),
        (["train.sh", "--dry-run", "toy"], "train.sh: error: --dry-run checks the configuration: install first"),
        (["train.sh", "--master"], "train.sh: error: --master needs a value"),
        (["reproduce_wmt_en_de.sh", "--study"], "reproduce_wmt_en_de.sh: error: --study needs a value"),
        (["reproduce_wmt_en_de.sh", "--slurm"], "reproduce_wmt_en_de.sh: error: --slurm needs a value"),
        (["reproduce_wmt_en_de.sh", "--out"], "reproduce_wmt_en_de.sh: error: --out needs a value"),
    ],
)
def test_bad_argument_is_refused(words, message):
    script, *arguments = words
    told = _bash(ROOT / "scripts" / script, *arguments, status=2).stderr
    assert told.splitlines()[-1].startswith(message)


@pytest.mark.parametrize(
    ("words", "called"),
    [
        ([], "study run wmt16_en_de"),
        (
            ["--rows", "vanilla", "cycle_n12", "--gpus", "4", "train.max_update=9"],
            "study run wmt16_en_de --rows vanilla cycle_n12 --gpus 4 train.max_update=9",
        ),
        (
            ["--study", "news_commentary", "--slurm", "--time 1:00 --partition a"],
            "study run news_commentary --slurm=--time 1:00 --partition a",
        ),
        (["--out", "mine", "--seeds", "1", "2"], "study run wmt16_en_de --out=/mine --seeds 1 2"),
    ],
)
def test_the_script_of_the_table_passes_its_arguments_on(tmp_path, words, called):
    (tmp_path / "fairseq-sharing").write_text(f'#!{shutil.which("bash")}\necho "$*"\n')
    (tmp_path / "fairseq-sharing").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = _bash(ROOT / "scripts/reproduce_wmt_en_de.sh", "--dry-run", *words, PATH=path)
    assert done.stdout.strip().replace(" --dry-run", "") == called
    assert " --dry-run" in done.stdout


def test_table_s_dry_run_says_when_nothing_is_installed(programs):
    told = _bash(ROOT / "scripts/reproduce_wmt_en_de.sh", "--dry-run", status=2, PATH=str(programs)).stderr
    assert told.startswith("reproduce_wmt_en_de.sh: error: --dry-run builds the models: install first")


@pytest.fixture
def programs(tmp_path) -> Path:
    """A directory for PATH with the programs that install.sh calls, without Python and a compiler."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "ls"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def _program(folder: Path, name: str, status: int) -> None:
    (folder / name).write_text(f"#!{shutil.which('bash')}\nexit {status}\n")
    (folder / name).chmod(0o755)


def test_install_takes_the_first_python_that_runs(programs):
    _program(programs, "g++", 0)
    _program(programs, "python3.11", 127)  # like the shim of a version that is not installed
    _program(programs, "python3.12", 0)
    told = _bash(ROOT / "scripts/install.sh", "--dry-run", PATH=str(programs)).stdout
    assert told.startswith(f"{programs}/python3.12 -m venv")
    tools, fairseq, others, project = told.splitlines()[1:]
    assert tools.endswith("torch numpy cython setuptools wheel ninja ")
    assert fairseq.endswith("fairseq-fixed ")
    assert ["--no-build-isolation" in line for line in (tools, fairseq, others, project)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("present", "message"),
    [
        (["python3.11"], "no C++ compiler found (c++, g++ or clang++)"),
        (["g++"], "no Python 3.11, 3.12 or 3.13 with its venv module found"),
    ],
)
def test_install_says_what_is_missing_in_one_line(programs, present, message):
    for name in present:
        _program(programs, name, 0)
    (line,) = _bash(ROOT / "scripts/install.sh", status=2, PATH=str(programs)).stderr.splitlines()
    assert line.startswith(f"install.sh: error: {message}")


@pytest.fixture
def slurm(tmp_path) -> Path:
    """A PATH with fake Slurm programs that record their arguments; srun runs the command."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, does in (("scontrol", 'if [[ $1 == show ]]; then printf "one\\ntwo\\n"; fi'), ("srun", '"${@:2}"')):
        (folder / name).write_text(f'#!{shutil.which("bash")}\necho "{name} $*" >>"{tmp_path}/calls"\n{does}\n')
        (folder / name).chmod(0o755)
    return folder


def _task(slurm: Path, lines: str, **variables: str) -> dict:
    (slurm.parent / "lines").write_text(lines)
    job = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_NNODES": "1"}
    path = f"{slurm}:{os.environ['PATH']}"
    return {**os.environ, **job, "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NODEID": "1", "PATH": path, **variables}


def test_slurm_task_runs_its_line_on_every_machine(slurm):
    words = [shutil.which("bash"), ROOT / "scripts/slurm/train.sbatch", slurm.parent / "lines"]
    variables = _task(slurm, 'exit 3\necho "trains $MACHINES"\n', SLURM_NNODES="2")
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "trains --nodes 2 --node-rank 1 --master one:20077\n"
    single = subprocess.run(words, env=_task(slurm, "\necho [$MACHINES]"), capture_output=True, text=True, check=True)
    assert single.stdout == "[]\n"


def test_slurm_task_whose_time_is_up_ends_the_training_and_is_queued_again(slurm):
    variables = _task(slurm, f'\ntouch "{slurm.parent}/started"; exec sleep 60\n')
    words = [shutil.which("bash"), ROOT / "scripts/slurm/train.sbatch", slurm.parent / "lines"]
    bash, pid, calls = shutil.which("bash"), slurm.parent / "pid", slurm.parent / "calls"
    (slurm / "srun").write_text(f'#!{bash}\necho $$ >"{pid}"; exec "${{@:2}}"\n')
    # Signals the tasks of the job. srun itself would kill them at a SIGTERM.
    (slurm / "scancel").write_text(f'#!{bash}\necho "scancel $*" >>"{calls}"; kill -TERM $(cat "{pid}")\n')
    (slurm / "scancel").chmod(0o755)
    task = subprocess.Popen(words, env=variables)
    end = time.monotonic() + 20
    while not (slurm.parent / "started").exists():
        assert time.monotonic() < end, "it did not start"
        time.sleep(0.05)
    task.terminate()
    assert task.wait(20) == 0
    job = variables["SLURM_JOB_ID"]
    assert calls.read_text() == f"scancel --signal=TERM {job}\nscontrol requeue 70_2\n"


def test_slurm_task_that_fails_is_not_queued_again(slurm):
    words = [shutil.which("bash"), ROOT / "scripts/slurm/train.sbatch", slurm.parent / "lines"]
    assert subprocess.run(words, env=_task(slurm, "\nexit 4\n"), check=False).returncode == 4
    assert "requeue" not in (slurm.parent / "calls").read_text()
    done = subprocess.run(words, env=_task(slurm, "exit 4\n"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("lines has no line 2\n")


def test_no_script_writes_to_the_committed_results():
    for script in (ROOT / "scripts").rglob("*.*"):
        for line in script.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"(--out|report) \S*results/", line), f"{script.name}: {line}"
