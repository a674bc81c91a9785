#!/bin/sh
# Times all models on an Android phone by LiteRT's benchmark_model, through adb.
#
# benchmark_model for Android (arm64) is on https://ai.google.dev/edge/litert/models/measurement; give its path in
# BENCHMARK. THREADS and PASSES may be set too; ARGS goes to benchmark_model (--use_gpu=true).
# Interrupted, the same command goes on: groups whose logs are all there are left out.
. ./each-model.sh
BENCHMARK=${BENCHMARK:-./benchmark_model}
there=/data/local/tmp/pocketformer

RUNTIME=litert DEVICE=$(adb shell getprop ro.product.model < /dev/null)
OS="Android $(adb shell getprop ro.build.version.release < /dev/null)"
case $ARGS in
    *--use_gpu=true*) ON=gpu PRECISION=float16 ;; # the GPU delegate computes in half precision unless it may not
    *--xnnpack_force_fp16=true*) PRECISION=float16 ;;
esac
case $ARGS in *--gpu_precision_loss_allowed=false*) PRECISION= ;; esac
settings

adb shell mkdir -p $there < /dev/null
adb push --sync models $there/
adb push --sync "$BENCHMARK" $there/benchmark_model
adb shell chmod +x $there/benchmark_model < /dev/null

run() {  # model, log
    adb shell "$there/benchmark_model --graph=$there/models/$1.tflite --num_threads=$THREADS --warmup_runs=5 \
        --num_runs=30 --min_secs=0.2 $ARGS" > "$2" 2>&1
}

each_model tflite
