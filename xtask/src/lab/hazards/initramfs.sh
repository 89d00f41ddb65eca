# Puts what the probe's guest needs behind the first file system. Arguments: root, its file, leasehold, a filesystem
root=$1 file=$2 leasehold=$3 persistent=$4
stage=$(mktemp -d); trap 'rm -rf "$stage"' EXIT
for folder in bin lib; do mkdir -p "$stage/$folder"; done
strip --strip-all -o "$stage/bin/leasehold" "$leasehold"
ldd "$leasehold" | grep -o '/[^ ]*' | while read -r library; do cp -Ln "$library" "$stage/lib/"; done
gzip -1 < "$persistent" > "$stage/lib/ext4-dax.gz"
(cd "$stage" && find . -print0 | "$root/bin/cpio" --null -o -H newc -R 0:0 --quiet | gzip -1) >> "$file"
