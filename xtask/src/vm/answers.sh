#!/bin/sh
# Traces the lab's scenarios and keeps what plsprobe answers, one folder for each: the same in a guest and on its host.
# usage: answers.sh FOLDER SCENARIO/SHAPE...
set -eu

out=$1
shift
instance="answers$$"
# The clients whose flows end at pls-app; the health probe's is watched beside them.
flows=4

fail() {
    echo "answers: $1" >&2
    cat "$to"/*.err "$to/json" >&2 || :
    exit 1
}

# Generous: an emulated machine takes seconds for what takes others milliseconds.
wait_until() {
    what=$1
    shift
    for _ in $(seq 600); do
        "$@" && return
        kill -0 "$json" 2>/dev/null && kill -0 "$text" 2>/dev/null || fail "plsprobe ended before $what"
        sleep 0.1
    done
    fail "waited in vain until $what"
}

both_trace() {
    grep -q 'plsprobe: tracing ' "$to/json.err" && grep -q 'plsprobe: tracing ' "$to/text.err"
}

# The stand-in for Cilium's agent opens its perf buffers for its first listener: before, nobody is notified. A plsprobe
# with a probe of its own on the notifications does not ask it.
notified() {
    grep -q 'monitor socket' "$to/json.err" || return 0
    for owner in /proc/[0-9]*; do
        tr '\0' ' ' 2>/dev/null <"$owner/cmdline" | grep -q "serve --instance $instance " || continue
        ls -l "$owner/fd" 2>/dev/null | grep -q 'perf_event' && return 0
    done
    return 1
}

exit_code() {
    code=0
    wait "$2" || code=$?
    echo "$1 $code" >>"$to/exit"
}

answer() {
    scenario=${1%/*}
    shape=${1#*/}
    to=$out/$scenario.$shape
    mkdir -p "$to"
    plsprobe-lab up --instance "$instance" --scenario "$scenario" --shape "$shape" >"$to/up"
    # The lab says how to trace in its node.
    command=$(sed -n 's/^  \(nsenter .* plsprobe trace .*\)/\1/p' "$to/up")
    command="$command --pls-nat-ip 10.224.0.8 --pls-nat-ip 10.224.0.9 --count $flows --duration 3m"
    $command -o json >"$to/json" 2>"$to/json.err" &
    json=$!
    # An expression that all of it matches: that one is in each program is what is tried.
    $command --filter 'tcp or icmp' >"$to/text" 2>"$to/text.err" &
    text=$!
    wait_until 'it traced' both_trace
    wait_until 'the agent told it of verdicts' notified
    plsprobe-lab traffic --instance "$instance" >"$to/clients"
    exit_code json "$json"
    json=
    exit_code text "$text"
    text=
    netns=${command%% plsprobe *}
    # By its path: busybox' nsenter would run its own tc.
    $netns "$(command -v tc)" filter show dev eth0 ingress >"$to/filters"
    grep -q 'handle 0x1 ' "$to/filters" || fail "the stand-in's program is not at the uplink any more"
    if grep -q plsprobe "$to/filters"; then fail "a program of plsprobe's is still attached"; fi
    plsprobe-lab down --instance "$instance"
}

# Whatever happens, nothing of ours stays, and the answers belong to whoever owns the folder.
leave() {
    kill $json $text 2>/dev/null && wait $json $text || :
    plsprobe-lab down --instance "$instance" >/dev/null
    chown -R "$(stat -c %u "$out")" "$out"
}

json=
text=
mkdir -p "$out"
trap leave EXIT
trap 'exit 130' INT TERM HUP
for world in "$@"; do
    echo "answers: $world"
    answer "$world"
done
