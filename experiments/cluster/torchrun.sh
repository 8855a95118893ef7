#!/usr/bin/env bash
# Train on several machines by torchrun: start this on each of them, with the same settings but NODE.
#
#   NODES=2 NODE=0 HEAD=host0 bash experiments/cluster/torchrun.sh NAME FLAG...     on host0
#   NODES=2 NODE=1 HEAD=host0 bash experiments/cluster/torchrun.sh NAME FLAG...     on the other
#
# NAME is the name of the run; the flags are those of `neurotwin train`. If a process or a machine is lost, all end; the
# same commands then go on from the last checkpoint, on as many machines as there are. RESTARTS=3 lets torchrun do so by
# itself where only processes were lost. SIGTERM saves and ends the run.
set -euo pipefail

NODES=${NODES:-1}           # machines
NODE=${NODE:-0}             # number of this one; 0 is HEAD
HEAD=${HEAD:-127.0.0.1}     # address of machine 0
PORT=${PORT:-29500}         # a free port there
PROCESSES=${PROCESSES:-gpu} # on each machine; gpu: one for each GPU
RESTARTS=${RESTARTS:-0}
[ $# -ge 1 ] || { echo "usage: bash experiments/cluster/torchrun.sh NAME FLAG..." >&2; exit 2; }
name=$1
shift

exec torchrun --nnodes "$NODES" --node_rank "$NODE" --master_addr "$HEAD" --master_port "$PORT" \
    --nproc_per_node "$PROCESSES" --max_restarts "$RESTARTS" --module neurotwin \
    train --experiment_name "$name" --resume auto "$@"
