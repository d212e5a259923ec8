"""launch/tpu_pod.sh against a cloud of shell scripts with two workers that really run commands."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.fakes import LAUNCH, Fakes
from tests.launch.local_test import wait_for

ARGUMENTS = ["--config=configs/x.py", "--workdir=/mnt/a b", '--config.name=it\'s "x" $HOME *']
OPTIONS = [
    "--name=middle70",
    "--zone=us-west4-a",
    "--type=v5litepod-8",
    "--runtime=v2-alpha-tpuv5-lite",
    "--setup=sudo mount 'a b' /mnt; true",
    "--cache=/mnt/the cache",
]
ALL = [*OPTIONS, "--", *ARGUMENTS]

# State and node state are files, a worker's home a folder that goes with the slice. `created`
# holds what each newly created slice goes through, one a line; the last one stays.
_GCLOUD = r"""#!/bin/bash
"$FAKES/record" "${0##*/}" "$@"
cd "$FAKES/cloud" || exit 9
next() { [ "$(wc -l <"$1")" -lt 2 ] || sed -i 1d "$1"; }
case "$4 $(head -n 1 state 2>/dev/null)" in
  ssh\ ACTIVE | scp\ ACTIVE) ;;
  ssh* | scp*) "$FAKES/record" "too early"; exit 1 ;;
esac
case "$3 $4" in
  "queued-resources create")
    head -n 1 plan | tr ' ' '\n' >state
    echo READY >node
    [ "$(wc -l <plan)" -lt 2 ] || sed -i 1d plan
    mkdir home0 home1 ;;
  "queued-resources describe")
    if [ -e state ]; then head -n 1 state; next state
    else echo "ERROR: (gcloud) NOT_FOUND: Resource '$5' was not found" >&2; exit 1; fi ;;
  "tpu-vm describe") cat node ;;
  "queued-resources delete") rm -r state node home0 home1 ;;
  "tpu-vm scp") for home in home0 home1; do cp "$5" "$home/${6#*:}" || exit 1; done ;;
  "tpu-vm ssh")
    for word in "$@"; do case $word in
      --worker=all) workers='1 0' ;; --worker=0) workers=0 ;; --command=*) command=${word#*=} ;;
    esac; done
    [ -s lost ] && sed -i 1d lost && exit 1
    for worker in $workers; do
      (cd "home$worker" && HOME=$PWD bash -c "$command") || code=$?
    done
    exit "${code:-0}" ;;
esac
"""

# Installs the fake python of worker 0 and one that does nothing on the others.
_UV = r"""#!/bin/bash
"$FAKES/record" "${0##*/}" "$@"
[ "$1" != venv ] || { mkdir -p venv/bin && cp "$FAKES/train${HOME: -1}" venv/bin/python; }
"""

_TRAIN = r"""#!/bin/bash
"$FAKES/record" train "$FFN_ALLOC_CACHE" "$(basename "$PWD")" "$@"
answer=$(head -n 1 "$FAKES/train.answers")
sed -i 1d "$FAKES/train.answers"
eval "$answer"
"""
TRAIN = ["train", "/mnt/the cache", "ffn_alloc", "-m", "ffn_alloc.main", *ARGUMENTS]
_SUSPENDED = 'printf "SUSPENDING\\nSUSPENDED\\n" >"$FAKES/cloud/state"'


class Cloud(Fakes):
    """`script` is launch/tpu_pod.sh in a small repository of its own."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        (folder / "cloud").mkdir()
        self.plan("CREATING PROVISIONING ACTIVE")
        self.add("gcloud", script=_GCLOUD)
        self.add("uv", script=_UV)
        self.add("sudo")
        self.add("python3")
        (folder / "train0").write_text(_TRAIN)
        (folder / "train1").write_text("#!/bin/sh\n")
        for name in ("train0", "train1"):
            (folder / name).chmod(0o755)
        shutil.copytree(LAUNCH, folder / "checkout" / "launch")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder / "checkout")]
        for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
            subprocess.run([*git, *command], check=True)
        self.script = folder / "checkout" / "launch" / "tpu_pod.sh"
        self.environment["TMPDIR"] = str(folder)

    def plan(self, *slices: str) -> None:
        (self.folder / "cloud" / "plan").write_text("".join(line + "\n" for line in slices))

    def train(self, *answers: str) -> None:
        (self.folder / "train.answers").write_text("".join(line + "\n" for line in answers))

    def gcloud(self, verb: str) -> list[list[str]]:
        return [call[3:] for call in self.calls("gcloud") if verb in call[3:5]]

    def exists(self) -> bool:
        return (self.folder / "cloud" / "state").exists()


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def test_creates_waits_installs_runs_follows_and_deletes(cloud: Cloud):
    cloud.train("echo step 1; echo a fault in words >&2; exit 0")
    run = cloud.run(cloud.script, "--delete", "--spot", *ALL)
    assert run.returncode == 0, run.stderr
    assert cloud.calls("train") == [TRAIN]
    assert "step 1" in run.stdout and "a fault in words" in run.stdout
    [[*create]] = cloud.gcloud("create")
    expected = ["middle70", "--node-id=middle70", "--accelerator-type=v5litepod-8", "--spot"]
    assert {*expected, "--runtime-version=v2-alpha-tpuv5-lite", "--zone=us-west4-a"} <= set(create)
    assert cloud.calls("sudo") == [["sudo", "mount", "a b", "/mnt"]] * 2  # on both workers
    installs = [call for call in cloud.calls("uv") if call[1] == "pip"]
    assert len(installs) == 2 and "./ffn_alloc[tpu,mistral,gcs]" in installs[0]
    assert not cloud.exists() and not cloud.calls("too early")


def test_a_preempted_slice_is_deleted_created_again_and_the_same_command_goes_on(cloud: Cloud):
    cloud.train(f"{_SUSPENDED}; exit 75", 'echo PREEMPTED >"$FAKES/cloud/node"; exit 75', "exit 0")
    run = cloud.run(cloud.script, *ALL)
    assert run.returncode == 0, run.stderr
    assert cloud.calls("train") == [TRAIN] * 3
    assert len(cloud.gcloud("create")) == 3 and len(cloud.gcloud("delete")) == 2
    assert all("--force" in call for call in cloud.gcloud("delete"))
    assert cloud.exists() and "queued-resources delete middle70 --force" in run.stderr


def test_a_slice_that_goes_without_a_word_is_no_fault(cloud: Cloud):
    gone = f"{_SUSPENDED}; exit 1"
    cloud.train(*[gone] * 4, "exit 0")
    assert cloud.run(cloud.script, *ALL).returncode == 0
    assert len(cloud.gcloud("create")) == 5


def test_preempted_on_a_slice_that_stays_it_goes_on_there_and_installs_once(cloud: Cloud):
    cloud.train("exit 75", "exit 75", "exit 0")
    assert cloud.run(cloud.script, *ALL).returncode == 0
    assert cloud.calls("train") == [TRAIN] * 3 and len(cloud.gcloud("create")) == 1
    assert len([call for call in cloud.calls("uv") if call[1] == "venv"]) == 2


@pytest.mark.parametrize("code", [2, 3])
def test_bad_input_and_divergence_are_not_tried_again(cloud: Cloud, code: int):
    cloud.train(f"echo error: model.allocation; exit {code}")
    run = cloud.run(cloud.script, "--delete", *ALL)
    assert run.returncode == code and "error: model.allocation" in run.stdout
    assert cloud.calls("train") == [TRAIN] and not cloud.exists()


def test_faults_are_tried_again_three_times(cloud: Cloud):
    cloud.train("exit 1", "kill -KILL $$", "exit 1", "exit 4", "exit 0")
    run = cloud.run(cloud.script, *ALL)
    assert run.returncode == 1 and "exit code 4" in run.stdout
    assert cloud.calls("train") == [TRAIN] * 4 and len(cloud.gcloud("create")) == 1


def test_a_lost_connection_is_no_fault_and_the_run_is_followed_on(cloud: Cloud):
    (cloud.folder / "cloud" / "lost").write_text("once\n" * 7)
    cloud.train("exit 0")
    assert cloud.run(cloud.script, *ALL).returncode == 0
    assert cloud.calls("train") == [TRAIN]


@pytest.mark.parametrize(("seconds", "ended"), [(1, True), (3600, False)])
def test_a_run_that_cannot_be_reached_any_more_is_left_alone(
    cloud: Cloud, seconds: int, ended: bool
):
    """Connections that lasted are not counted."""
    (cloud.folder / "cloud" / "lost").write_text("once\n" * 70)
    clock = f'echo $(( $(wc -l <"$FAKES/now") * {seconds} )); echo >>"$FAKES/now"'
    (cloud.folder / "now").touch()
    cloud.add("date", script=f"#!/bin/bash\n{clock}\n")
    cloud.train("exit 0")
    run = cloud.run(cloud.script, "--delete", *ALL)
    assert run.returncode == ended, run.stderr
    assert len(cloud.gcloud("delete")) == (not ended)
    assert ("cannot reach middle70; it may train on" in run.stderr) == ended


def test_ended_and_started_again_it_follows_the_run_that_goes_on(cloud: Cloud):
    wait = 'echo step 1; until [ -e "$FAKES/enough" ]; do /bin/sleep 0.05; done; echo step 2'
    cloud.train(wait)
    with cloud.start(cloud.script, *ALL) as process:
        wait_for(cloud.folder / "cloud" / "home0" / "run.log")
        process.send_signal(signal.SIGKILL)
    (cloud.folder / "enough").touch()
    run = cloud.run(cloud.script, *ALL)
    assert run.returncode == 0 and "step 2" in run.stdout
    assert cloud.calls("train") == [TRAIN] and len(cloud.gcloud("create")) == 1


@pytest.mark.parametrize("delete", [[], ["--delete"]])
def test_a_slice_that_trains_something_else_is_left_alone(cloud: Cloud, delete: list[str]):
    wait = 'echo step 1; until [ -e "$FAKES/enough" ]; do /bin/sleep 0.05; done'
    cloud.train(wait, "exit 0")
    other = [*OPTIONS, "--", ARGUMENTS[0], "--workdir=/mnt/b"]
    with cloud.start(cloud.script, *ALL) as process:
        wait_for(cloud.folder / "cloud" / "home0" / "run.log")
        run = cloud.run(cloud.script, *delete, *other)
        assert run.returncode == 2 and "--name" in run.stderr and "/mnt/a" in run.stdout
        assert cloud.exists() and cloud.calls("train") == [TRAIN]
        process.send_signal(signal.SIGKILL)
    (cloud.folder / "enough").touch()
    wait_for(cloud.folder / "cloud" / "home0" / "run.exit")
    again = cloud.run(cloud.script, *other)  # what nobody followed has ended
    assert again.returncode == 0, again.stderr
    assert cloud.calls("train")[1:] == [[*TRAIN[:5], *other[-2:]]]


def test_a_workdir_may_lie_in_a_bucket(cloud: Cloud):
    bucket = [*OPTIONS, "--", ARGUMENTS[0], "--workdir=gs://b/runs/x"]
    printed = cloud.run(cloud.script, "--dry-run", *bucket)
    assert printed.returncode == 0 and "--workdir=gs://b/runs/x" in printed.stdout


def test_a_request_that_fails_is_deleted_and_made_again_three_times(cloud: Cloud):
    cloud.plan("FAILED")
    run = cloud.run(cloud.script, *ALL)
    assert run.returncode == 1 and len(cloud.gcloud("create")) == 4 and not cloud.exists()


def test_without_credentials_gclouds_message_is_kept_and_nothing_created(cloud: Cloud):
    cloud.add("gcloud", *["echo 'ERROR: (gcloud) You do not have an account' >&2; exit 1"] * 2)
    run = cloud.run(cloud.script, *ALL)
    assert run.returncode == 1 and "You do not have an account" in run.stderr
    assert len(cloud.calls("gcloud")) == 1 and "describe" in cloud.calls("gcloud")[0]


def test_a_dry_run_prints_every_command_and_runs_none(cloud: Cloud):
    printed = cloud.run(cloud.script, "--dry-run", *ALL)
    assert printed.returncode == 0 and cloud.calls() == []
    cloud.plan("ACTIVE")
    cloud.train("exit 0")
    lines = [line for line in printed.stdout.splitlines() if " delete " not in line]
    (cloud.folder / "again.sh").write_text("\n".join(lines))
    cloud.run(cloud.folder / "again.sh", PWD=str(cloud.folder))
    assert cloud.calls("train") == [TRAIN]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*OPTIONS[1:], "--", *ARGUMENTS], "--name"),
        ([*OPTIONS, "--tpye=x", "--", *ARGUMENTS], "--tpye=x"),
        ([*OPTIONS, *ARGUMENTS], "unknown option --config=configs/x.py"),
        ([*OPTIONS, "--", ARGUMENTS[0]], "--workdir=/"),
        ([*OPTIONS, "--", ARGUMENTS[0], "--workdir=runs/x"], "--workdir=/"),
        ([*OPTIONS, "--", ARGUMENTS[0], "--workdir=runs/x"], "--workdir=runs/x"),
        ([*OPTIONS, "--", ARGUMENTS[1]], "--config="),
    ],
)
def test_bad_options_are_named_before_anything_is_created(
    cloud: Cloud, arguments: list[str], named: str
):
    run = cloud.run(cloud.script, *arguments)
    assert run.returncode == 2 and named in run.stderr and cloud.calls() == []
