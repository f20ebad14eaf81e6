#!/usr/bin/env bash
# The main job on the built-in network and its handwritten digits, offline: decompose, finetune, report.
source "$(dirname "$0")/setup.sh"
out="${1:-build/demo}"
set -x
cnncompress decompose digits_vgg --data digits --budget macs=0.15 --out "$out" --force
cnncompress finetune "$out" --data digits --epochs 4 --lr 0.001
cnncompress report "$out" --latency
