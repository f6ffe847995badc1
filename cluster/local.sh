#!/usr/bin/env bash
# Run a three-node cluster on one machine: start a head and two more nodes with one CPU each and
# Ray's token authentication, train briefly on all three, and print which nodes the actors ran on.
# All of it listens on this machine's loopback only: without that, Ray opens some 15 ports per node
# to the network, of which those of its metrics ask for no token (maml_ray/docs/cluster.md, Ports).
# Everything it started is stopped again in any case, and no other Ray is touched.
#
#   cluster/local.sh [--set KEY.PATH=VALUE | --run-dir FOLDER | ...]    as for `maml-ray train`
set -euo pipefail
set -m # each background job gets its own process group, so that it can be stopped as a whole
cd "$(dirname "$0")/.."

START_S=180 # timeout for the start of nodes and actors
STOP_S=30   # time between SIGTERM and SIGKILL

if [ -d .venv/bin ]; then PATH="$PWD/.venv/bin:$PATH"; fi
for command in ray maml-ray; do
  if ! command -v "$command" >/dev/null; then
    echo "cluster/local.sh: '$command' is not installed: run 'make install' first" >&2
    exit 2
  fi
done

# Ignore the settings of other clusters; use a separate token, folder and ports. The folder's name is
# short because the paths of Ray's local sockets must fit into 107 bytes.
for name in ${!RAY_@}; do unset "$name"; done
folder="$(mktemp -d /tmp/mr.XXXXXX)"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/token"
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # no draining: no other work runs here
export RAY_USAGE_STATS_ENABLED=0
# For the head and the programs that join it: 127.0.0.1 stays that, as on macOS, and is not replaced
# by the machine's address.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
groups=()

is_up() { kill -0 -- "-$1" 2>/dev/null; }

# Stop process groups: SIGTERM, wait, SIGKILL.
end() {
  local group deadline=$((SECONDS + STOP_S))
  for group in "$@"; do kill -TERM -- "-$group" 2>/dev/null || true; done
  for group in "$@"; do
    while is_up "$group" && ((SECONDS < deadline)); do sleep 0.2; done
    kill -KILL -- "-$group" 2>/dev/null || true
  done
}

stop() {
  local code=$? each
  trap '' INT TERM
  trap - EXIT
  echo "stopping"
  # In reverse order of their start: the run, the nodes, the head.
  for ((each = ${#groups[@]} - 1; each >= 0; each--)); do end "${groups[each]}"; done
  wait || true
  rm -rf "$folder"
  exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

give_up() {
  echo "cluster/local.sh: $1" >&2
  exit 1
}

read -r port dashboard client agent_1 agent_2 agent_3 < <(python - "$folder/token" <<'PYTHON'
import os
import secrets
import socket
import sys

with os.fdopen(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
    file.write(secrets.token_hex(32))
probes = [socket.socket() for _ in range(6)]
for probe in probes:
    probe.bind(("127.0.0.1", 0))
print(*(probe.getsockname()[1] for probe in probes))
PYTHON
)

# start_node NAME OPTIONS...
start_node() {
  local name="$1" deadline=$((SECONDS + START_S))
  shift
  ray start --block --node-name="$name" --num-cpus=1 --num-gpus=0 \
    --object-store-memory=100000000 \
    --min-worker-port=0 --max-worker-port=0 "$@" >"$folder/$name.log" 2>&1 &
  groups+=("$!")
  until grep -qs "Ray runtime started" "$folder/$name.log"; do
    if ! is_up "${groups[-1]}"; then
      cat "$folder/$name.log" >&2
      give_up "$name has exited: its log is above"
    fi
    if ((SECONDS > deadline)); then give_up "$name did not start within $START_S s"; fi
    sleep 0.5
  done
  echo "node $name is up"
}

start_node head --head --port="$port" --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 \
  --dashboard-port="$dashboard" --ray-client-server-port="$client" \
  --dashboard-agent-listen-port="$agent_1" --temp-dir="$folder/ray"
# Further nodes refuse that setting, and take the address from which they reach the head: by 0.0.0.0,
# which is this machine too and which Ray leaves alone, that is 127.0.0.1.
RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1 start_node node-1 --address="0.0.0.0:$port" \
  --dashboard-agent-listen-port="$agent_2"
RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1 start_node node-2 --address="0.0.0.0:$port" \
  --dashboard-agent-listen-port="$agent_3"
echo "dashboard http://127.0.0.1:$dashboard (its token: $(cat "$folder/token"))"

# In the background with wait, so that a signal is handled immediately.
maml-ray train deploy.yaml --address "127.0.0.1:$port" \
  --set run.iterations=5 --set meta_batch.tasks=6 \
  --set cluster.min_rollout_actors=3 --set cluster.start_timeout_s="$START_S" \
  --set evaluation.video=false "$@" &
groups+=("$!")
wait "${groups[-1]}"

python - "http://127.0.0.1:$dashboard" <<'PYTHON'
import sys

from ray.util.state import list_actors, list_nodes

names = {node.node_id: node.node_name for node in list_nodes(sys.argv[1])}
places = {
    actor.name: names[actor.node_id]
    for actor in list_actors(sys.argv[1])
    if actor.name == "learner" or actor.name.startswith("rollout-")
}
for actor, node in sorted(places.items()):
    print(f"{actor:12} was on {node}")
where = sorted(set(places.values()))
print(f"actors were on {len(where)} nodes: {', '.join(where)}")
sys.exit(len(where) < 3)
PYTHON
