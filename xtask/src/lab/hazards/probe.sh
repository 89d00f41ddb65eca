# The probe goes through four filesystems and a DAX one.
results=/dev/ttyS1
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
