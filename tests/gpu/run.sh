#!/bin/sh
# Checks every provider of ONNX Runtime for NVIDIA's GPUs against our own kernels and the reference vectors of the
# shipped packages, image by image and in batches of eight, and times both beside our own kernels. Where a provider keeps
# what it built, a second start must be faster.
#
#   tests/gpu/run.sh [WHEELS]
#
# WHEELS: a folder with the wheels of requirements.txt and what they need; without it pip fetches them. TensorRT itself
# is in no wheel: its provider is tried where the linker finds libnvinfer.
#
# ORT_DYLIB_PATH  a library that is installed already, or its folder: nothing is installed then, and what it needs
#                 (CUDA, cuDNN, TensorRT for RTX) is looked for in LD_LIBRARY_PATH alone
# PYTHON          a Python that has what is in requirements.txt: nothing is installed then
# PROVIDERS       what has to run, in place of cuda, tensorrt where it is found, and tensorrt-rtx where it supports the
#                 GPU: compute capability 8.6, 8.9, 12.0 or newer, which leaves out the A100, H100 and H200
# PACKAGES        in place of all of models/zoo
# OFFRAMP         a program that is built already
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)

if [ -z "${ORT_DYLIB_PATH:-}" ]; then
    if [ -z "${PYTHON:-}" ]; then
        venv=${XDG_CACHE_HOME:-$HOME/.cache}/offramp/gpu-python
        PYTHON=$venv/bin/python
        if ! cmp -s "$root/tests/gpu/requirements.txt" "$venv/done"; then
            python3 -m venv --clear "$venv"
            if [ $# -gt 0 ]; then
                "$PYTHON" -m pip install --quiet --no-index --find-links "$1" -r "$root/tests/gpu/requirements.txt"
            else
                "$PYTHON" -m pip install --quiet -r "$root/tests/gpu/requirements.txt"
            fi
            cp "$root/tests/gpu/requirements.txt" "$venv/done"
        fi
    fi
    packages=$("$PYTHON" -c 'import importlib.util as u; print(u.find_spec("onnxruntime").submodule_search_locations[0])')
    export ORT_DYLIB_PATH="$packages/capi"
    packages=$(dirname "$packages")
    rtx=$packages/onnxruntime_ep_nv_tensorrt_rtx
    # The wheel makes the names that its libraries look for when it is imported; it may fail to load them afterwards.
    "$PYTHON" -c 'import onnxruntime_ep_nv_tensorrt_rtx' || ls "$rtx"/libtensorrt_rtx.so
    libraries=$(find "$packages/nvidia" -type d -name lib | tr '\n' ':')
    export LD_LIBRARY_PATH="$libraries$rtx${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

if [ -z "${OFFRAMP:-}" ]; then
    (cd "$root" && cargo build --release --workspace --bins)
    OFFRAMP=${CARGO_TARGET_DIR:-$root/target}/release/offramp
fi

# Whether the linker finds TensorRT.
has_tensorrt() {
    found=$(
        IFS=:
        for folder in ${LD_LIBRARY_PATH:-}; do ls "$folder"/libnvinfer.so.* 2>/dev/null || :; done
        { ldconfig -p || /sbin/ldconfig -p || :; } 2>/dev/null | grep -F libnvinfer.so. || :
    )
    [ -n "$found" ]
}
if [ -z "${PROVIDERS:-}" ]; then
    PROVIDERS=cuda
    case $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1) in
        8.6 | 8.9 | 1[2-9].* | [2-9][0-9].*) PROVIDERS="$PROVIDERS tensorrt-rtx" ;;
        *) echo "tensorrt-rtx is left out: it supports compute capabilities 8.6, 8.9, and 12.0 or newer" ;;
    esac
    if has_tensorrt; then
        PROVIDERS="$PROVIDERS tensorrt"
    else
        echo "tensorrt is left out: libnvinfer is neither in LD_LIBRARY_PATH nor known to ldconfig"
    fi
fi

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || echo "nvidia-smi tells of no GPU"
"$OFFRAMP" doctor
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=

# Checks $package on $provider, and gives the seconds until all stages were offloaded.
check() {
    # shellcheck disable=SC2086
    if XDG_CACHE_HOME="$scratch/cache" "$OFFRAMP" model check "$package" --engine onnxruntime --provider "$provider" \
        $half --batch 8 --time >"$scratch/told"; then
        cat "$scratch/told"
    else
        cat "$scratch/told"
        failed="$failed $(basename "$package")/$provider$half"
    fi
    seconds=$(sed -n 's/.*offloaded and held against our own kernels in \([0-9.]*\) s.*/\1/p' "$scratch/told")
}

for package in ${PACKAGES:-"$root"/models/zoo/*/}; do
    for provider in $PROVIDERS; do
        for half in '' --half; do
            # TensorRT for RTX computes as the graph says.
            [ "$provider$half" != tensorrt-rtx--half ] || continue
            echo
            echo "== $(basename "$package") on $provider $half"
            # What was kept of an earlier run would make the first start a second one.
            rm -rf "$scratch/cache"
            check
            case $provider in tensorrt*) ;; *) continue ;; esac
            first=${seconds:-0}
            check
            if ! awk "BEGIN { exit !(${seconds:-0} > 0 && ${seconds:-0} < $first) }"; then
                echo "the second start took ${seconds:-?} s, the first $first s: what was built is not used again" >&2
                failed="$failed $(basename "$package")/$provider$half/second-start"
            fi
        done
    done
done
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
