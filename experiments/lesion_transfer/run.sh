#!/bin/sh
# A source on strokes (FLAIR, DWI; 2 classes), then four ways to learn tumors (T1, T1c, T2, FLAIR; 4 classes) from 6 cases.
set -e
here=$(dirname "$0")
DMX=${DMX:-dmx}
runs=lesion-transfer
[ -e demo/cohort_a/manifest.csv ] || $DMX cohort make A -o demo/cohort_a --processes 2
if [ ! -e demo/cohort_b_30/few.csv ]; then
    $DMX cohort make B -o demo/cohort_b_30 --cases 30 --processes 2
    $DMX cohort split demo/cohort_b_30/manifest.csv -o demo/cohort_b_30/few.csv --training 0.2 --evaluation 0.8
fi
$DMX train experiments/demo/stroke.yaml --name source
target="$here/target.yaml --set cohort.manifest=../../demo/cohort_b_30/few.csv"
from="--set transfer.sources.stroke.run=demo/source"
$DMX train $target --name scratch
$DMX train $target --name transfer $from
$DMX train $target --name frozen-pathways $from --freeze normal=2-4 --freeze subsampled=2-5
$DMX train $target --name only-head $from --freeze normal=all --freeze fc=1
for way in scratch transfer frozen-pathways only-head; do
    $DMX evaluate --from-run $runs/$way
done
$DMX runs compare $runs/scratch $runs/transfer $runs/frozen-pathways $runs/only-head
$DMX runs lineage demo/source
