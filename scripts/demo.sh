#!/usr/bin/env bash
# The main job on the built-in network and its handwritten digits, offline: decompose, finetune, report.
source "$(dirname "$0")/setup.sh"
out="${1:-build/demo}"
set -x
cnncompress decompose digits_vgg --data digits --rank 0.25 --skip classifier.6 --out "$out" --force
cnncompress finetune "$out" --data digits --epochs 8
cnncompress report "$out" --latency
