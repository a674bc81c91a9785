#!/bin/sh
# Times all models on an Android phone by ExecuTorch's executor_runner, through adb.
#
# ExecuTorch's devtools/scripts/benchmark_android.sh builds executor_runner (with XNNPACK); give its path in RUNNER.
# It logs to Android's log, from which the times are taken. THREADS and PASSES may be set too; ARGS goes to
# executor_runner. Interrupted, the same command goes on: groups whose logs are all there are left out.
. ./each-model.sh
RUNNER=${RUNNER:-./executor_runner}
there=/data/local/tmp/pocketformer

RUNTIME=executorch DEVICE=$(adb shell getprop ro.product.model < /dev/null)
OS="Android $(adb shell getprop ro.build.version.release < /dev/null)"
settings

adb shell mkdir -p $there < /dev/null
adb push --sync models $there/
adb push --sync "$RUNNER" $there/executor_runner
adb shell chmod +x $there/executor_runner < /dev/null

run() {  # model, log
    adb logcat -c &&
        adb shell "$there/executor_runner --model_path=$there/models/$1.pte --cpu_threads=$THREADS \
            --num_executions=30 --print_output=none $ARGS" > "$2" 2>&1 &&
        adb logcat -d -s ExecuTorch:I >> "$2"
}

each_model pte
