# What the scripts beside it share: all models in turn, and what their logs were measured with. Not run by itself.
#
# A script reads this, says RUNTIME, DEVICE and OS, may say ON and PRECISION, and calls `settings`; then it defines
# `run MODEL LOG` and calls `each_model SUFFIX`.
#
# A group of eight models and the reference is one sitting: interrupted in the middle, it is measured again as a whole.
set -eu
LC_ALL=C
export LC_ALL
PASSES=${PASSES:-2} THREADS=${THREADS:-1} ARGS=${ARGS:-} ON='' PRECISION=''

field() {  # name, value; nothing without a value
    [ -z "$2" ] || printf ', "%s": "%s"' "$1" "$(printf %s "$2" | tr -d '\r' | sed 's/["\\]/\\&/g')"
}

settings() {  # writes logs/about.json, with the day it began; logs of other settings are neither used nor added to
    about=$(printf '{"manifest": "@@manifest", "threads": %s, "passes": %s' "$THREADS" "$PASSES"
        field args "$ARGS"; field device "$DEVICE"; field os "$OS"; field runtime "$RUNTIME"
        field on "$ON"; field precision "$PRECISION"; echo '}')
    mkdir -p logs
    if [ -e logs/about.json ]; then
        before=$(sed 's/, "date": "[^"]*"//' logs/about.json)
        [ "$before" != "$about" ] || return 0
        echo "logs/ was measured otherwise ($before, now $about): move it away first" >&2
        exit 1
    fi
    printf '%s, "date": "%s"}\n' "${about%\}}" "$(date +%Y-%m-%d)" > logs/about.json
}

in_order() {  # suffix: names of all models but the reference, in each pass others first
    all=$(ls models | grep "\\.$1\$" | grep -v '^reference\.' | sed "s/\\.$1\$//" | sort -t _ -k 2)
    printf '%s\n' "$all" | awk "NR % $PASSES == $pass - 1"
    printf '%s\n' "$all" | awk "NR % $PASSES != $pass - 1"
}

is_whole() {  # group's folder, models
    folder=$1
    shift
    for name in "$@"; do
        [ -s "$folder/$name.txt" ] || return 1
    done
}

beat() {  # model; a tool may take minutes to build one
    while sleep 10 > /dev/null 2>&1; do echo "    still at $1"; done
}

watched() {  # model, log
    beat "$1" &
    beating=$!
    status=0
    run "$1" "$2" < /dev/null || status=$?
    kill $beating
    wait $beating 2> /dev/null || true
    return $status
}

each_model() {  # suffix
    pass=1 models=$(in_order "$1" | wc -l)
    echo "$((models)) models in $PASSES passes, in groups of eight and the reference; interrupted, it goes on"
    while [ "$pass" -le "$PASSES" ]; do
        in_order "$1" | xargs -n 8 | {
            count=0 begun=0
            while read -r names; do
                group=logs/pass${pass}_$(printf %03d $count)
                count=$((count + 1)) first=$begun begun=$((begun + $(echo $names | wc -w)))
                is_whole "$group" reference $names && continue
                rm -rf "$group"
                mkdir "$group"
                for name in reference $names; do
                    [ "$name" = reference ] || first=$((first + 1))
                    echo "pass $pass of $PASSES, $first of $((models)): $name"
                    if ! watched "$name" "$group/$name.part"; then
                        echo "$name failed: $(tail -n 1 "$group/$name.part")" >&2
                        exit 1
                    fi
                    mv "$group/$name.part" "$group/$name.txt"
                done
            done
        }
        pass=$((pass + 1))
    done
    echo "done: copy logs/ back (it is all that is needed), then: pocketformer profile --import logs --out table.json"
}
