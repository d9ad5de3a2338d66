"""The Debian root that every host has as its read-only lower layer, and the parts that a microVM is made of.

Both come from one run of mmdebstrap (about 20 s, downloads), so a machine needs neither Nix nor QEMU of its own. Nothing
of the machine's own configuration leaks in.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from cache import digest, obtain, tell

SUITE = "bookworm"
PACKAGES = """
    systemd systemd-sysv dbus iproute2 iputils-ping curl netcat-openbsd procps util-linux ca-certificates
    nix-bin qemu-system-x86 socat busybox-static
""".split()
KERNEL = "linux-image-cloud-amd64"

# Units that expect hardware or a network to the outside, or that only cost time.
MASKED = """
    getty@tty1.service console-getty.service getty-static.service systemd-logind.service systemd-timesyncd.service
    systemd-networkd.service systemd-networkd-wait-online.service systemd-resolved.service systemd-hwdb-update.service
    systemd-update-utmp.service systemd-update-utmp-runlevel.service dev-hugepages.mount e2scrub_reap.service
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
    systemd-tmpfiles-clean.timer
""".split()

# Two things must be right before systemd looks at them. With --network-namespace-path, /sys shows the interfaces of the
# rig instead of the host's own. It is to say which machine this is, as firmware does. And the v1 controllers are mounted read-only: systemd ignores, for good, those that it
# can't write, and then MemoryMax=, CPUQuota= and TasksMax= limit nothing.
FIRST_PROCESS = """#!/bin/sh
mkdir /run/sys && mount -t sysfs sysfs /run/sys
for d in class/net devices/virtual/net; do mount --bind /run/sys/$d /sys/$d; done
umount /run/sys && rmdir /run/sys
mount -t tmpfs tmpfs /sys/firmware && mkdir -p /sys/firmware/devicetree/base
echo "$container_uuid" > /sys/firmware/devicetree/base/serial-number
for c in memory cpu cpuacct pids blkio freezer; do
  [ ! -d /sys/fs/cgroup/$c ] || mount -o remount,bind,rw /sys/fs/cgroup/$c
done
exec /lib/systemd/systemd "$@"
"""

FILES = {
    "etc/systemd/journald.conf.d/rig.conf": "[Journal]\nRateLimitIntervalSec=0\nSystemMaxUse=64M\n",
    "etc/systemd/system.conf.d/rig.conf": "[Manager]\nDefaultTimeoutStopSec=10s\nShowStatus=no\n",
    # As on NixOS: a service that may not write to the store asks the daemon.
    "etc/systemd/system/nix-daemon.socket": """[Unit]
Description=Nix Daemon Socket
[Socket]
ListenStream=/nix/var/nix/daemon-socket/socket
""",
    "etc/systemd/system/nix-daemon.service": """[Unit]
Description=Nix Daemon
Requires=nix-daemon.socket
[Service]
ExecStart=/usr/bin/nix-daemon --daemon
KillMode=process
""",
    # No build users, no substituters: the store is what the rig puts there.
    "etc/nix/nix.conf": "experimental-features = nix-command flakes\nsandbox = false\nbuild-users-group =\nsubstituters =\n",
    "etc/machine-id": "",  # filled in per host, from nspawn's --uuid
}

# What services.blixard makes on NixOS: the group that may use the agent's socket, and who runners and tasks run as.
ACCOUNTS = """
    getent group kvm >/dev/null || groupadd --system kvm
    groupadd --system blixard
    useradd --system --gid kvm --no-create-home --home-dir /var/empty --shell /usr/sbin/nologin blixard-vm
    useradd --system --user-group --no-create-home --home-dir /var/empty --shell /usr/sbin/nologin blixard-task
"""

# In dependency order: the guest's /init inserts them as they come.
GUEST_MODULES = """
    virtio_ring virtio virtio_mmio failover net_failover virtio_net virtio-rng button evdev
""".split()
GUEST_FIRMWARE = ["qboot.rom", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin"]

# The hook runs outside of the new root, with apt set up as mmdebstrap has it (mirror, proxy, lists).
DOWNLOAD_KERNEL = f"""
    cd "$1/opt"; export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
    apt-get -q download "$(apt-cache depends {KERNEL} | sed -n 's/^ *Depends: *//p' | head -n1)"
"""


def image() -> Path:
    """The directory with `root` and `parts` in it."""
    recipe = (SUITE, PACKAGES, MASKED, FIRST_PROCESS, FILES, ACCOUNTS, GUEST_MODULES, GUEST_FIRMWARE, DOWNLOAD_KERNEL,
              LAUNCHER)
    return obtain("image", digest(recipe), _make)


def _make(into: Path) -> None:
    tell("rig: downloading a Debian root for the hosts (once, about 20 s)")
    root, parts = into / "root", into / "parts"
    # mmdebstrap reads its standard input, and what it has to say is only of interest if it fails.
    made = subprocess.run(
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory",
         '--aptopt=APT::Install-Recommends "false"', "--include=" + ",".join(PACKAGES),
         "--customize-hook=" + DOWNLOAD_KERNEL, f'--customize-hook=chroot "$1" sh -ec \'{ACCOUNTS}\'', SUITE, str(root)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if made.returncode:
        raise SystemExit(f"rig: mmdebstrap could not make the hosts' root:\n{made.stdout[-4000:]}")
    for unit in MASKED:
        link = root / "etc/systemd/system" / unit
        if not link.is_symlink():
            link.symlink_to("/dev/null")
    for path, text in FILES.items():
        put(root / path, text)
    put(root / "rig-init", FIRST_PROCESS, 0o755)
    wanted = root / "etc/systemd/system/sockets.target.wants/nix-daemon.socket"
    wanted.parent.mkdir(exist_ok=True)
    wanted.symlink_to("../nix-daemon.socket")
    for path in ("nix", "var/log/journal", "opt/blixard/bin", "var/empty"):
        (root / path).mkdir(parents=True, exist_ok=True)
    _collect_parts(root, parts)
    shutil.rmtree(root / "usr/share/doc", ignore_errors=True)


def put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


# ------------------------------------------------------------------------------------------- what a microVM is made of

def _collect_parts(root: Path, parts: Path) -> None:
    """Directories that microvm/default.nix imports one by one: `busybox`, `kernel`, `qemu`, `socat`."""
    (parts / "busybox/bin").mkdir(parents=True)
    shutil.copy2(root / "bin/busybox", parts / "busybox/bin/busybox")
    _collect_kernel(root / "opt", parts / "kernel")
    qemu = parts / "qemu"
    _bundle(root, "/usr/bin/qemu-system-x86_64", qemu, "-L \"$top/share\"")
    # Debian's QEMU loads its accelerators as modules.
    shutil.copy(root / "usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so", qemu / "lib")
    (qemu / "share").mkdir()
    for rom in GUEST_FIRMWARE:
        shutil.copy(_inside(root, f"/usr/share/qemu/{rom}"), qemu / "share" / rom)
    shutil.copy(qemu / "share/qboot.rom", qemu / "share/bios-microvm.bin")
    _bundle(root, "/usr/bin/socat", parts / "socat")


def _collect_kernel(downloads: Path, kernel: Path) -> None:
    (package,) = downloads.glob("linux-image-*.deb")
    unpacked = downloads / "unpacked"
    subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
    (kernel / "modules").mkdir(parents=True)
    (image_file,) = unpacked.glob("boot/vmlinuz-*")
    shutil.copy2(image_file, kernel / "bzImage")
    found = {path.name: path for path in unpacked.glob("lib/modules/*/kernel/**/*.ko")}
    for module in GUEST_MODULES:
        shutil.copy2(found[f"{module}.ko"], kernel / "modules")
    (kernel / "modules/order").write_text("\n".join(GUEST_MODULES) + "\n")
    shutil.rmtree(unpacked)
    package.unlink()


# A program with its own loader and libraries: it runs from the store alone, whatever the host has.
LAUNCHER = """#!/bin/sh
top=$(dirname "$(dirname "$(readlink -f "$0")")")
export QEMU_MODULE_DIR="$top/lib"
exec "$top/lib/ld-linux-x86-64.so.2" --library-path "$top/lib" --argv0 {name} "$top/bin/.{name}" {arguments} "$@"
"""


def _bundle(root: Path, program: str, into: Path, arguments: str = "") -> None:
    for sub in ("bin", "lib"):
        (into / sub).mkdir(parents=True)
    linked = subprocess.run(["chroot", str(root), "ldd", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", linked):
        shutil.copy(_inside(root, library), into / "lib" / os.path.basename(library))
    name = os.path.basename(program)
    shutil.copy(_inside(root, program), into / f"bin/.{name}")
    put(into / "bin" / name, LAUNCHER.format(name=name, arguments=arguments), 0o755)


def _inside(root: Path, path: str) -> Path:
    """Where an absolute path of the root is, symbolic links followed as they would be in there."""
    found = subprocess.run(["chroot", str(root), "readlink", "-f", path], check=True, stdout=subprocess.PIPE, text=True)
    return root / found.stdout.strip().lstrip("/")


if __name__ == "__main__":
    print(image())
