#!/bin/sh
# Builds the guest agent as one static file and puts it where the daemon looks for it.
set -eu
cd "$(dirname "$0")"
cargo="${CARGO:-cargo}"
host=$(rustc -vV | sed -n 's/^host: //p')
# Named outright, because an older cargo does not know the "host-tuple" of .cargo/config.toml.
"$cargo" build --release --locked --quiet --target "$host" --bin roost-agent
built="target/$host/release/roost-agent"
out="${1:-../src/roost/_bin}/roost-agent"
mkdir -p "$(dirname "$out")"
if ! cmp -s "$built" "$out"; then
    # Beside it and renamed: an agent that runs from the old file keeps it.
    cp "$built" "$out.new"
    chmod 755 "$out.new"
    mv -f "$out.new" "$out"
fi
echo "$out"
