#!/bin/sh
# The main job on a kernel that allows a probe on Cilium's notifications: a lab, a trace in its node, traffic.
set -eu

fail() {
    echo "trace: $1" >&2
    cat /tmp/trace.err /tmp/trace.json >&2 || :
    exit 1
}

wait_for() {
    for _ in $(seq 600); do
        grep -q "$1" "$2" && return
        kill -0 "$tracer" || break
        sleep 0.5
    done
    fail "\`$1\` did not appear in $2"
}

trap 'plsprobe-lab down --instance vm' EXIT
plsprobe-lab up --instance vm --scenario allow-nat-ip --shape "$1" >/tmp/up
cat /tmp/up
# The lab says how to trace in its node.
command=$(sed -n 's/^  \(nsenter .* plsprobe trace .*\)/\1/p' /tmp/up)
netns=${command%% plsprobe *}

$command --duration 10m -o json >/tmp/trace.json 2>/tmp/trace.err &
tracer=$!
wait_for 'plsprobe: tracing ' /tmp/trace.err
cat /tmp/trace.err
plsprobe-lab traffic --instance vm
# The NAT IP that the policy does not name, and the one it does.
wait_for '"saddr":"10.224.0.9".*"verdict":"dropped"' /tmp/trace.json
wait_for '"saddr":"10.224.0.8".*"verdict":"allowed"' /tmp/trace.json
kill -INT "$tracer"
wait "$tracer" || [ $? -eq 1 ] || fail "plsprobe did not end with 1, as a flow was dropped"

flow=$(grep '"saddr":"10.224.0.9"' /tmp/trace.json | head -n 1)
summary=$(tail -n 1 /tmp/trace.json)
echo "$flow" | grep -q '"evidence":{"from":"cilium","source":{"by":"\(fentry\|kprobe\)"}}' ||
    fail "the verdict is not from a probe on Cilium's notifications"
echo "$flow" | grep -q '"reason":133' || fail "the drop is not for policy"
echo "$summary" | grep -q '"source":{"by":"\(fentry\|kprobe\)"}' || fail "the summary names another source"
echo "$summary" | grep -q '"records":{[^}]*"lost":0' || fail "records were lost"
# By its path: busybox' nsenter would run its own tc.
filters=$($netns /bin/tc filter show dev eth0 ingress)
echo "$filters" | grep -q 'handle 0x1 ' || fail "the stand-in's program is not at the uplink: $filters"
echo "$filters" | grep plsprobe && fail "a program of plsprobe's is still attached"
echo "$summary" | grep -q '"state":"\(refused\|lost\)"' && fail "not every hook was attached: $summary"
echo "$summary"
