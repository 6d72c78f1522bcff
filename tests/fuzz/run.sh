#!/usr/bin/env bash
# Fuzzes a target for so many seconds: `run.sh TARGET [SECONDS]`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
target=${1:?a target: trace_reader or policy_loader}
seconds=${2:-600}
# Coverage is a flag of the nightly compiler; the stable one has it, too.
export RUSTC_BOOTSTRAP=1
corpus=corpus/$target
features=()
mkdir -p "$corpus"
case $target in
  trace_reader)
    cp ../../agent/trace/tests/golden/*.trace "$corpus"
    for trace in ../../models/zoo/*/*.trace; do
      head -c 4000 "$trace" > "$corpus/$(echo "$trace" | tr '/.' '__')"
    done
    most=65536
    ;;
  policy_loader)
    cp ../../plugins/prebuilt/*.wasm ../../agent/policy/tests/frozen/*.wasm "$corpus"
    most=65536
    features=(--features loader)
    ;;
  *)
    echo "no target $target: trace_reader or policy_loader" >&2
    exit 64
    ;;
esac
cargo fuzz run --fuzz-dir . --sanitizer none "${features[@]}" "$target" -- -max_total_time="$seconds" -max_len="$most" -rss_limit_mb=4096 -timeout=60
