"""One host's power: a systemd-nspawn container with a real systemd as PID 1, a disk, a cable, and cgroups of its own."""

import os
import re
import shlex
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

from image import put
from isolation import UNIFIED, cgroups, delegate, remove_cgroup
from network import PREFIX, Network, run

RUN = Path("/run/rig")  # on a tmpfs of this rig's own, so that two rigs may use the same names
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DISK_BYTES = 2 << 30
REBOOT = 133  # how nspawn --keep-unit says "start me again"
BOOT_TIMEOUT = 60
# nsenter gives every capability there is; a host must not set the machine's clock, load modules or switch it off.
WITHHELD = "-sys_time,-sys_module,-sys_boot,-sys_rawio,-syslog"


class Host:
    """A host that may be off, booting, on or paused. Its disk outlives its crashes."""

    def __init__(self, name: str, number: int, names: list[str], network: Network, root: Path, nix: Path) -> None:
        self.name, self.number, self.network = name, number, network
        self.directory = RUN / name
        self.root = self.directory / "root"
        self.files = self.directory / "files"  # the root of the running host, its own mounts included, over every reboot
        self.binds: list[tuple[Path, str]] = []  # (the machine's path, the host's path), read-only
        self._process: subprocess.Popen[bytes] | None = None
        self._leader: int | None = None  # the host's PID 1 as the rig sees it
        self._connected = False
        self.cgroups = {hierarchy: home / name for hierarchy, home in cgroups().items()}
        for cgroup in self.cgroups.values():  # the host's systemd tidies up below os/: commands run beside it
            (cgroup / "os").mkdir(parents=True)
            (cgroup / "commands").mkdir()
        delegate(self.cgroups[UNIFIED])
        self._make_disk(root, nix)
        addresses = "".join(f"{PREFIX}{index}\t{other}\n" for index, other in enumerate(names, 1))
        put(self.root / "etc/hosts", f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{addresses}")
        put(self.root / "etc/hostname", f"{name}\n")

    def _make_disk(self, root: Path, nix: Path) -> None:
        disk = self.directory / "disk"
        disk.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "tmpfs", str(disk))
        for lower, at in ((root, self.root), (nix, self.directory / "nix")):
            for part in (at, disk / at.name, disk / f"{at.name}.work"):
                part.mkdir()
            layers = f"lowerdir={lower},upperdir={disk / at.name},workdir={disk / at.name}.work"
            run("mount", "-t", "overlay", "overlay", str(at), "-o", layers)

    def fill_disk(self) -> None:
        """Nothing more can be written, until `free_disk`."""
        while not self._set_disk_size(self._used_bytes()):  # more was written in between
            pass

    def free_disk(self) -> None:
        assert self._set_disk_size(DISK_BYTES), f"{self.name}: its disk can't be as large as it was"

    def _used_bytes(self) -> int:
        disk = os.statvfs(self.directory / "disk")
        return (disk.f_blocks - disk.f_bfree) * disk.f_frsize

    def _set_disk_size(self, size_bytes: int) -> bool:
        """Whether it can have that size, which is what it holds or more."""
        remount = ["mount", "-o", f"remount,size={size_bytes}", self.directory / "disk"]
        return subprocess.run(remount, stderr=subprocess.DEVNULL, check=False).returncode == 0

    # -- power

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def power_on(self) -> None:
        """Start booting; `connect` waits until commands can be run."""
        assert not self.is_running(), f"{self.name} is on already"
        if self._process is not None:
            self._clear_away()  # it went off by itself
        self.network.plug(self.name, self.number)
        notify = self.directory / "notify"
        tun = RUN / "tun"  # a node of the rig's own: the machine's may be root's alone
        if not tun.exists():
            os.mknod(tun, 0o20666, os.makedev(10, 200))
            tun.chmod(0o666)
        argv = [
            "systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self.name}",
            f"--uuid={uuid.uuid5(uuid.NAMESPACE_DNS, f'{self.name}.rig')}", "--register=no", "--keep-unit",
            "--console=pipe", "--notify-ready=yes", "--kill-signal=SIGRTMIN+3", "--link-journal=no",
            "--resolv-conf=off", "--timezone=off", f"--network-namespace-path=/run/netns/{self.name}",
            f"--bind={tun}:/dev/net/tun", "--capability=CAP_NET_ADMIN,CAP_BPF", "--system-call-filter=bpf",
            f"--bind={self.directory}/nix:/nix", *(f"--bind-ro={here}:{there}" for here, there in self.binds),
            "/rig-init", "systemd.unit=multi-user.target",
        ]
        # The host has both versions of cgroups if the machine has: limits are on v1 then, and the fence kills by v2.
        environment = {"PATH": PATH, "NOTIFY_SOCKET": str(notify), "SYSTEMD_NSPAWN_LOCK": "0"}
        with open(self.directory / "console.log", "ab") as console, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(str(notify))
            self._process = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=console,
                                             stderr=console, preexec_fn=lambda: self._enter_cgroup("os"))
            self._leader, self._connected = self._await_leader(s), False
        notify.unlink()
        self.files.unlink(missing_ok=True)
        self.files.symlink_to(self.path("/"))

    def _await_leader(self, notify: socket.socket) -> int:
        """The host's PID 1. The socket isn't for longer: one that nobody reads fills up, and PID 1 waits on it."""
        notify.settimeout(BOOT_TIMEOUT)
        while True:
            try:
                leader = re.search(rb"X_NSPAWN_LEADER_PID=(\d+)", notify.recv(4096))
            except TimeoutError:
                raise RuntimeError(f"{self.name} does not boot: {self.console()[-2000:]}") from None
            if leader:
                return int(leader[1])

    def connect(self) -> None:
        """Wait until the host's systemd answers; it may still be starting units. Starts the host if it is off."""
        if self._connected and self.is_running():
            return
        if not self.is_running():
            self.power_on()
        deadline = time.monotonic() + BOOT_TIMEOUT
        answer: object = "nothing yet"
        while time.monotonic() < deadline and self.is_running():
            if os.path.exists(self.path("/run/systemd/private")):
                status, answer = self.run_command("systemctl show -P Version", 10)
                if status == 0:
                    self._connected = True
                    return
            time.sleep(0.01)
        raise RuntimeError(f"{self.name}: its systemd does not answer ({answer}): {self.console()[-2000:]}")

    def power_off(self, timeout: float) -> None:
        """An orderly shutdown, as by `poweroff`."""
        self.connect()
        assert self._leader
        os.kill(self._leader, signal.SIGRTMIN + 4)  # systemd: start poweroff.target
        self.wait_off(timeout)

    def wait_off(self, timeout: float) -> int:
        assert self._process
        status = self._process.wait(timeout)
        self._clear_away()
        return status

    def pull_plug(self) -> None:
        """Every process of the host and of its microVMs is gone at once, paused or not."""
        if not self.is_running():
            return
        (self.cgroups[UNIFIED] / "cgroup.kill").write_text("1")
        self.resume()
        self.wait_off(10)

    def pause(self) -> None:
        """Freeze the whole host with its microVMs, as when a hypervisor stops it. Clocks go on."""
        (self.cgroups[UNIFIED] / "cgroup.freeze").write_text("1")
        while "frozen 1" not in (self.cgroups[UNIFIED] / "cgroup.events").read_text():
            time.sleep(0.001)

    def resume(self) -> None:
        (self.cgroups[UNIFIED] / "cgroup.freeze").write_text("0")

    def hang_first_process(self) -> None:
        """PID 1 does nothing any more; all else goes on."""
        assert self._leader
        os.kill(self._leader, signal.SIGSTOP)

    def resume_first_process(self) -> None:
        assert self._leader
        os.kill(self._leader, signal.SIGCONT)

    def _clear_away(self) -> None:
        """What a host that is off has no more: its cable, the cgroups that its systemd made."""
        self.network.unplug(self.name)
        for cgroup in self.cgroups.values():
            remove_cgroup(cgroup / "os")
            (cgroup / "os").mkdir(exist_ok=True)
        self._process, self._leader, self._connected = None, None, False

    # -- inside

    def run_command(self, command: str, timeout: float | None) -> tuple[int, str]:
        """Exit status and standard output of a bash command, in the host's cgroup: it stops when the host does."""
        limit = ["timeout", "--kill-after=1", str(timeout)] if timeout else []
        argv = [*enter(self._leader), "SYSTEMD_PAGER=", *limit, "bash", "-c", f"set -euo pipefail; {command}"]
        with open(self.directory / "stderr", "wb") as stderr:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                                       text=True, errors="replace", preexec_fn=lambda: self._enter_cgroup("commands"))
        try:
            output, _ = process.communicate(timeout=timeout + 5 if timeout else None)
        except subprocess.TimeoutExpired:  # a paused host can't even end the command
            process.kill()
            return 124, ""
        return process.returncode, output

    def last_stderr(self) -> str:
        return (self.directory / "stderr").read_text(errors="replace").strip()

    def console(self) -> str:
        return (self.directory / "console.log").read_text(errors="replace")

    def path(self, path: str) -> str:
        """Where the rig sees a path of the running host, its own mounts included."""
        return f"/proc/{self._leader}/root/{path.lstrip('/')}"

    def _enter_cgroup(self, sub: str) -> None:
        for cgroup in self.cgroups.values():
            (cgroup / sub / "cgroup.procs").write_text("0")


def enter(leader: int | None) -> list[str]:
    """What to put before a command so that it runs in the host with that PID 1, with nothing of the rig's environment."""
    return [
        "nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--",
        "setpriv", f"--bounding-set={WITHHELD}", "env", "-i", f"PATH={PATH}", "HOME=/root", "USER=root", "LANG=C.UTF-8",
    ]


def shell_in(leader: int, command: list[str]) -> None:
    """Become a shell in a host, from outside of the rig; a single argument may be a whole line, as with ssh."""
    inside = command[0] if len(command) == 1 else shlex.join(command) or "cd; exec bash --login"
    argv = [*enter(leader), f"TERM={os.environ.get('TERM', 'dumb')}", "bash", "-c", inside]
    os.execvp(argv[0], argv)
