#!/bin/sh
# Times all models on an Android phone by ExecuTorch's executor_runner, through adb.
#
# ExecuTorch's devtools/scripts/benchmark_android.sh builds executor_runner (with XNNPACK); give its path in RUNNER.
# It logs to Android's log, from which the times are taken. THREADS and PASSES may be set too.
# Interrupted, the same command goes on: models with a log are left out.
set -eu
RUNNER=${RUNNER:-./executor_runner} THREADS=${THREADS:-1} PASSES=${PASSES:-2}
there=/data/local/tmp/pocketformer

adb shell mkdir -p $there
adb push --sync models $there/
adb push --sync "$RUNNER" $there/executor_runner
adb shell chmod +x $there/executor_runner

run() {  # model, log
    [ -s "$2" ] && return
    adb logcat -c
    adb shell "$there/executor_runner --model_path=$there/models/$1.pte --cpu_threads=$THREADS --num_executions=30 \
        --print_output=none" < /dev/null > "$2.part" 2>&1
    adb logcat -d -s ExecuTorch:I >> "$2.part"
    mv "$2.part" "$2"
}

mkdir -p logs
printf '{"manifest": "@@manifest", "device": "%s", "os": "Android %s", "runtime": "executorch", "threads": %s}\n' \
    "$(adb shell getprop ro.product.model | tr -d '\r')" \
    "$(adb shell getprop ro.build.version.release | tr -d '\r')" "$THREADS" > logs/about.json
pass=1
while [ $pass -le $PASSES ]; do
    count=0
    for file in $(ls models | grep '\.pte$' | grep -v '^reference' | sort -t _ -k 2 | awk "NR % $PASSES == $pass - 1"; \
                  ls models | grep '\.pte$' | grep -v '^reference' | sort -t _ -k 2 | awk "NR % $PASSES != $pass - 1"); do
        group=logs/pass${pass}_$(printf %03d $((count / 8)))
        mkdir -p "$group"
        run reference "$group/reference.txt"
        run "${file%.pte}" "$group/${file%.pte}.txt"
        count=$((count + 1))
    done
    pass=$((pass + 1))
done
