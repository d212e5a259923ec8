#!/usr/bin/env bash
# Tries launch/slurm.sbatch on a real SLURM: a controller and two nodes, all on this machine.
#
#   apt-get install -y --no-install-recommends slurm-wlm munge      # Debian 12 has SLURM 22.05
#   bash tests/launch/slurm_on_one_machine.sh [TASKS [ARGUMENT…]]   # as root, environment active
#
# One quickstart runs undisturbed. A second one is stopped three times: by SIGTERM to its tasks, by
# SIGTERM to its batch shell, and by a job that preempts it. It must go back into the queue each
# time and end in the same checkpoint, digest by digest. A third is cancelled: it saves, and stays
# cancelled. Stand-ins for python show the rest: the time limit requeues, bad input does not, a fault
# starts four times in all. TASKS (1) is the number of processes, one a node; two need
# "127.0.0.1 HOSTNAME n1 n2" in /etc/hosts. The ARGUMENTs go to ffn_alloc.main. It takes five to
# twenty minutes. Not part of the suite: it starts daemons, which it ends, and writes to a new folder
# of /tmp, which it keeps if it fails.
set -euo pipefail
tasks=${1:-1} arguments=("${@:2}")
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d /tmp/ffn_alloc-slurm.XXXXXX)
export SLURM_CONF=$work/slurm.conf FFN_ALLOC_CACHE=${FFN_ALLOC_CACHE:-$work/cache} JAX_PLATFORMS=cpu
steps=150

daemons=()
start() {
  "$@" >>"$work/daemons.log" 2>&1 &
  daemons+=($!)
}
finish() {
  local status=$?
  scancel --user=root 2>/dev/null || true
  kill "${daemons[@]}" 2>/dev/null || true
  wait || true
  if [ "$status" -eq 0 ]; then rm -rf "$work"; else echo "FAILED; see $work" >&2; fi
}
trap finish EXIT

start_slurm() {
  mkdir -p "$work"/{state,spool,logs}
  chmod 755 "$work"
  (umask 077 && head -c 128 /dev/urandom >"$work/munge.key")
  # cred_expire: a requeued job may start again after seconds, not after two minutes.
  cat >"$SLURM_CONF" <<END
ClusterName=one_machine
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool/%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.%n.pid
SlurmctldLogFile=$work/logs/slurmctld
SlurmdLogFile=$work/logs/slurmd.%n
NodeName=n1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=16818 CPUs=1
NodeName=n2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=16819 CPUs=1
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
END
  start munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" \
    --pid-file="$work/munge.pid" --log-file="$work/logs/munged" --seed-file="$work/munge.seed"
  until [ -S "$work/munge.socket" ]; do sleep 0.2; done
  start slurmctld -D -c -f "$SLURM_CONF"
  start slurmd -D -c -N n1 -f "$SLURM_CONF"
  start slurmd -D -c -N n2 -f "$SLURM_CONF"
  until [ "$(sinfo --noheader --states=idle --format=%D --partition=low 2>/dev/null)" = 2 ]; do
    sleep 0.5
  done
}

# submit NAME OPTION… -- ARGUMENT… prints the job's number.
submit() {
  local name=$1 options=()
  shift
  while [ "$1" != -- ]; do options+=("$1") && shift; done
  shift
  sbatch --parsable --chdir="$root" --output="$work/$name.log" --nodes="$tasks" "${options[@]}" \
    "$root/launch/slurm.sbatch" "$@"
}
train() { # NAME
  submit "$1" -- --config=configs/quickstart.py --workdir="$work/$1" --config.train.steps=$steps \
    --config.data.sequence_length=64 --config.data.max_documents=200 --config.train.log_every=1 \
    --config.checkpoint.every=50 --config.eval.every=0 "${arguments[@]}"
}
field() { scontrol --oneliner show job "$1" | grep -oP "\b$2=\K\S+"; }
await() { # JOB FIELD VALUE, at most ten minutes
  local seconds
  for ((seconds = 0; seconds < 600; seconds++)); do
    [ "$(field "$1" "$2")" != "$3" ] || return 0
    sleep 1
  done
  echo "job $1 does not reach $2=$3: $(scontrol --oneliner show job "$1")" >&2
  return 1
}
reach() { # NAME STEP: until the run has logged the step
  echo "waiting for step $2 of $1" >&2
  until grep -q "\"step\": $2," "$work/$1/metrics.jsonl" 2>/dev/null; do sleep 0.2; done
}
digests() {
  python -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["meta"]["digests"], indent=1))' \
    <"$work/$1/checkpoints/$steps/meta/metadata"
}
stand_in() { # NAME SCRIPT: a `python` that runs it
  mkdir -p "$work/$1"
  printf '#!/bin/sh\necho start >>%q\n%s\n' "$work/$1/starts" "$2" >"$work/$1/python"
  chmod +x "$work/$1/python"
}
starts() { wc -l <"$work/$1/starts"; }

start_slurm

echo "== undisturbed"
await "$(train undisturbed)" JobState COMPLETED

echo "== stopped three times"
job=$(train stopped)
reach stopped 30
scancel --signal=TERM "$job"
await "$job" Restarts 1
reach stopped 60
scancel --batch --signal=TERM "$job"
await "$job" Restarts 2
reach stopped 90
urgent=$(sbatch --parsable --partition=high --nodes=2 --output=/dev/null --wrap='sleep 3')
await "$job" Restarts 3
await "$urgent" JobState COMPLETED
await "$job" JobState COMPLETED
diff <(digests undisturbed) <(digests stopped)
cmp <(digests undisturbed) <(digests stopped) && echo "the same $(digests stopped | grep -c '\[') digests"

echo "== cancelled"
job=$(train cancelled)
reach cancelled 30
scancel "$job"
await "$job" JobState CANCELLED
sleep 10 # in which it would go back into the queue
[ "$(field "$job" JobState) $(field "$job" Restarts)" = "CANCELLED 0" ]
ls "$work"/cancelled/checkpoints/*/meta/metadata

echo "== time limit"
# shellcheck disable=SC2016  # for the shell of the stand-in to expand
stand_in limit '[ "$SLURM_RESTART_COUNT" ] && exit 0; trap "exit 75" TERM; sleep 300 & wait'
job=$(PATH=$work/limit:$PATH submit limit --time=1 --signal=TERM@30 -- --config=x)
await "$job" JobState COMPLETED
[ "$(starts limit)" -eq $((2 * tasks)) ]

echo "== bad input"
job=$(submit bad -- --config=configs/quickstart.py --config.train.steps=-1 --workdir="$work/bad")
await "$job" JobState FAILED
[ "$(field "$job" Restarts) $(field "$job" ExitCode)" = "0 2:0" ]

echo "== a fault"
stand_in fault 'exit 1'
job=$(PATH=$work/fault:$PATH submit fault -- --config=x)
await "$job" JobState FAILED
[ "$(field "$job" Restarts) $(field "$job" ExitCode) $(starts fault)" = "0 1:0 $((4 * tasks))" ]

echo "all as it should be"
