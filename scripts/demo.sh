#!/usr/bin/env bash
# The main job on a built-in network, offline: decompose, fine-tune, compare. Ends in a table and in plain words.
# Its images are handwritten digits on photographs: real ones, which ship inside scikit-learn.
source "$(dirname "$0")/setup.sh"
out="${1:-build/demo}"
echo "1. Replace layers by chains with a quarter of the multiply-accumulates in all."
(set -x; cnncompress decompose photodigits_vgg --data photodigits --budget macs=0.25 --memory-format channels_last \
    --method spatial-svd+channel-svd+svd --allow-slower --calibration-images 300 --out "$out/decomposed" --force)
echo
echo "2. Train it on the training images and the original's answers; the validation images choose the epoch."
(set -x; cnncompress finetune "$out/decomposed" --data photodigits --epochs 3 --optimizer adamw --lr 0.001 \
    --distill logits --out "$out/finetuned" --force)
echo
echo "3. Compare with the original on the test images, and the time they take here."
(set -x; python scripts/demo_report.py photodigits_vgg "$out/decomposed" "$out/finetuned" photodigits:test)
