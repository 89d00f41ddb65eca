#!/bin/busybox sh
# The guest of `cargo xtask lab --only hazards`: soft-RoCE, four filesystems and a DAX one; the probe goes through each.
/bin/busybox --install -s /bin
export PATH=/sbin:/bin LD_LIBRARY_PATH=/lib
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
results=/dev/ttyS1
# What fails is told to the host, and the machine still ends.
failed() { echo "FAILED $1" > $results; dmesg | tail -n 40; poweroff -f; }
# By its path: busybox's shell would take its own modprobe, which cannot read compressed modules.
for module in crc32c_generic crc32_generic dummy rdma_rxe ib_uverbs virtio_pci virtio_blk ext4 xfs btrfs fuse nd_e820 nd_pmem; do
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
export TMPDIR=/tmp
# The root is no directory that anything else lies under: a mount is an entry of its own. Arguments: name, mount's ..
probe() {
    name=$1; shift
    mkdir -p /mnt/$name
    if ! mount "$@" /mnt/$name 2> /tmp/mount.log; then
        echo "NOT-MOUNTED $name $(head -n 1 /tmp/mount.log)" > $results
        return
    fi
    echo "BEGIN $name $(cut -d' ' -f1 /proc/uptime)" > $results
    /bin/leasehold probe --json $COMPARE /mnt/$name > /tmp/probe.json 2> /tmp/probe.log
    code=$?
    cat /tmp/probe.json > $results
    echo "END $code $(tail -n 1 /tmp/probe.log)" > $results
    cat /tmp/probe.log
    dmesg -c
    umount /mnt/$name
}
for word in $(cat /proc/cmdline); do
    case $word in compare) COMPARE=--compare;; probe=*) names=$(echo ${word#probe=} | tr , ' ');; esac
done
for name in $names; do
    case $name in
        ext4) probe ext4 -t ext4 /dev/vda;;
        xfs) probe xfs -t xfs /dev/vdb;;
        btrfs) probe btrfs -t btrfs /dev/vdc;;
        tmpfs) probe tmpfs -t tmpfs tmpfs;;
        ext4-dax) gunzip -c /lib/ext4-dax.gz > /dev/pmem0; probe ext4-dax -t ext4 -o dax=always /dev/pmem0;;
    esac
done
echo "DONE $(uname -r) $(cut -d' ' -f1 /proc/uptime)" > $results
poweroff -f
