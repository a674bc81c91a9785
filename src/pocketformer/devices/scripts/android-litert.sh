#!/bin/sh
# Times all models on an Android phone by LiteRT's benchmark_model, through adb.
#
# benchmark_model for Android (arm64) is on https://ai.google.dev/edge/litert/models/measurement; give its path in
# BENCHMARK. THREADS and PASSES may be set too; ARGS goes to benchmark_model (--use_gpu=true).
# Interrupted, the same command goes on: models with a log are left out.
set -eu
BENCHMARK=${BENCHMARK:-./benchmark_model} THREADS=${THREADS:-1} PASSES=${PASSES:-2} ARGS=${ARGS:-}
there=/data/local/tmp/pocketformer

adb shell mkdir -p $there
adb push --sync models $there/
adb push --sync "$BENCHMARK" $there/benchmark_model
adb shell chmod +x $there/benchmark_model

run() {  # model, log
    [ -s "$2" ] && return
    adb shell "$there/benchmark_model --graph=$there/models/$1.tflite --num_threads=$THREADS --warmup_runs=5 \
        --num_runs=30 --min_secs=0.2 $ARGS" < /dev/null > "$2.part" 2>&1
    mv "$2.part" "$2"
}

mkdir -p logs
printf '{"manifest": "@@manifest", "device": "%s", "os": "Android %s", "runtime": "litert", "threads": %s}\n' \
    "$(adb shell getprop ro.product.model | tr -d '\r')" \
    "$(adb shell getprop ro.build.version.release | tr -d '\r')" "$THREADS" > logs/about.json
pass=1
while [ $pass -le $PASSES ]; do
    count=0
    for file in $(ls models | grep '\.tflite$' | grep -v '^reference' | sort -t _ -k 2 | awk "NR % $PASSES == $pass - 1"; \
                  ls models | grep '\.tflite$' | grep -v '^reference' | sort -t _ -k 2 | awk "NR % $PASSES != $pass - 1"); do
        group=logs/pass${pass}_$(printf %03d $((count / 8)))
        mkdir -p "$group"
        run reference "$group/reference.txt"
        run "${file%.tflite}" "$group/${file%.tflite}.txt"
        count=$((count + 1))
    done
    pass=$((pass + 1))
done
