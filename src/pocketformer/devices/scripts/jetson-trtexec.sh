#!/bin/sh
# Times all models on a Jetson (or any machine with TensorRT) by trtexec, which builds an engine of each first.
#
# First: sudo nvpmodel -m 0; sudo jetson_clocks. TRTEXEC, PASSES and ARGS (--fp16) may be set.
# Interrupted, the same command goes on: engines and logs that are there are left out.
set -eu
TRTEXEC=${TRTEXEC:-/usr/src/tensorrt/bin/trtexec} PASSES=${PASSES:-2} ARGS=${ARGS:-}

mkdir -p engines logs
name=$( (tr -d '\0' < /proc/device-tree/model) 2> /dev/null || hostname)
printf '{"manifest": "@@manifest", "device": "%s", "os": "%s", "runtime": "tensorrt", "on": "cuda"}\n' \
    "$name" "$(uname -sr)" > logs/about.json

run() {  # model, log
    [ -s "$2" ] && return
    if [ ! -s "engines/$1.engine" ]; then
        "$TRTEXEC" --onnx="models/$1.onnx" --saveEngine="engines/$1.part" --skipInference \
            --timingCacheFile=engines/timing.cache $ARGS > "engines/$1.txt" 2>&1
        mv "engines/$1.part" "engines/$1.engine"
    fi
    "$TRTEXEC" --loadEngine="engines/$1.engine" --warmUp=200 --duration=1 --iterations=30 --useSpinWait \
        $ARGS > "$2.part" 2>&1
    mv "$2.part" "$2"
}

pass=1
while [ $pass -le $PASSES ]; do
    count=0
    for file in $(ls models | grep '\.onnx$' | grep -v '^reference' | sort -t _ -k 2 | awk "NR % $PASSES == $pass - 1"; \
                  ls models | grep '\.onnx$' | grep -v '^reference' | sort -t _ -k 2 | awk "NR % $PASSES != $pass - 1"); do
        group=logs/pass${pass}_$(printf %03d $((count / 8)))
        mkdir -p "$group"
        run reference "$group/reference.txt"
        run "${file%.onnx}" "$group/${file%.onnx}.txt"
        count=$((count + 1))
    done
    pass=$((pass + 1))
done
