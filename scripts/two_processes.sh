#!/bin/bash
# Two processes on this machine's CPU train one run together, as two nodes would:
#
#   scripts/two_processes.sh --config configs/pretrain.py:smoke --config.data.path=FILE.jsonl
#
# The arguments are those of train.py. PORT (12345) is where the processes meet.
set -uo pipefail
cd "$(dirname "$0")/.."
export JAX_PLATFORMS=cpu

processes=()
for index in 0 1; do
  "${PYTHON:-.venv/bin/python}" train.py "$@" --config.distributed.coordinator="localhost:${PORT:-12345}" \
    --config.distributed.num_processes=2 --config.distributed.process_id="$index" &
  processes+=($!)
done
trap 'interrupted=yes; kill -TERM "${processes[@]}" 2>/dev/null' INT TERM

status=0
for process in "${processes[@]}"; do
  while
    interrupted=
    wait "$process"
    code=$?
    [ -n "$interrupted" ] # the signal ended `wait`, not the process
  do :; done
  [ "$code" -ne 0 ] && status=$code
done
exit "$status"
