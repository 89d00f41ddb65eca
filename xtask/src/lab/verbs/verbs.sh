# Leasehold over soft-RoCE: the fabric's suite; then, on each filesystem, a store whose data go over the device and nothing else.
# Two boots on the same disks. In the first: put, get, a storm of breaks; then the machine is gone while somebody writes. In the
# second: what is there?
export TMPDIR=/tmp LEASEHOLD_FABRIC=verbs
say() { echo "VERBS $*"; }
failed() {
    say "failed: $1"
    for log in /tmp/*.log; do echo "== $log"; tail -n 20 $log | cut -c 1-200; done
    echo "== the kernel's"; dmesg | tail -n 30
    poweroff -f
}
until_true() {
    tries=0
    until eval "$1"; do
        tries=$((tries + 1)); [ $tries -lt 400 ] || failed "$name: waited in vain for: $1"
        usleep 50000
    done
}
[ -e /dev/infiniband/rdma_cm ] || mknod /dev/infiniband/rdma_cm c $(tr : ' ' < /sys/class/misc/rdma_cm/dev)
suite() {
    timeout 600 /bin/verbs_suite 10.9.9.1 200 > /tmp/suite.log 2>&1; code=$?
    grep '^SUITE' /tmp/suite.log | while read -r line; do say "${line#SUITE }"; done
    [ $code = 0 ] || { tail -n 40 /tmp/suite.log; failed "the suite: $code"; }
}
serve() {
    store=leasehold://10.9.9.1:$port
    /bin/leasehold serve --insecure=anywhere --listen 10.9.9.1:$port --data 10.9.9.1:$((port + 1)) \
        --metrics 127.0.0.1:$((port + 2)) --arena 64MiB --grace-ms 300 /mnt/$name/store > /tmp/serve-$name.log 2>&1 &
    until_true "grep -q 'data by verbs at' /tmp/serve-$name.log"
}
run() { timeout 120 /bin/leasehold "$@" > /tmp/run-$name.log 2>&1 || failed "$name: $*: $?"; }
# A holder writes without a pause and makes it durable; the range is punched; it is zeros then, and stays so.
storm() {
    rounds=0
    while [ $rounds -lt 4 ]; do
        rounds=$((rounds + 1))
        run put /tmp/zeros $store/storm
        # One that answers, and one that does not.
        answer=$([ $((rounds % 2)) = 0 ] || echo --ignore-breaks)
        timeout 120 /bin/leasehold hold --update --write --sync 10ms $answer $store/storm > /tmp/storm-$name.log 2>&1 & holder=$!
        until_true "! cmp -s /mnt/$name/store/files/storm /tmp/zeros"
        run punch --offset 0 --length 1M $store/storm
        for look in 1 2; do
            run get $store/storm /tmp/after
            cmp /tmp/after /tmp/zeros || failed "$name: late bytes landed behind a punch, in round $rounds"
            rm /tmp/after
        done
        wait $holder
    done
}
before() {
    mkdir /mnt/$name/store
    serve
    for file in a b; do run put /tmp/$file $store/$file; done
    run get $store/a /tmp/got
    cmp /tmp/got /tmp/a || failed "$name: other bytes came back than were put"
    rm /tmp/got
    storm
    # Never committed.
    /bin/leasehold hold --write $store/b > /tmp/hold-$name.log 2>&1 &
    until_true "/bin/leasehold leases --json $store/ 2>/dev/null | grep -q /b"
    say $name: put, get, and $rounds punches under a writer\'s hands, behind which nothing landed
}
after() {
    serve
    for file in a b; do
        run get $store/$file /tmp/got
        cmp /tmp/got /tmp/$file || failed "$name: other bytes than were acknowledged before the crash"
        rm /tmp/got
    done
    run scrub $store/
    say $name: after the crash, all that was acknowledged: $(tail -n 1 /tmp/run-$name.log)
}
head -c 8000000 /bin/leasehold > /tmp/a
echo committed > /tmp/b
head -c 1048576 /dev/zero > /tmp/zeros
port=7300
for word in $(cat /proc/cmdline); do
    case $word in boot=*) boot=${word#boot=};; esac
done
[ $boot = after ] || suite
for name in ext4 xfs btrfs; do
    case $name in ext4) disk=/dev/vda;; xfs) disk=/dev/vdb;; btrfs) disk=/dev/vdc;; esac
    mkdir -p /mnt/$name
    mount -t $name $disk /mnt/$name || failed "mount $name"
    $boot
    port=$((port + 10))
done
say done $(uname -r)
# No filesystem hears of it.
echo b > /proc/sysrq-trigger
