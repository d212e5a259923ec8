#!/usr/bin/env bash
# What tpu_pod.sh runs on a worker: tpu_worker.sh install | start ARGUMENT… | follow ARGUMENT…
#
# The run's process, arguments, log and exit code are kept in ~/run.pid, .args, .log and .exit.
set -euo pipefail
readonly ME=ffn_alloc/launch/tpu_worker.sh
cd

case $1 in
  install) # the images have Python 3.10, which is too old
    python3 -m pip install --quiet --user uv
    export PATH=~/.local/bin:$PATH
    [ -d venv ] || uv venv --quiet --python 3.12 venv
    uv pip install --quiet --python venv/bin/python -e './ffn_alloc[tpu,mistral,gcs]'
    ;;
  start) # whatever is left of a run before ends first; the new one outlives this connection
    shift
    [ ! -e run.pid ] || pkill -KILL -f -g "$(cat run.pid)" ffn_alloc || true
    rm -f run.exit
    setsid bash "$ME" run "$@" </dev/null >>run.log 2>&1 &
    printf '%q ' "$@" >run.args
    echo $! >run.pid
    ;;
  run)
    shift
    trap : TERM # a worker that shuts down signals this shell too, and the exit code is wanted
    code=0
    (cd ffn_alloc && exec ../venv/bin/python -m ffn_alloc.main "$@") || code=$?
    echo "$code" >run.exit
    ;;
  follow) # ends with the run; its exit code, 99 for a fault: gcloud has codes of its own; at
    # once with 97 where a run has other arguments, 98 where such a one has ended
    shift
    if [ "$(printf '%q ' "$@")" != "$(cat run.args)" ]; then
      if [ -e run.exit ] || ! kill -0 "$(cat run.pid)" 2>/dev/null; then exit 98; fi
      echo "there runs: $(cat run.args)" && exit 97
    fi
    tail -n 100 -s 0.2 -f run.log --pid="$(cat run.pid)"
    code=$(cat run.exit 2>/dev/null || echo unknown)
    rm -f run.pid run.exit
    case $code in
      0 | 2 | 3 | 75) exit "$code" ;;
      *) echo "exit code $code"; exit 99 ;;
    esac
    ;;
esac
