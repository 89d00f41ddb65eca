# Leasehold over soft-RoCE, on each filesystem.
export TMPDIR=/tmp
say() { echo "VERBS $*"; }
failed() {
    say "failed: $1"
    for log in /tmp/*.log; do echo "== $log"; tail -n 20 $log | cut -c 1-200; done
    poweroff -f
}
/sbin/modprobe rdma_ucm || failed "modprobe rdma_ucm"
[ -e /dev/infiniband/rdma_cm ] || mknod /dev/infiniband/rdma_cm c $(tr : ' ' < /sys/class/misc/rdma_cm/dev)
suite() {
    timeout 600 /bin/verbs_suite 10.9.9.1 200 $only > /tmp/suite.log 2>&1; code=$?
    grep '^SUITE' /tmp/suite.log | while read -r line; do say "${line#SUITE }"; done
    [ $code = 0 ] || { tail -n 40 /tmp/suite.log; dmesg | tail -n 30; failed "the suite: $code"; }
}
for word in $(cat /proc/cmdline); do
    case $word in boot=*) boot=${word#boot=};; only=*) only=${word#only=};; esac
done
[ $boot = before ] && suite
say done $(uname -r)
poweroff -f
