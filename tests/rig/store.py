"""The Nix store that the hosts start with: the runners of all guests that the tests know, built in the image.

A host has it as the lower layer of its /nix, so its runners are valid paths there and `nix-store --realise --add-root`
works, while what the host writes stays in the host.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from cache import digest, obtain, tell
from image import image
from observer import LIVES

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from prelude import ADDRESSES, address  # noqa: E402 (scenarios know the guests' addresses, and can't import)

GUEST_MEMORY_MIB = 96  # with 64 the kernel image no longer fits

BUILD = """
    mount --bind "$1/nix" "$2/nix"
    mount -t tmpfs tmpfs "$2/mnt"; mkdir "$2/mnt/parts" "$2/mnt/microvm"
    mount --bind "$3" "$2/mnt/parts"; mount --bind "$4" "$2/mnt/microvm"
    mount -t proc proc "$2/proc"; mount -t tmpfs tmpfs "$2/tmp"; mount -t tmpfs tmpfs "$2/root"
    mount --rbind /dev "$2/dev"
    exec chroot "$2" nix-build --quiet --no-out-link --option system x86_64-linux /mnt/microvm --arg parts /mnt/parts --arg guests "$5"
"""


def store(instances: set[str]) -> tuple[Path, dict[str, str]]:
    """The directory to put at /nix, and the runner of each instance in it."""
    made_from = [(path.name, path.read_text()) for path in sorted((HERE / "microvm").rglob("*")) if path.is_file()]
    built = image()
    guests = {instance: _guest(instance) for instance in sorted(instances)}
    entry = obtain("store", digest(built.name, made_from, BUILD, guests), lambda into: _make(into, built, guests))
    return entry / "nix", json.loads((entry / "runners.json").read_text())


def _guest(instance: str) -> dict[str, object]:
    vm = instance.rpartition("-")[0]
    if vm not in ADDRESSES:
        raise SystemExit(f"rig: no address for the guest {instance}: add VM {vm!r} to ADDRESSES in tests/prelude.py")
    last = int(address(instance).rpartition(".")[2])
    return {"address": address(instance), "mac": f"02:00:00:00:01:{last:02x}", "tap": f"vm-{instance}",
            "memoryMiB": GUEST_MEMORY_MIB, "observer": f"{LIVES}/{instance}"}


def _make(into: Path, built: Path, guests: dict[str, dict[str, object]]) -> None:
    tell(f"rig: building {len(guests)} microVM runners")
    (into / "nix").mkdir()
    made = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", BUILD, "sh",
         str(into), str(built / "root"), str(built / "parts"), str(HERE / "microvm"), _nix(guests)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        raise SystemExit(f"rig: nix-build could not make the microVMs:\n{made.stderr[-4000:]}")
    runners = {re.sub(r"^\S{32}-microvm-qemu-", "", path.rsplit("/", 1)[-1]): path for path in made.stdout.split()}
    assert set(runners) == set(guests), f"asked for {sorted(guests)}, got {made.stdout}"
    (into / "runners.json").write_text(json.dumps(runners, indent=1))


def _nix(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + " ".join(f'"{key}" = {_nix(item)};' for key, item in value.items()) + " }"
    return json.dumps(value)
