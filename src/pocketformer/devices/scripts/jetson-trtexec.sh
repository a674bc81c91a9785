#!/bin/sh
# Times all models on a Jetson (or any machine with TensorRT) by trtexec, which builds an engine of each first.
#
# First: sudo nvpmodel -m 0; sudo jetson_clocks. TRTEXEC, PASSES and ARGS (--fp16) may be set.
# Interrupted, the same command goes on: engines, and groups whose logs are all there, are left out.
. ./each-model.sh
TRTEXEC=${TRTEXEC:-/usr/src/tensorrt/bin/trtexec} THREADS=1

RUNTIME=tensorrt ON=cuda OS=$(uname -sr)
DEVICE=$( (tr -d '\0' < /proc/device-tree/model) 2> /dev/null || hostname)
case " $ARGS " in
    *" --int8 "* | *" --fp8 "* | *" --int4 "* | *" --best "*) PRECISION=mixed ;; # what is fastest of several
    *" --fp16 "*) PRECISION=float16 ;;
    *" --bf16 "*) PRECISION=bfloat16 ;;
esac
TF32=''
[ -n "$PRECISION" ] || TF32=--noTF32 # float32 is float32, as `pocketformer export` builds it
settings
# Engines of other models or arguments are others.
engines=engines/$(printf '%s' "@@manifest $ARGS" | cksum | cut -d ' ' -f 1)
mkdir -p "$engines"

build() {  # model, log
    [ -s "$engines/$1.engine" ] ||
        { "$TRTEXEC" --onnx="models/$1.onnx" --saveEngine="$engines/$1.part" --skipInference $TF32 \
            --timingCacheFile="$engines/timing.cache" $ARGS > "$2" 2>&1 && mv "$engines/$1.part" "$engines/$1.engine"; }
}

run() {  # model, log
    build "$1" "$2" &&
        "$TRTEXEC" --loadEngine="$engines/$1.engine" --warmUp=200 --duration=1 --iterations=30 --useSpinWait \
            $ARGS > "$2" 2>&1
}

each_model onnx
