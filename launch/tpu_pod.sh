#!/usr/bin/env bash
# Trains on a Cloud TPU slice: asks for it as a queued resource, waits for it, installs this
# checkout on its workers, runs, follows the log, and after a preemption does it all again.
#
#   launch/tpu_pod.sh --name=middle70 --zone=us-west4-a --type=v5litepod-8 --spot \
#     --runtime=v2-alpha-tpuv5-lite --setup='mountpoint -q /mnt || sudo mount 10.0.0.2:/runs /mnt' \
#     --cache=/mnt/cache -- --config=configs/middle70_570m.py --workdir=/mnt/middle70_570m
#
# What follows `--` goes to `python -m ffn_alloc.main` as it is. A worker's disk goes with it:
# --workdir must lie in a bucket (gs://…) or on a shared file system, which --setup mounts. The
# workers find each other, and get this checkout's last commit. The run does not need this script:
# started again, with the same arguments, it follows. Preempted (75, or the slice is gone) the run
# starts again always, after faults three times, after bad input (2) or divergence (3) never.
#
#   --name=NAME --zone=ZONE           of the queued resource and its node
#   --type=TYPE --runtime=VERSION     as `gcloud compute tpus queued-resources create` wants them
#   --spot                            cheaper, and preempted at any time
#   --setup=COMMAND                   on every worker before each start, so twice must do no harm
#   --cache=DIRECTORY                 $FFN_ALLOC_CACHE there: prepared rows, compiled programs
#   --delete                          delete the slice at the end, whatever the end; else it asks
#   --dry-run, --help                 print every command and run none; print this text
set -euo pipefail
readonly MAX_FAULTS=3 MAX_LOST=60 PREEMPTED=75 BAD_INPUT=2 DIVERGED=3 FAULT=99 NO_RUN=98 OTHER=97
readonly WORKER='bash ffn_alloc/launch/tpu_worker.sh'
say() { echo "tpu_pod.sh: $1" >&2; }; fail() { say "$1" && exit "$BAD_INPUT"; }
name='' zone='' type='' runtime='' spot='' setup=true cache='' delete='' dry_run='' faults=0 lost=0
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;; --zone=*) zone=${1#*=} ;; --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;; --spot) spot=1 ;; --setup=*) setup=${1#*=} ;;
    --cache=*) cache="FFN_ALLOC_CACHE=$(printf %q "${1#*=}") " ;; --delete) delete=1 ;;
    --dry-run) dry_run=1 ;; --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit ;;
    --) shift; break ;;
    *) fail "unknown option $1 (flags of ffn_alloc.main follow --)" ;;
  esac
  shift
done
for option in name zone type runtime; do [ -n "${!option}" ] || fail "--$option is missing"; done
[[ $* == *--config=* && $* =~ --workdir=(/|gs://) ]] || fail "no --config=… or no --workdir=/…: $*"
slice=(--node-id="$name" --accelerator-type="$type" --runtime-version="$runtime")

run() { if [ -z "$dry_run" ]; then "$@"; else printf '%q ' "$@" && echo; fi; }
tpus() { run gcloud compute tpus "$@" --zone="$zone" --quiet; }
on() { tpus tpu-vm ssh "$name" --worker="$1" --command="$2"; }
create() { tpus queued-resources create "$name" "${slice[@]}" ${spot:+--spot}; }
remove() { tpus queued-resources delete "$name" --force; }
begin() {
  local bundle=${TMPDIR:-/tmp}/ffn_alloc-$name.bundle
  local clone='git init -q ffn_alloc && cd ffn_alloc && git fetch -q ../ffn_alloc.bundle HEAD'
  run git -C "$(dirname "$0")/.." bundle create -q "$bundle" HEAD &&
    tpus tpu-vm scp "$bundle" "$name:ffn_alloc.bundle" --worker=all &&
    on all "$clone && git checkout -q --detach FETCH_HEAD" && on all "$WORKER install" &&
    on all "$setup" && on all "$cache$WORKER start$(printf ' %q' "$@")"
}
follow() { on 0 "[ -e run.pid ] || exit $NO_RUN; exec $WORKER follow$(printf ' %q' "$@")"; }
look() { # at the state of a `queued-resources` or `tpu-vm`; NONE if it does not exist
  local answer
  if answer=$(tpus "$1" describe "$name" --format="value($2)" 2>&1); then echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then echo NONE
  else echo "$answer" >&2 && echo UNKNOWN; fi
}
finish() {
  [ -n "$delete" ] || [ ! -t 0 ] || read -rp "Delete $name, or pay on? [y/N] " delete
  if [[ $delete == [1yY]* ]]; then remove; else say "to delete it: $(dry_run=1 remove)"; fi
  exit "$1"
}
state() { # of the queued resource, with /STATE of its node once it is ACTIVE
  local queued && queued=$(look queued-resources state.state)
  [ "$queued" != ACTIVE ] || queued+=/$(look tpu-vm state)
  echo "$queued"
}
fault() {
  sleep 60
  case $(state) in NONE | ACTIVE/READY) ;; *) return ;; esac # a slice that goes is no fault
  [ $((faults += 1)) -le "$MAX_FAULTS" ] || finish 1
}

if [ -n "$dry_run" ]; then create; begin "$@"; follow "$@"; remove; exit; fi
while now=$(state); do
  [ "$now" = "${before:-}" ] || say "$name: $now"
  case $now in
    ACTIVE/READY)
      began=$(date +%s) code=0 && follow "$@" || code=$?
      case $code in
        0 | "$BAD_INPUT" | "$DIVERGED") finish "$code" ;;
        "$OTHER") fail "$name trains with other arguments; give them, another --name, or delete it" ;;
        "$NO_RUN") begin "$@" || fault ;;
        "$PREEMPTED") ;; # is the slice still there?
        "$FAULT") fault ;;
        *) # the connection, which held if it lasted; the run does not need it
          [ $(($(date +%s) - began)) -lt 600 ] || lost=0
          [ $((lost += 1)) -le "$MAX_LOST" ] || { say "cannot reach $name; it may train on"; exit 1; }
          sleep 60 ;;
      esac ;;
    NONE) create || fault ;;
    FAILED) remove || true; fault ;;
    SUSPENDED | ACTIVE/PREEMPTED | ACTIVE/TERMINATED | ACTIVE/STOPPED | ACTIVE/NONE)
      remove || sleep 60 ;;
    *) [ "${before:-}$now" != UNKNOWN ] || exit 1; sleep 30 ;; # no credentials, most likely
  esac
  before=$now
done
