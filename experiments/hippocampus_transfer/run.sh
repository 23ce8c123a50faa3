#!/bin/sh
# Train and score everything: a source, then three ways to learn from 5 cases, for three choices of the 5 cases.
set -e
here=$(dirname "$0")
DMX=${DMX:-dmx}
runs=hippocampus-transfer
$DMX train "$here/source.yaml" --name source
for n in 1 2 3; do
    common="--set cohort.manifest=target_$n.csv --set seed=$n"
    from="--set transfer.sources.source.run=$runs/source --set transfer.sources.source.checkpoint=last"
    $DMX train "$here/target.yaml" --name scratch-$n $common
    $DMX train "$here/target.yaml" --name transfer-$n $common $from
    $DMX train "$here/target.yaml" --name frozen-pathways-$n $common $from --freeze normal=all
    for way in scratch transfer frozen-pathways; do
        $DMX evaluate --from-run $runs/$way-$n --checkpoint last
    done
done
