#!/bin/bash
# The same without Slurm: on each of NODES machines, with the first one's address,
#   NODES=2 NODE=0 FIRST=node-a GPUS=4 bash torchrun.sh experiment=cifar10_wrn28_10 dataset.source.root=/shared/cifar10
set -eu
exec torchrun --nnodes="$NODES" --node-rank="$NODE" --nproc-per-node="$GPUS" \
  --master-addr="$FIRST" --master-port="${PORT:-29500}" \
  train.py trainer=ddp trainer.devices="$GPUS" trainer.num_nodes="$NODES" resume.from=auto "$@"
