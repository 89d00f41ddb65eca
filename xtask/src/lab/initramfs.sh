# Packs the guest's first file system. Arguments: release, root, kernel's tree, output, init's text, modules ..
release=$1 root=$2 tree=$3 file=$4 init=$5; shift 5
stage=$(mktemp -d); trap 'rm -rf "$stage"' EXIT
for folder in bin sbin lib lib64 dev proc sys tmp etc/libibverbs.d; do mkdir -p "$stage/$folder"; done
# A program with the libraries it is linked to.
add() {
    cp -L "$1" "$stage/$2"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do cp -Ln "$library" "$stage/lib/"; done
}
cp "$root/bin/busybox" "$stage/bin/"
add "$root/bin/kmod" sbin/modprobe
add "$root/bin/ip" sbin/ip
[ -e "$root/bin/rdma" ] && rdma=$root/bin/rdma || rdma=$root/sbin/rdma
[ -e "$rdma" ] || rdma=$root/usr/bin/rdma
add "$rdma" sbin/rdma
add "$root/usr/bin/ibv_devinfo" bin/ibv_devinfo
mkdir -p "$stage/usr/lib/x86_64-linux-gnu/libibverbs"
for provider in "$root"/usr/lib/x86_64-linux-gnu/libibverbs/librxe-*.so; do
    add "$provider" usr/lib/x86_64-linux-gnu/libibverbs/
done
cp "$root/etc/libibverbs.d/rxe.driver" "$stage/etc/libibverbs.d/"
cp -L /lib64/ld-linux-x86-64.so.2 "$stage/lib64/"
tools=$(mktemp -d); trap 'rm -rf "$stage" "$tools"' EXIT
for tool in depmod modprobe; do ln -s "$root/bin/kmod" "$tools/$tool"; done
[ -e "$tree/lib/modules/$release/modules.dep" ] || "$tools/depmod" -b "$tree" "$release"
for module; do
    "$tools/modprobe" -d "$tree" -S "$release" --show-depends "$module" | grep '^insmod' | cut -d' ' -f2 |
        while read -r path; do (cd "$tree" && cp --parents "lib/modules/${path#*/lib/modules/}" "$stage"); done
done
cp "$tree/lib/modules/$release/"modules.order "$tree/lib/modules/$release/"modules.builtin* "$stage/lib/modules/$release/"
"$tools/depmod" -b "$stage" "$release"
printf '%s' "$init" > "$stage/init"; chmod +x "$stage/init"
(cd "$stage" && find . -print0 | "$root/bin/cpio" --null -o -H newc -R 0:0 --quiet | gzip -1) > "$file"
