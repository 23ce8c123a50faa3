#!/bin/sh
# Train and score everything: a segmentation, then three ways to a classifier, with few and with all labels, three seeds.
set -e
here=$(dirname "$0")
DMX=${DMX:-dmx}
runs=volume-classifier
source="--set transfer.sources.segmentation.run=$runs/segmentation --set transfer.sources.segmentation.checkpoint=last"
$DMX train "$here/segmentation.yaml" --name segmentation
$DMX evaluate --from-run $runs/segmentation --checkpoint last --name scored-segmentation
$DMX predict --from-run $runs/segmentation --checkpoint last "$here/segmented.csv" --split evaluation -o "$here/predictions" --name counted
for seed in 0 1 2; do
    for labels in few all; do
        manifest=all.csv
        [ $labels = all ] || manifest=few_$seed.csv
        common="--set cohort.manifest=$manifest --set seed=$seed"
        $DMX train "$here/classifier.yaml" --name scratch-$labels-$seed $common
        $DMX train "$here/classifier.yaml" --name transfer-$labels-$seed $common $source
        $DMX train "$here/frozen.yaml" --name frozen-$labels-$seed $common
        for way in scratch transfer frozen; do
            $DMX evaluate --from-run $runs/$way-$labels-$seed --checkpoint last --name scored-$way-$labels-$seed
        done
    done
done
