#!/usr/bin/env bash
# Trains on this machine: one process on all its GPUs (without any, on the CPU).
#
#   launch/local.sh [--dry-run] --config=configs/middle70_570m.py --workdir=/runs/middle70_570m
#
# Everything else is passed on to `python -m ffn_alloc.main`, with the python of the active
# environment. Preempted (exit code 75), the same command is run again at once; after a fault again
# a little later, three times at most; after bad input (2) or a training that diverged (3) never.
# Ctrl-C, or SIGTERM to this script, is passed on: the run saves, and the script ends with 75.
#
#   --dry-run   print the command and run nothing
#   --help      this text
set -euo pipefail
readonly MAX_FAULTS=3 PREEMPTED=75 BAD_INPUT=2 DIVERGED=3

dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=1 ;;
    --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit ;;
    *) break ;;
  esac
  shift
done

command=(python -m ffn_alloc.main "$@")
if [ -n "$dry_run" ]; then
  printf -v line '%q ' "${command[@]}"
  echo "${line% }"
  exit
fi

child='' signalled='' stopping=''
stop() {
  signalled=1 stopping=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT HUP

# Runs a command, to which a signal is passed on, and leaves its exit code in `code`.
run() {
  code=0 signalled=''
  "$@" &
  child=$!
  [ -z "$stopping" ] || kill -TERM "$child" 2>/dev/null || true # the signal came before it
  wait "$child" || code=$?
  while [ -n "$signalled" ]; do # a signal ends `wait` before the child has ended
    code=0 signalled=''
    wait "$child" || code=$?
  done
  child=''
}

faults=0
while run "${command[@]}"; do
  case $code in 0 | "$BAD_INPUT" | "$DIVERGED") exit "$code" ;; esac
  if [ -n "$stopping" ]; then
    [ "$code" -ne 143 ] || code=$PREEMPTED # python was still starting: nothing to save
    exit "$code"
  elif [ "$code" -eq "$PREEMPTED" ]; then
    echo "local.sh: preempted; going on" >&2
  elif [ "$faults" -eq "$MAX_FAULTS" ]; then
    echo "local.sh: exit code $code once more; giving up after $MAX_FAULTS new starts" >&2
    exit "$code"
  else
    faults=$((faults + 1))
    echo "local.sh: exit code $code; starting again ($faults of $MAX_FAULTS)" >&2
    run sleep 10
    [ -z "$stopping" ] || exit "$PREEMPTED"
  fi
done
