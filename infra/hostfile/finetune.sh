#!/usr/bin/env bash
# Several nodes by ssh: infra/hostfile/finetune.sh hosts.txt infra/runs/my.yaml training.epochs=2
# hosts.txt names one host a line, this one first (as the others reach it). The repository, the runs folder and the model
# cache must lie on a file system that all hosts see under the same path.
set -euo pipefail
: "${2:?usage: infra/hostfile/finetune.sh HOSTFILE CONFIG [section.field=value ...]}"
mapfile -t hosts < <(grep -vE '^[[:space:]]*(#|$)' "$1")
config=$2
shift 2
export LORA_SELECT_RENDEZVOUS="${hosts[0]}:${PORT:-29400}" LORA_SELECT_CACHE="${LORA_SELECT_CACHE:-$PWD/.cache}"
mkdir -p runs
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for number in $(seq 1 $((${#hosts[@]} - 1))); do
  # -tt: the agent gets SIGHUP when this script ends, and ends its ranks.
  ssh -tt "${hosts[$number]}" "cd $(printf %q "$PWD") && LORA_SELECT_CACHE=$(printf %q "$LORA_SELECT_CACHE") \
    .venv/bin/lora-select node runs --number $number" </dev/null &
done
.venv/bin/python -m flows.finetune --config "$config" training.nodes="${#hosts[@]}" "$@"
