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
# Rounds beyond the plain ones.
more=0
# Waits until somebody listens at the port.
listening() {
    at=$(printf ':%04X 00000000:0000 0A' $port) looked=0
    until grep -q "$at" /proc/net/tcp; do
        looked=$((looked + 1)); [ $looked -lt 200 ] || failed "nobody listens at port $port"
        usleep 50000
    done
}
# rping's server on siw, and our client. Arguments: what it is about, size, rounds, options of the client ..
kernel_serves() {
    what=$1 size=$2 rounds=$3; shift 3; tries=0
    # On a busy host, one connection in some fifty gets a frame whose bytes are right and whose CRC is not (docs/lab.md).
    until serves "$@"; do
        tries=$((tries + 1))
        [ $tries -lt 3 ] && grep -q 'wrong CRC\|Poisoned' /tmp/ours.log || failed "siw serves, $what: our client"
        echo "SIW siw serves, $what: it sent a wrong CRC, and again"
    done
    seen=$(grep -c '^server ping data: ' /tmp/kernel.log)
    [ $seen = $((rounds + more)) ] || failed "siw serves, $what: rping -s printed $seen rounds of $((rounds + more))"
    while read -r line; do echo "SIW siw serves, $what: $line"; done < /tmp/ours.log
}
serves() {
    port=$((port + 1))
    timeout 60 /bin/rping -s -v -a 10.9.9.1 -p $port -S $size > /tmp/kernel.log 2>&1 & kernel=$!
    listening
    timeout 60 /bin/ours client 10.9.9.1:$port --size $size --rounds $rounds "$@" > /tmp/ours.log 2>&1
    ours=$?
    wait $kernel || [ $ours != 0 ] || failed "siw serves, $what: rping -s: $?"
    return $ours
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
kernel_serves "without ready-to-receive" 65535 20 --no-ready
kernel_serves "each frame checked first" 65535 20 --strict
more=41; kernel_serves "fences while it writes" 65535 1 --fences 40; more=0
kernel_asks "without CRCs" 65535 20 --no-crc
kernel_asks "each frame checked first" 65535 20 --strict
# Revision 1 does not negotiate how many reads there may be at once, and siw makes that none: the connection stands, the
# first message arrives, and rping's read is refused by its own kernel.
port=$((port + 1))
timeout 60 /bin/rping -s -a 10.9.9.1 -p $port > /tmp/kernel.log 2>&1 & kernel=$!
listening
timeout 60 /bin/ours client 10.9.9.1:$port --rounds 1 --revision-1 > /tmp/ours.log 2>&1 &&
    failed "MPA revision 1: siw serves reads now; run the whole test with it"
wait $kernel
grep -q 'post send error' /tmp/kernel.log || failed "MPA revision 1: rping -s did not come to its read"
echo "SIW siw serves, MPA revision 1: connects, and reads nothing: $(head -n 1 /tmp/kernel.log)"
# One round, then a mistake that the kernel or we must answer with a Terminate. Arguments: what our end is to say, what the
# kernel's is to say if it receives the Terminate, our role, the mistake. The kernel names layer and type the wrong way
# round: its bit-fields are in host order.
mistaken() {
    ours=$1 kernels=$2 role=$3 mistake=$4; port=$((port + 1))
    dmesg -c > /dev/null
    if [ $role = client ]; then
        timeout 60 /bin/rping -s -a 10.9.9.1 -p $port -S 1001 > /tmp/kernel.log 2>&1 & other=$!
        listening
        timeout 60 /bin/ours client 10.9.9.1:$port --size 1001 --rounds 1 --mistake $mistake > /tmp/ours.log 2>&1 ||
            failed "$mistake, siw serves: our client: $?"
        # Whether rping thinks that it failed depends on which of two events it looks at first.
        wait $other
    else
        timeout 60 /bin/ours server 10.9.9.1:$port --size 1001 --rounds 1 --mistake $mistake > /tmp/ours.log 2>&1 & other=$!
        listening
        timeout 60 /bin/rping -c -a 10.9.9.1 -p $port -S 1001 -C 2 > /tmp/kernel.log 2>&1
        wait $other || failed "$mistake, siw asks: our server: $?"
    fi
    grep -q "$ours" /tmp/ours.log || failed "$mistake: our $role did not say: $ours"
    dmesg > /tmp/dmesg.log
    [ -z "$kernels" ] || grep -q "$kernels" /tmp/dmesg.log || failed "$mistake: the kernel did not say: $kernels"
    echo "SIW mistake: $(tail -n 1 /tmp/ours.log)$(sed -n 's/.*\] \(siw: .*TERM\)/; \1/p' /tmp/dmesg.log)"
}
mistaken 'unknown tag' 'got TERMINATE. layer 1, type 1, code 0' client sink-tag
mistaken 'outside what the tag' 'got TERMINATE. layer 1, type 1, code 1' client sink-bounds
mistaken 'no such access' 'got TERMINATE. layer 1, type 0, code 2' client sink-access
mistaken 'unknown tag' 'got TERMINATE. layer 1, type 0, code 0' client source-tag
mistaken 'outside what the tag' 'got TERMINATE. layer 1, type 0, code 1' client source-bounds
mistaken 'wrong CRC' 'got TERMINATE. layer 0, type 2, code 2' client bit-received
mistaken 'CRC (MPA' '' client bit-sent
mistaken 'invalid tag (DDP' '' server sink-tag
mistaken 'out of bounds (DDP' '' server sink-bounds
mistaken 'invalid tag (RDMAP' '' server source-tag
mistaken 'out of bounds (RDMAP' '' server source-bounds
# A store, and a client of it that speaks verbs. A token is good from the address that it was given to.
mkdir /store; mount -t tmpfs tmpfs /store || failed "mount tmpfs"
/bin/leasehold serve --insecure=anywhere --listen 10.9.9.1:7117 --data 10.9.9.1:7118 --arena 64MiB --grace-ms 300 /store \
    > /tmp/serve.log 2>&1 & server=$!
for port in 7117 7118; do listening; done
timeout 120 /bin/verbs 10.9.9.1:7117 /store/files /bin/peer > /tmp/verbs.log 2>&1 || failed "a store: the client: $?"
while read -r line; do echo "SIW a store: $line"; done < /tmp/verbs.log
kill -INT $server
wait $server || failed "a store: the server: $?"
echo "SIW done after $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f
