#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet (the JobSet controller is installed there).
#
#   launch/gke.sh --name=middle70 --image=REGISTRY/ffn-alloc:1 --claim=runs \
#     --accelerator=tpu-v5-lite-podslice --topology=2x4 --chips-per-host=8 -- \
#     --config=configs/middle70_570m.py --workdir=/runs/middle70_570m
#
# What follows `--` goes to `python -m ffn_alloc.main` as it is. The image has the checkout as its
# working directory and ffn_alloc[tpu,mistral,gcs] in its python. A pod's disk goes with the pod: the
# claim (ReadWriteMany for several hosts) is mounted at /runs, holds $FFN_ALLOC_CACHE (/runs/cache),
# and --workdir must lie in it, or in a bucket (gs://…). The hosts of a slice find each other.
# Preempted (exit code 75, or evicted), pods are started again without limit; after a fault the
# whole set is, three times at most; after bad input (2) or a training that diverged (3) never.
#
#   --name=NAME            of the JobSet; kubectl delete jobset NAME removes it
#   --image=IMAGE --claim=PERSISTENT_VOLUME_CLAIM
#   --accelerator=LABEL    cloud.google.com/gke-tpu-accelerator of the nodes
#   --topology=AxB[xC]     cloud.google.com/gke-tpu-topology of the nodes
#   --chips-per-host=N     4 by default
#   --slices=N             1 by default
#   --spot                 on spot nodes
#   --xpk=CLUSTER --tpu-type=TYPE     through XPK instead, which knows the topology of a TYPE such
#                          as v5litepod-8; --claim then names a storage of XPK mounted at /runs,
#                          and preemptions and faults together are followed by 30 new starts
#   --dry-run              print the command and the manifest, and run nothing
#   --help                 this text
set -euo pipefail

fail() { echo "gke.sh: $1" >&2; exit 2; }
name='' image='' claim='' accelerator='' topology='' chips=4 slices=1 spot='' xpk='' type=''
dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;; --image=*) image=${1#*=} ;; --claim=*) claim=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;; --topology=*) topology=${1#*=} ;;
    --chips-per-host=*) chips=${1#*=} ;; --slices=*) slices=${1#*=} ;;
    --spot) spot=1 ;; --xpk=*) xpk=${1#*=} ;; --tpu-type=*) type=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit ;;
    --) shift; break ;;
    *) fail "unknown option $1 (flags of ffn_alloc.main follow --)" ;;
  esac
  shift
done
for option in name image claim ${xpk:+type} $([ -n "$xpk" ] || echo accelerator topology); do
  [ -n "${!option}" ] || fail "--${option/#type/tpu-type} is missing (see --help)"
done
for option in chips slices; do
  [[ ${!option} =~ ^[1-9][0-9]*$ ]] ||
    fail "--${option/#chips/chips-per-host}=${!option} is no positive number"
done
[[ $* == *--config=* && $* =~ --workdir=(/runs/|gs://) ]] ||
  fail "no --config=… or no --workdir=/runs/…: $*"
command=(python -m ffn_alloc.main "$@")

if [ -n "$xpk" ]; then # its wrapper signals the process that it starts: `exec`
  xpk_command=(xpk workload create --cluster="$xpk" --workload="$name" --tpu-type="$type"
    --num-slices="$slices" --docker-image="$image" --storage="$claim"
    --env=FFN_ALLOC_CACHE=/runs/cache --termination-grace-period-seconds=300
    --max-restarts=30 "--restart-on-exit-codes=1,75" ${spot:+--spot}
    --command="exec $(printf '%q ' "${command[@]}")")
  [ -n "$dry_run" ] || exec "${xpk_command[@]}"
  printf '%q ' "${xpk_command[@]}"; echo
  exit
fi

[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || fail "--topology=$topology is not of the form 2x4 or 2x2x4"
total=$((${topology//x/*}))
[ $((total % chips)) -eq 0 ] || fail "--topology=$topology has $total chips, no multiple of $chips"

# A JSON string, which is a YAML one too; Kubernetes would expand $(NAME).
quote() {
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"} s=${s//$'\n'/\\n} s=${s//$'\t'/\\t}
  printf '"%s"' "${s//\$(/\$\$(}"
}
words=$(for word in "${command[@]}"; do quote "$word"; printf ', '; done)
hosts=$((total / chips)) placement='{}'
exclusive='alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool'
[ "$hosts" -eq 1 ] || placement="{$exclusive}" # a slice of several hosts is a node pool

manifest=$(cat "$(dirname "$0")/jobset.yaml")
fill() { manifest=${manifest//@$1@/"$2"}; }
fill SLICES "$slices"; fill HOSTS "$hosts"; fill CHIPS "$chips"; fill PLACEMENT "$placement"
fill SPOT "${spot:+cloud.google.com/gke-spot: \"true\"}"
fill NAME "$(quote "$name")"; fill IMAGE "$(quote "$image")"; fill CLAIM "$(quote "$claim")"
fill ACCELERATOR "$(quote "$accelerator")"; fill TOPOLOGY "$(quote "$topology")"
fill COMMAND "${words%, }"

if [ -n "$dry_run" ]; then
  echo "kubectl create -f - <<'END'"
  echo "$manifest"
  echo END
  exit
fi
kubectl create -f - <<<"$manifest"
echo "follow it:  kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$name --prefix"
echo "remove it:  kubectl delete jobset $name"
