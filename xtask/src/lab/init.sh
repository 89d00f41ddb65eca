#!/bin/busybox sh
# A guest of `cargo xtask lab`: brings soft-RoCE up. What it does with it follows.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin LD_LIBRARY_PATH=/lib
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
# What fails is told to the host, and the machine still ends.
results=/dev/console
failed() { echo "FAILED $1" > $results; dmesg | tail -n 40; poweroff -f; }
# By its path: busybox's shell would take its own modprobe, which cannot read compressed modules.
for module in @MODULES@; do
    /sbin/modprobe $module || failed "modprobe $module"
done
/sbin/ip link set lo up
# The module brings one, unless it was told otherwise.
[ -e /sys/class/net/dummy0 ] || /sbin/ip link add dummy0 type dummy || failed "ip link add dummy0"
/sbin/ip link set dummy0 mtu 4500
/sbin/ip addr add 10.9.9.1/24 dev dummy0
/sbin/ip link set dummy0 up
/sbin/rdma link add rxe0 type rxe netdev dummy0 || failed "rdma link add rxe0"
mkdir -p /dev/infiniband
for verbs in /sys/class/infiniband_verbs/uverbs*; do
    node=/dev/infiniband/${verbs##*/}
    [ -e $node ] || mknod $node c $(tr : ' ' < $verbs/dev)
done
