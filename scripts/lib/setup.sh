# Sourced by the scripts: installs what is missing, quickly when nothing is. Debian 12, root, package registries only.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 1
export DEBIAN_FRONTEND=noninteractive
log=${ROOST_SETUP_LOG:-/tmp/roost-setup.$(id -u).log}

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; [ -n "${2:-}" ] && printf 'hint: %s\n' "$2" >&2; exit 1; }

# Runs a command with its output in the log; shows the log's end only if it fails.
quiet() {
  if ! "$@" >>"$log" 2>&1; then
    tail -n 30 "$log" >&2
    die "this failed: $*" "the whole output is in $log"
  fi
}

need_root() { [ "$(id -u)" = 0 ] || die "this needs root (it makes namespaces, mounts and cgroups)" "sudo $0 $*"; }

have_packages() { dpkg-query -W -f='${db:Status-Status}\n' "$@" 2>/dev/null | grep -cx installed | grep -qx "$#"; }

apt_updated=
apt_install() { # [-t suite] packages...
  if [ -z "$apt_updated" ]; then quiet apt-get update -q; apt_updated=1; fi
  quiet apt-get install -q -y --no-install-recommends "$@"
}

# The suite with a recent runsc and QEMU, from the mirror this machine already uses.
add_backports() {
  apt-get indextargets --format '$(RELEASE)' 'Created-By: Packages' | grep -qx 'bookworm-backports' && return
  local uri
  uri=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "bookworm" { print $2; exit }')
  [ -n "$uri" ] || die "no Debian 12 (bookworm) package source is configured here" "Roost's set-up is for Debian 12"
  printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
    "$uri" > /etc/apt/sources.list.d/roost-backports.sources
  apt_updated=
}

runsc_is_recent() { # systrap, pause and checkpoint as we use them: 2023 or later
  local v
  v=$(runsc --version 2>/dev/null | grep -oE '[0-9]{8}' | head -1)
  [ -n "$v" ] && [ "$v" -ge 20231001 ]
}

qemu_is_recent() { # mapped-ram migration as we use it
  local v
  v=$(qemu-system-x86_64 --version 2>/dev/null | grep -oE 'version [0-9]+' | head -1)
  [ -n "$v" ] && [ "${v#version }" -ge 10 ]
}

system_packages=(python3 python3-venv ca-certificates runc nftables iproute2 xfsprogs e2fsprogs mmdebstrap util-linux gcc libc6-dev procps kmod lz4 skopeo)

# What the tests drive the daemon with, besides their own.
test_packages=(openssh-client rsync curl git docker-registry chromium systemd) # systemd: only to judge units, it does not become init

install_tests() {
  have_packages "${test_packages[@]}" && return
  say "Installing ${test_packages[*]}"
  apt_install "${test_packages[@]}"
}

# The clients of other services, each version in an environment of its own, and Node.js for those that are npm packages.
install_conformance() {
  if ! { command -v node && command -v npm; } >/dev/null; then
    say "Installing nodejs npm"
    apt_install nodejs npm
  fi
  local stamp=.venv-conformance/.roost want
  want=$(cat requirements/conformance-*.txt tests/conformance/*/package-lock.json | sha256sum | cut -d' ' -f1)-$root
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
  say "Installing the clients of other services"
  quiet .venv/bin/python -m tests.conformance.foreign
  echo "$want" > "$stamp"
}

install_system() {
  local missing=()
  for p in "${system_packages[@]}"; do have_packages "$p" || missing+=("$p"); done
  if [ ${#missing[@]} -gt 0 ]; then
    say "Installing ${missing[*]}"
    apt_install "${missing[@]}"
  fi
  if ! runsc_is_recent; then
    say "Installing gVisor (runsc)"
    add_backports
    apt_install -t bookworm-backports runsc
  fi
  if ! qemu_is_recent; then
    say "Installing QEMU"
    add_backports
    apt_install -t bookworm-backports qemu-system-x86
  fi
}

rust_is_recent() {
  local v
  v=$(cargo --version 2>/dev/null | grep -oE '1\.[0-9]+' | head -1)
  [ -n "$v" ] && [ "${v#1.}" -ge 88 ]
}

install_rust() {
  rust_is_recent && return
  say "Installing Rust"
  apt_install rustc-web cargo-web
  rust_is_recent || die "cargo 1.88 or later is needed and $(cargo --version 2>&1 | head -1) was found first in PATH"
}

# requirement files -> .venv; a stamp holds what was installed last
install_python() {
  local stamp=.venv/.roost-$1 files=() want
  shift
  for f in "$@"; do files+=("requirements/$f.txt"); done
  want=$(cat "${files[@]}" pyproject.toml | sha256sum | cut -d' ' -f1)-$root
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
  say "Installing Python packages ($*)"
  [ -x .venv/bin/python ] || quiet python3 -m venv .venv
  local args=()
  for f in "${files[@]}"; do args+=(-r "$f"); done
  quiet .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes "${args[@]}"
  quiet .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall -e .
  echo "$want" > "$stamp"
}

# mitmproxy, which keeps secrets out of machines, in an environment of its own: its pins clash with ours
install_mitmproxy() {
  local stamp=.venv-mitm/.roost want
  want=$(sha256sum < requirements/mitmproxy.txt | cut -d' ' -f1)-$root
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
  say "Installing mitmproxy"
  [ -x .venv-mitm/bin/python ] || quiet python3 -m venv .venv-mitm
  quiet .venv-mitm/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/mitmproxy.txt
  echo "$want" > "$stamp"
}

build_agent() {
  install_rust
  [ -x src/roost/_bin/roost-agent ] || say "Building the guest agent (a few minutes, once)"
  quiet agent/build.sh
}
