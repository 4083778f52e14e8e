#!/usr/bin/env bash
# Checks expertune on an accelerator and writes one report to paste: `bash scripts/gpu_checkup.sh`.
#
# It runs, on the device named by DEVICE (default cuda:0): parity with transformers, the budgets of the
# hot path, the Triton programs against plain torch, the tests that need an accelerator, the same under
# compute-sanitizer where that is installed, captured beside eager decoding and sequences together beside
# one after another (the tests compare their logits), a study of the demo model and one of a twin with wider experts, each of at most STUDY_TIME
# (default 10m). Everything it writes lies in FOLDER (default ./gpu-checkup); an earlier report there is
# replaced. Takes about half an hour. A step that fails does not stop the others; the exit code is the
# number of steps that failed.
#
# DEVICE=cpu runs the same steps without an accelerator, except the tests that need one.
set -u
cd "$(dirname "$0")/.."

DEVICE=${DEVICE:-cuda:0}
STUDY_TIME=${STUDY_TIME:-10m}
FOLDER=$(mkdir -p "${FOLDER:-gpu-checkup}" && cd "${FOLDER:-gpu-checkup}" && pwd)
PYTHON=${PYTHON:-$(pwd)/.venv/bin/python}
REPORT=$FOLDER/report.md
export XDG_DATA_HOME=$FOLDER/data XDG_CACHE_HOME=$FOLDER/cache
failed=0

# step NAME COMMAND...: runs it, keeps its whole output in a log, and its end in the report
step() {
  local name=$1 log began code
  shift
  log=$FOLDER/${name// /-}.log
  echo "== $name: $*"
  began=$SECONDS
  "$@" >"$log" 2>&1
  code=$?
  [ "$code" -eq 0 ] || failed=$((failed + 1))
  {
    echo "## $name: $([ "$code" -eq 0 ] && echo passed || echo "FAILED with $code") in $((SECONDS - began)) s"
    echo
    echo "\`$*\`"
    echo
    echo '```'
    tail -n 40 "$log"
    echo '```'
    echo
  } >>"$REPORT"
}

skip() {
  echo "== $1: left out, $2"
  printf '## %s: left out\n\n%s\n\n' "$1" "$2" >>"$REPORT"
}

{
  echo "# expertune on $DEVICE"
  echo
  echo "$(date -u +%Y-%m-%dT%H:%M:%SZ), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  echo
} >"$REPORT"

tune() { "$PYTHON" -m tuner "$@"; }
if command -v nvidia-smi >/dev/null; then step "card" nvidia-smi; else skip "card" "nvidia-smi is not here"; fi
step "machine and parity" tune doctor --model demo --device "$DEVICE"

step "budgets" "$PYTHON" -m pytest tests/engine/run/test_grouped_layers.py tests/engine/run/test_device_time.py \
  tests/engine/device/test_races.py
if [ "$DEVICE" = cpu ]; then
  skip "tests" "they need an accelerator"
else
  step "programs" "$PYTHON" -m pytest -m triton tests/engine/experts/kernels/test_grouped.py \
    tests/engine/experts/kernels/test_triton_int4.py
  step "tests" "$PYTHON" -m pytest -m gpu tests
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
      step "sanitizer $tool" compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$PYTHON" -m pytest -m gpu tests
    done
  else
    skip "sanitizer" "compute-sanitizer is not here: it comes with the CUDA toolkit"
  fi
fi

step "profile" tune profile --model demo --device "$DEVICE" --vram 1GB
step "plan" tune plan --model demo --device "$DEVICE" --vram 1GB
step "bench" tune bench --model demo --device "$DEVICE" --vram 1GB --policies on_demand,lru,monde \
  --output-tokens 32
step "captured decoding" tune bench --model demo --device "$DEVICE" --vram 1GB \
  --set compute.capture=false,true --output-tokens 128
step "demo study" tune --model demo --device "$DEVICE" --vram 1GB --timeout "$STUDY_TIME" \
  --study gpu-demo --output "$FOLDER/demo.yaml"
step "demo result" tune show gpu-demo
step "demo verify" tune verify "$FOLDER/demo.yaml"

twin=$FOLDER/twin
[ -e "$twin/config.json" ] ||
  step "make twin" "$PYTHON" scripts/widen_model.py studies/demo/model "$twin" --hidden 8 --expert 8
step "sequences together" "$PYTHON" -m experiments.run time_together "$twin" --device "$DEVICE" \
  --counts 4,16 --non-expert-bits 16
step "twin study" tune --model "$twin" --device "$DEVICE" --vram 2GB --timeout "$STUDY_TIME" \
  --study gpu-twin --output "$FOLDER/twin.yaml"
step "twin result" tune show gpu-twin

echo "$failed steps failed; the report is $REPORT"
exit "$failed"
