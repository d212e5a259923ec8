#!/usr/bin/env bash
# What a sweep runs for a JobSet: gke_once.sh NAME COMMAND… creates it by COMMAND and waits for its
# end. One that is there already is waited for, or, if it has ended, replaced. Exit code 0 if it is
# Completed, else 1, or what COMMAND ended with. The JobSet does not need this script: the same
# command waits for it again.
set -euo pipefail
readonly MAX_LOST=60
say() { echo "gke_once.sh: $1" >&2; }
name=$1
shift

state() { # NAME/ until it ends, then NAME/Completed or NAME/Failed; nothing if there is none
  kubectl get "jobset/$name" --ignore-not-found \
    -o=jsonpath='{.metadata.name}/{.status.terminalState}'
}

found=$(state)
[[ $found != */?* ]] || kubectl delete jobset "$name" --cascade=foreground
[[ $found == */ ]] || "$@"
lost=0
while [ "$lost" -le "$MAX_LOST" ]; do
  if ! found=$(state); then
    lost=$((lost + 1))
    sleep 60
    continue
  fi
  lost=0
  case $found in
    */Completed) exit 0 ;;
    # kubectl 1.31 waits for any value of a field.
    */) kubectl wait --for=jsonpath='{.status.terminalState}' "jobset/$name" --timeout=8760h ||
      sleep 60 ;;
    *) say "ended: ${found:-$name is gone}" && exit 1 ;;
  esac
done
say "the cluster does not answer; $name may train on"
exit 1
