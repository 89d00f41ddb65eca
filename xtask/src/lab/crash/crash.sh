# Two boots on the same disks. In the first, a device writes to a file that is its memory, and a client puts another into a
# store, while a third is being written; all that is told to be durable is on the disk; then the machine is gone. In the
# second: what is there?
export TMPDIR=/tmp
say() { echo "CRASH $*"; }
failed() {
    say "failed: $1"
    for log in /tmp/*.log; do echo "== $log"; tail -n 20 $log | cut -c 1-200; done
    poweroff -f
}
# Waits until somebody listens at the port, or says something in a file.
until_true() {
    tries=0
    until eval "$1"; do
        tries=$((tries + 1)); [ $tries -lt 200 ] || failed "waited in vain for: $1"
        usleep 50000
    done
}
serve() {
    /bin/leasehold serve --insecure --listen 127.0.0.1:$port --data 127.0.0.1:$((port + 1)) \
        --metrics 127.0.0.1:$((port + 2)) --arena 64MiB /mnt/$name/store > /tmp/serve-$name.log 2>&1 &
    until_true "grep -q \"$(printf ':%04X 00000000:0000 0A' $port)\" /proc/net/tcp"
}
before() {
    # Nobody ever writes to it: whoever reads it waits.
    mkfifo /tmp/open-$name
    sleep 100000 > /tmp/open-$name &
    /bin/leasehold probe-flyer --remote /mnt/$name/plain < /tmp/open-$name > /tmp/plain-$name 2>&1 &
    until_true "[ -s /tmp/plain-$name ]"
    mkdir /mnt/$name/store
    serve
    for file in a b; do
        timeout 60 /bin/leasehold put /tmp/$file leasehold://127.0.0.1:$port/$file > /tmp/put-$name.log 2>&1 ||
            failed "$name: put: $?"
    done
    # Never committed.
    /bin/leasehold hold --write leasehold://127.0.0.1:$port/b > /tmp/hold-$name.log 2>&1 &
    until_true "/bin/leasehold leases --json leasehold://127.0.0.1:$port/ 2>/dev/null | grep -q /b"
    say before $name $(head -n 1 /tmp/plain-$name)
}
after() {
    say plain $name $(/bin/leasehold probe-flyer --lost /mnt/$name/plain 2>&1)
    serve
    for file in a b; do
        timeout 60 /bin/leasehold get leasehold://127.0.0.1:$port/$file /tmp/got-$file > /tmp/get-$name.log 2>&1 ||
            failed "$name: get: $?"
        cmp /tmp/got-$file /tmp/$file || failed "$name: the store has other bytes than those that were acknowledged"
        rm /tmp/got-$file
    done
    timeout 60 /bin/leasehold scrub leasehold://127.0.0.1:$port/ > /tmp/scrub-$name.log 2>&1 || failed "$name: scrub: $?"
    say store $name kept $(tail -n 1 /tmp/scrub-$name.log)
}
# A few MiB that are the same in both boots, and not much.
head -c 8000000 /bin/leasehold > /tmp/a
echo committed > /tmp/b
port=7200
for word in $(cat /proc/cmdline); do
    case $word in boot=*) boot=${word#boot=};; esac
done
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
