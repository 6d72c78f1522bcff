#!/bin/sh
# Checks every provider of ONNX Runtime for NVIDIA's GPUs against our own kernels and the reference vectors of the
# shipped packages, and times it beside them.
#
#   tests/gpu/run.sh [WHEELS]
#
# WHEELS: a folder with the wheels of requirements.txt and what they need; without it pip fetches them. TensorRT itself
# is in no wheel: its provider is tried where LD_LIBRARY_PATH has libnvinfer.
#
# PROVIDERS   what has to run, in place of "cuda tensorrt-rtx", and tensorrt where that is
# PACKAGES    in place of all of models/zoo
# OFFRAMP     a program that is built already
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${XDG_CACHE_HOME:-$HOME/.cache}/offramp/gpu-python

if ! cmp -s "$root/tests/gpu/requirements.txt" "$python/done"; then
    python3 -m venv --clear "$python"
    if [ $# -gt 0 ]; then
        "$python/bin/pip" install --quiet --no-index --find-links "$1" -r "$root/tests/gpu/requirements.txt"
    else
        "$python/bin/pip" install --quiet -r "$root/tests/gpu/requirements.txt"
    fi
    cp "$root/tests/gpu/requirements.txt" "$python/done"
fi
packages=$(echo "$python"/lib/python3*/site-packages)
rtx=$packages/onnxruntime_ep_nv_tensorrt_rtx
# The wheel makes the names that its libraries look for when it is imported; it may fail to load them afterwards.
"$python/bin/python" -c 'import onnxruntime_ep_nv_tensorrt_rtx' || ls "$rtx"/libtensorrt_rtx.so
libraries=$(find "$packages/nvidia" -type d -name lib | tr '\n' ':')
export LD_LIBRARY_PATH="$libraries$rtx${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export ORT_DYLIB_PATH="$packages/onnxruntime/capi"

if [ -z "${OFFRAMP:-}" ]; then
    (cd "$root" && cargo build --release --workspace --bins)
    OFFRAMP=${CARGO_TARGET_DIR:-$root/target}/release/offramp
fi
if [ -z "${PROVIDERS:-}" ]; then
    PROVIDERS="cuda tensorrt-rtx"
    if (IFS=:; for folder in $LD_LIBRARY_PATH; do ls "$folder"/libnvinfer.so.*; done) >/dev/null 2>&1; then
        PROVIDERS="$PROVIDERS tensorrt"
    fi
fi

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || echo "nvidia-smi tells of no GPU"
"$OFFRAMP" doctor
failed=
for package in ${PACKAGES:-"$root"/models/zoo/*/}; do
    for provider in $PROVIDERS; do
        for half in '' --half; do
            # TensorRT for RTX computes as the graph says.
            [ "$provider$half" != tensorrt-rtx--half ] || continue
            echo
            echo "== $(basename "$package") on $provider $half"
            # Twice, where the provider keeps what it built: the second start shows what that saves.
            for start in first second; do
                # shellcheck disable=SC2086
                "$OFFRAMP" model check "$package" --engine onnxruntime --provider "$provider" $half --time \
                    || failed="$failed $(basename "$package")/$provider$half"
                [ "$provider" != cuda ] && [ "$start" = first ] || break
            done
        done
    done
done
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
