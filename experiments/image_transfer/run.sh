#!/usr/bin/env bash
# Three seeds, two sets of images, efficientnet-lite0 in four ways; then an AlexNet. Run it in an empty folder:
#   bash run.sh FOLDER_OF_EXPERIMENT FOLDER_OF_HIPPOCAMPUS
set -euo pipefail
here=$(realpath "$1")
scans=$(realpath "$2")
mkdir -p images
[ -d images/digits ] || python "$here/make_images.py" digits images/digits --size 72 --count 700
[ -d images/slices ] || python "$here/make_images.py" hippocampus images/slices --scans "$scans" --size 72 --slices 2

sets() { # what a training on a set of images has in common: sets IMAGES SEED
  common=(--set "seed=$2" --set "name=$1" --set "stimuli.source=images/$1_training.stim.csv"
    --set "stimuli.validation=images/$1_validation.stim.csv" --set "stimuli.evaluation=images/$1_evaluation.stim.csv")
}

for seed in 0 1 2; do
  for images in digits slices; do
    sets $images $seed
    dmx train "$here/finetune.yaml" "${common[@]}" --name "finetuned-$seed"
    dmx train "$here/finetune.yaml" "${common[@]}" --set transfer=null --name "scratch-$seed"
    dmx train "$here/fixed_features.yaml" "${common[@]}" --name "document-$seed"
    # The document's rate of 1e-5 is slow for a head of 1280 features; 1e-3 shows what the features can.
    dmx train "$here/fixed_features.yaml" "${common[@]}" --set optimizer.lr=0.001 --name "fixed-$seed"
    for way in scratch finetuned document fixed; do
      dmx evaluate --from-run "$images/$way-$seed" --name "scored-$way-$seed"
    done
  done
done

# An AlexNet that has learned digits, and what it is worth for slices.
dmx train "$here/alexnet.yaml" --set name=alexnet --name digits
for seed in 0 1 2; do
  sets slices $seed
  common+=(--set name=alexnet)
  dmx train "$here/conv5.yaml" "${common[@]}" --set transfer=null --set freeze.layers=[] --name "scratch-$seed"
  dmx train "$here/conv5.yaml" "${common[@]}" --set freeze.layers=[] --name "finetuned-$seed"
  dmx train "$here/conv5.yaml" "${common[@]}" --name "conv5-$seed"
  dmx train "$here/conv5.yaml" "${common[@]}" --set freeze.layers=all_but_head --set training.epochs=50 \
    --set optimizer.lr=0.00001 --set schedule.name=constant --name "document-$seed"
  for way in scratch finetuned conv5 document; do
    dmx evaluate --from-run "alexnet/$way-$seed" --name "scored-$way-$seed"
  done
done
python "$here/summarize.py" digits slices alexnet
