"""What the rig builds once and keeps: directories named by a hash of what went into them.

An entry is complete or absent (it is renamed into place), and never changes afterwards, so any number of rigs can have
it as the lower layer of an overlay. `obtain` also holds a shared lock on the entry for as long as this process and its
children live; entries that nobody holds and that were superseded are removed when a new one is made.
"""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("BLIXARD_RIG_CACHE", "/var/cache/blixard-rig"))

_held: list[int] = []


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def tell(text: str) -> None:
    """One line of progress on stderr, so that stdout stays what a scenario prints."""
    print(text, file=sys.stderr, flush=True)


def obtain(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The directory `kind-key`; `make` fills it if it isn't there yet. Held until this process and its children end."""
    CACHE.mkdir(parents=True, exist_ok=True)
    entry = CACHE / f"{kind}-{key}"
    with open(CACHE / f"{kind}.lock", "w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        _hold(entry)
        if not entry.is_dir():
            partial = CACHE / f"{kind}-{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(entry)
            _prune(kind, entry)
    return entry


def _hold(entry: Path) -> None:
    lock = os.open(f"{entry}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.set_inheritable(lock, True)
    _held.append(lock)


def _prune(kind: str, newest: Path) -> None:
    for other in CACHE.glob(f"{kind}-*"):
        if other == newest or not other.is_dir():
            continue
        lock = os.open(f"{other}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
            os.unlink(f"{other}.lock")
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
