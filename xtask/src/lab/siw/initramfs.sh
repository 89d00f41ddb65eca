# Puts what siw's guest needs behind the first file system. Arguments: root, its file, module, our rping, tools,
# the two parts of a verbs client, leasehold
root=$1 file=$2 module=$3 ours=$4 tools=$5 verbs=$6 peer=$7 leasehold=$8
stage=$(mktemp -d); trap 'rm -rf "$stage"' EXIT
for folder in bin lib etc/libibverbs.d usr/lib/x86_64-linux-gnu/libibverbs; do mkdir -p "$stage/$folder"; done
# A program with the libraries it is linked to.
add() {
    strip --strip-all -o "$stage/$2" "$1"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do cp -Ln "$library" "$stage/lib/"; done
}
cp "$module" "$stage/lib/siw.ko"
add "$tools/usr/bin/rping" bin/rping
for program in "$verbs" "$peer" "$leasehold"; do add "$program" "bin/${program##*/}"; done
add "$ours" bin/ours
for provider in "$root"/usr/lib/x86_64-linux-gnu/libibverbs/libsiw-*.so; do
    add "$provider" "usr/lib/x86_64-linux-gnu/libibverbs/${provider##*/}"
done
cp "$root/etc/libibverbs.d/siw.driver" "$stage/etc/libibverbs.d/"
(cd "$stage" && find . -print0 | "$root/bin/cpio" --null -o -H newc -R 0:0 --quiet | gzip -1) >> "$file"
