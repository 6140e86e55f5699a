# Pid 1 of the guest. Each line for the host begins with $MARK; the rest is for people.
export PATH=/bin HOME=/tmp TMPDIR=/tmp RUST_BACKTRACE=1

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
ip link set lo up

load() {
    insmod "/modules/$1.ko" || echo "$MARK trouble module $1 was refused"
}

payload() {
    name=$1
    shift
    echo "$MARK start $name"
    "/tests/$name" "$@"
    echo "$MARK exit $name $?"
}

finish() {
    # By a serial line of their own: on the console the kernel may speak in between.
    if [ -d /answers ]; then
        stty -F /dev/ttyS1 raw
        tar -cf /dev/ttyS1 -C /answers . || echo "$MARK trouble the answers could not be sent"
    fi
    echo "$MARK finished"
    sync
    reboot -f
}

