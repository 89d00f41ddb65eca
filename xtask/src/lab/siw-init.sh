#!/bin/busybox sh
# The guest of `cargo xtask lab --only siw`: the kernel's iWARP and this project's, one of them client and the other server.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin LD_LIBRARY_PATH=/lib
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
# What fails is told to the host with all that was written, and the machine still ends.
failed() {
    echo "SIW failed: $1"
    for log in /tmp/*.log; do echo "== $log"; tail -n 20 $log | cut -c 1-200; done
    echo "== the kernel's"; dmesg | tail -n 40
    poweroff -f
}
# By its path: busybox's shell would take its own modprobe, which cannot read compressed modules.
for module in crc32c_generic libcrc32c dummy ib_uverbs rdma_ucm; do /sbin/modprobe $module || failed "modprobe $module"; done
insmod /lib/siw.ko || failed "insmod siw"
/sbin/ip link set lo up
[ -e /sys/class/net/dummy0 ] || /sbin/ip link add dummy0 type dummy || failed "ip link add dummy0"
/sbin/ip addr add 10.9.9.1/24 dev dummy0
/sbin/ip link set dummy0 up
/sbin/rdma link add siw0 type siw netdev dummy0 || failed "rdma link add siw0"
mkdir -p /dev/infiniband
for device in /sys/class/infiniband_verbs/uverbs* /sys/class/misc/rdma_cm; do
    node=/dev/infiniband/${device##*/}
    [ -e $node ] || mknod $node c $(tr : ' ' < $device/dev)
done
port=7200
# Waits until somebody listens at the port.
listening() {
    at=$(printf ':%04X 00000000:0000 0A' $port) tries=0
    until grep -q "$at" /proc/net/tcp; do
        tries=$((tries + 1)); [ $tries -lt 200 ] || failed "nobody listens at port $port"
        usleep 50000
    done
}
# rping's server on siw, and our client. Arguments: what it is about, size, rounds, options of the client ..
kernel_serves() {
    what=$1 size=$2 rounds=$3; shift 3; port=$((port + 1))
    timeout 60 /bin/rping -s -v -a 10.9.9.1 -p $port -S $size > /tmp/kernel.log 2>&1 & kernel=$!
    listening
    timeout 60 /bin/ours client 10.9.9.1:$port --size $size --rounds $rounds "$@" > /tmp/ours.log 2>&1 ||
        failed "siw serves, $what: our client: $?"
    wait $kernel || failed "siw serves, $what: rping -s: $?"
    seen=$(grep -c '^server ping data: ' /tmp/kernel.log)
    [ $seen = $rounds ] || failed "siw serves, $what: rping -s printed $seen rounds of $rounds"
    echo "SIW siw serves, $what: $(cat /tmp/ours.log)"
}
# Our server, and rping's client on siw, which compares what comes back. Arguments: what, size, rounds, our options ..
kernel_asks() {
    what=$1 size=$2 rounds=$3; shift 3; port=$((port + 1))
    timeout 60 /bin/ours server 10.9.9.1:$port --size $size --rounds $rounds "$@" > /tmp/ours.log 2>&1 & ours=$!
    listening
    timeout 60 /bin/rping -c -V -v -a 10.9.9.1 -p $port -S $size -C $rounds > /tmp/kernel.log 2>&1 ||
        failed "siw asks, $what: rping -c: $?"
    wait $ours || failed "siw asks, $what: our server: $?"
    seen=$(grep -c '^ping data: ' /tmp/kernel.log)
    [ $seen = $rounds ] || failed "siw asks, $what: rping -c printed $seen rounds of $rounds"
    echo "SIW siw asks, $what: $(cat /tmp/ours.log)"
}
for mtu in 65536 1500; do
    /sbin/ip link set lo mtu $mtu
    for size in 64 1001 65535; do
        kernel_serves "MTU $mtu" $size 50
        kernel_asks "MTU $mtu" $size 50
    done
done
kernel_serves "without CRCs" 65535 20 --no-crc
kernel_serves "MPA revision 1" 65535 20 --revision-1
kernel_serves "without ready-to-receive" 65535 20 --no-ready
kernel_serves "each frame checked first" 65535 20 --strict
kernel_asks "without CRCs" 65535 20 --no-crc
kernel_asks "each frame checked first" 65535 20 --strict
echo "SIW done after $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f
