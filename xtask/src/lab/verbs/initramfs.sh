# Puts what goes over the device behind the first file system. Arguments: root, its file, the suite
root=$1 file=$2 suite=$3
stage=$(mktemp -d); trap 'rm -rf "$stage"' EXIT
for folder in bin lib; do mkdir -p "$stage/$folder"; done
strip --strip-all -o "$stage/bin/verbs_suite" "$suite"
for library in "$root"/usr/lib/x86_64-linux-gnu/librdmacm.so.1 "$root"/lib/x86_64-linux-gnu/libnl-*.so.?00; do
    [ ! -e "$library" ] || cp -L "$library" "$stage/lib/"
done
for program in "$suite" "$root/usr/lib/x86_64-linux-gnu/librdmacm.so.1"; do
    ldd "$program" | grep -o '/[^ ]*' | while read -r library; do cp -Ln "$library" "$stage/lib/"; done
done
(cd "$stage" && find . -print0 | "$root/bin/cpio" --null -o -H newc -R 0:0 --quiet | gzip -1) >> "$file"
