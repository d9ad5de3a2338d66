# Sourced by tests/demo and tests/all: what they need from the machine. Runs in any POSIX shell.

say() { printf '%s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# cargo as the person who owns the checkout, also when they called through sudo.
run_cargo() {
  if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    sudo -u "$SUDO_USER" -H env PATH="$home/.cargo/bin:$PATH" ${CARGO_TARGET_DIR:+CARGO_TARGET_DIR="$CARGO_TARGET_DIR"} cargo "$@"
  else
    PATH="${HOME:-/root}/.cargo/bin:$PATH" cargo "$@"
  fi
}

# The rig, with the agent that cargo built.
run_rig() {
  script=$1
  shift
  as_root env PYTHONDONTWRITEBYTECODE=1 ${CARGO_TARGET_DIR:+CARGO_TARGET_DIR="$CARGO_TARGET_DIR"} \
    ${BLIXARD_BIN:+BLIXARD_BIN="$BLIXARD_BIN"} python3 "$script" "$@"
}

# need PROGRAM=PACKAGE...: make sure that the programs are there, by apt where there is apt.
need() {
  missing=
  for pair in "$@"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || missing="$missing ${pair#*=}"
  done
  if [ -z "$missing" ]; then return; fi
  if ! command -v apt-get >/dev/null; then
    say "These programs are missing; install them with this system's package manager (Debian's package names):"
    say " $missing"
    exit 1
  fi
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    say "Missing:$missing. Run this as root, or install them first: apt-get install$missing"
    exit 1
  fi
  say "Installing with apt:$missing"
  # shellcheck disable=SC2086 (a list of packages)
  as_root env DEBIAN_FRONTEND=noninteractive sh -c '
    exec >&2
    apt-get -q -q update && apt-get -q -q install -y --no-install-recommends "$@" >/tmp/blixard-apt.$$ 2>&1 ||
      { cat /tmp/blixard-apt.$$; exit 1; }
    rm -f /tmp/blixard-apt.$$' sh $missing
}

# To build: raft's messages are compiled by protoc. gcc alone has no C library headers.
need_build() {
  need cc="gcc libc6-dev" protoc=protobuf-compiler
  if ! run_cargo --version >/dev/null 2>&1; then
    say "Rust 1.90 or newer is missing, and Debian 12 has an older one: install it with rustup, then run this again."
    exit 1
  fi
}

# To run hosts.
need_rig() {
  if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    say "The hosts and their microVMs need Linux on x86_64; this is $(uname -s) on $(uname -m)."
    exit 1
  fi
  need python3=python3 systemd-nspawn=systemd-container mmdebstrap=mmdebstrap nft=nftables ip=iproute2
}
