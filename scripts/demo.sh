#!/usr/bin/env bash
# The main job on a built-in network, offline: decompose, fine-tune, compare. Ends in a table and in plain words.
# Its images are handwritten digits on photographs: real ones, which ship inside scikit-learn.
source "$(dirname "$0")/setup.sh" "" # without an argument of its own it would get those of this script
out="${1:-build/demo}"
SECONDS=0
echo "The network is photodigits_vgg: it reads handwritten digits that are drawn on photographs."
echo "1. Replace its layers by chains with a quarter of the multiply-accumulates (MACs) in all."
(set -x; cnncompress decompose photodigits_vgg --data photodigits --budget macs=0.25 --memory-format channels_last \
    --method spatial-svd+channel-svd+svd --allow-slower --calibration-images 200 --out "$out/decomposed" --force)
echo
echo "2. Train the chains on the training images, mostly on what the original answers to them."
precision=fp32 # half the time in bfloat16, where the processor computes in it
if grep -qsE "avx512_bf16|amx_bf16" /proc/cpuinfo; then precision=bf16; fi
(set -x; cnncompress finetune "$out/decomposed" --data photodigits --workers 1 \
    --optimizer adamw --lr 0.0005 --batch-size 32 --augment none --live-bn --distill logits --precision "$precision" \
    --out "$out/finetuned" --force)
echo
echo "3. Compare with the original on the test images, and the time they take here."
(set -x; python scripts/demo_report.py photodigits_vgg "$out/decomposed" "$out/finetuned" photodigits:test)
echo "All of this took $((SECONDS / 60)) min $((SECONDS % 60)) s."
