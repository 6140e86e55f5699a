#!/bin/sh
# Checks the guest itself: what every other payload takes for granted.
set -eu

fail() {
    echo "guest: $1" >&2
    exit 1
}

[ -s /sys/kernel/btf/vmlinux ] || fail "no BTF"
# Its source reads `none` on 5.10.
grep -q ' /sys/fs/bpf bpf ' /proc/mounts || fail "bpffs is not mounted"
[ -e /sys/kernel/tracing/kprobe_events ] || fail "no kprobes"
grep -q ' bpf_skb_event_output$' /proc/kallsyms || fail "no function bpf_skb_event_output to probe"

trap 'ip netns del pls-guest 2>/dev/null || :' EXIT
ip netns add pls-guest
ip link add pls-a type veth peer name pls-b netns pls-guest
ip addr add 192.0.2.1/30 dev pls-a
ip link set pls-a up
ip -n pls-guest addr add 192.0.2.2/30 dev pls-b
ip -n pls-guest link set pls-b up

# A classic BPF program that returns -1, as ours do: the packet goes on to whoever comes next.
tc qdisc add dev pls-a clsact
tc filter add dev pls-a ingress prio 1 handle 1 bpf da bytecode '1,6 0 0 4294967295'
tc filter show dev pls-a ingress | grep -q 'handle 0x1 ' || fail "the tc filter is not there"
ping -c 3 -i 0.2 -W 5 192.0.2.2 >/dev/null || fail "no ping through veth under a tc filter"
tc filter del dev pls-a ingress
