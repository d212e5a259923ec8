"""launch/slurm.sbatch against fakes; slurm_on_one_machine.sh tries it on a real SLURM."""

import signal

import pytest

from tests.launch.fakes import LAUNCH, Fakes
from tests.launch.local_test import ARGUMENTS, TRAIN, save_on_sigterm, wait_for

SBATCH = LAUNCH / "slurm.sbatch"
SHOW = ["scontrol", "--oneliner", "show", "job", "41"]
REQUEUE = ["scontrol", "requeue", "41"]


@pytest.fixture
def slurm(fakes: Fakes) -> Fakes:
    for name in ("srun", "scontrol", "scancel", "python"):
        fakes.add(name)
    return fakes


def test_asks_slurm_to_requeue_to_append_to_the_log_and_to_signal_the_tasks_in_time():
    options = [line[8:] for line in SBATCH.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert {"--requeue", "--open-mode=append", "--signal=TERM@180"} <= set(options)


@pytest.mark.parametrize(
    ("codes", "code", "requeued", "pauses"),
    [
        ([0], 0, False, 0),
        ([75], 75, True, 0),
        ([143], 75, True, 0),  # SIGTERM while python was starting
        ([2], 2, False, 0),
        ([1, 3], 3, False, 1),
        ([1, 137, 0], 0, False, 2),
        ([1, 75], 75, True, 1),
        ([1, 1, 1, 1], 1, False, 3),
    ],
    ids=str,
)
def test_requeues_after_preemption_alone_and_starts_again_after_faults_three_times(
    slurm: Fakes, codes: list[int], code: int, requeued: bool, pauses: int
):
    slurm.add("srun", *(f"exit {c}" for c in codes))
    assert slurm.run(SBATCH, *ARGUMENTS, SLURM_JOB_ID="41").returncode == code
    runs = slurm.calls("srun")
    assert len(runs) == len(codes) and all(call[-len(TRAIN) :] == TRAIN for call in runs)
    assert slurm.calls("scontrol") == [SHOW, REQUEUE] * requeued
    assert len(slurm.calls("sleep")) == pauses


def test_tasks_that_save_together_are_not_ended_by_the_first_to_exit(slurm: Fakes):
    slurm.run(SBATCH, *ARGUMENTS, SLURM_JOB_ID="41")
    [[_, *options]] = slurm.calls("srun")
    assert "--kill-on-bad-exit=0" in options and "--wait=300" in options


def test_passes_a_signal_of_the_batch_shell_on_to_the_tasks(slurm: Fakes):
    slurm.add("srun", save_on_sigterm(slurm.folder, "srun.pid"))
    # It may find that the tasks have just ended.
    slurm.add("scancel", 'kill -TERM "$(cat "$FAKES/srun.pid")"; exit 1')
    with slurm.start(SBATCH, *ARGUMENTS, SLURM_JOB_ID="41") as process:
        wait_for(slurm.folder / "srun.pid")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 75
    assert (slurm.folder / "saved").exists()
    assert slurm.calls("scancel", "scontrol") == [["scancel", "--signal=TERM", "41"], SHOW, REQUEUE]


def test_a_signal_between_two_starts_requeues_at_once(slurm: Fakes):
    slurm.add("srun", "exit 1")
    slurm.add("sleep", 'kill -TERM "$PPID"; exec /bin/sleep 20')
    with slurm.start(SBATCH, *ARGUMENTS, SLURM_JOB_ID="41") as process:
        assert process.wait(timeout=10) == 75
    assert len(slurm.calls("srun")) == 1 and slurm.calls("scontrol") == [SHOW, REQUEUE]


def test_a_cancelled_job_is_not_put_back_into_the_queue(slurm: Fakes):
    """SLURM 22.05 says COMPLETING then, and would requeue it; RUNNING after a signal alone."""
    slurm.add("srun", "exit 75")
    slurm.add("scontrol", "echo 'JobId=41 JobName=x JobState=COMPLETING Reason=None'")
    run = slurm.run(SBATCH, *ARGUMENTS, SLURM_JOB_ID="41")
    assert run.returncode == 1 and "cancelled" in run.stderr
    assert slurm.calls("scontrol") == [SHOW]
    slurm.add("srun", "exit 75")
    slurm.add("scontrol", "echo 'JobId=41 JobName=x JobState=RUNNING Reason=None'")
    assert slurm.run(SBATCH, *ARGUMENTS, SLURM_JOB_ID="41").returncode == 75
    assert slurm.calls("scontrol")[1:] == [SHOW, REQUEUE]


def test_says_so_when_slurm_does_not_requeue(slurm: Fakes):
    slurm.add("srun", "exit 75")
    slurm.add("scontrol", "exit 1", "echo 'requeue is disabled' >&2; exit 1")
    run = slurm.run(SBATCH, *ARGUMENTS, SLURM_JOB_ID="41")
    assert run.returncode == 75
    assert "requeue is disabled" in run.stderr and "submit it again" in run.stderr


def test_refuses_to_run_outside_of_a_job(slurm: Fakes):
    run = slurm.run(SBATCH, *ARGUMENTS, SLURM_JOB_ID="")
    assert run.returncode == 2 and "sbatch launch/slurm.sbatch" in run.stderr
    assert slurm.calls() == []


def test_a_dry_run_prints_and_runs_nothing(slurm: Fakes):
    printed = slurm.run(SBATCH, "--dry-run", *ARGUMENTS)
    assert printed.returncode == 0 and slurm.calls() == []
    command, requeue = printed.stdout.splitlines()
    assert requeue.startswith("scontrol requeue JOB")
    (slurm.folder / "again.sh").write_text(command)
    slurm.run(slurm.folder / "again.sh")
    assert slurm.calls("srun")[0][-len(TRAIN) :] == TRAIN
