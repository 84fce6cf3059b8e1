#!/bin/sh
# The report in this folder: every set of photographs in $KBC_DATA/data, PF-WILLOW also shrunk 2, 3 and 5 times, with
# the weightless matcher and ResNet-18 nearest neighbour; KBC off, by the paper's rule, best, and with the true window;
# and the bare matchers at 1.5 and 2 times their input size. Interrupt it and run it again: it goes on. Further matchers:
# --matcher kbcnet.
#
#   KBC_DATA=/path/to/data-and-weights examples/results/make_report.sh [further options of kbc eval]
set -eu
: "${KBC_DATA:?must name the folder that holds data/ and weights/}"
here=$(cd "$(dirname "$0")" && pwd)
out=${KBC_OUT:-runs/report}
kbc eval --suite "$KBC_DATA/data" \
    --matcher hog --matcher resnet18 \
    --option "resnet18.weights=$KBC_DATA/weights/resnet18-imagenet-to-layer3.pth" \
    --size 256,384,512 --figures charts --out "$out" "$@"
for name in report.md report.json bars.png size.png; do cp "$out/$name" "$here/$name"; done
