# Puts what siw's guest needs behind the first file system. Arguments: root, its file, module, our rping, tools
root=$1 file=$2 module=$3 ours=$4 tools=$5
stage=$(mktemp -d); trap 'rm -rf "$stage"' EXIT
for folder in bin lib etc/libibverbs.d usr/lib/x86_64-linux-gnu/libibverbs; do mkdir -p "$stage/$folder"; done
# A program with the libraries it is linked to.
add() {
    cp -L "$1" "$stage/$2"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do cp -Ln "$library" "$stage/lib/"; done
}
cp "$module" "$stage/lib/siw.ko"
add "$tools/usr/bin/rping" bin/rping
add "$ours" bin/ours
for provider in "$root"/usr/lib/x86_64-linux-gnu/libibverbs/libsiw-*.so; do
    add "$provider" usr/lib/x86_64-linux-gnu/libibverbs/
done
cp "$root/etc/libibverbs.d/siw.driver" "$stage/etc/libibverbs.d/"
(cd "$stage" && find . -print0 | "$root/bin/cpio" --null -o -H newc -R 0:0 --quiet | gzip -1) >> "$file"
