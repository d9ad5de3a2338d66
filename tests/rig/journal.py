"""A host's journal as lines that a person can read, with the fields that the agent logs beside its messages."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from host import Host

FIELD = "BLIXARD_"  # the agent's telemetry prefixes its fields with it
WITHOUT = ("BLIXARD_TARGET", "BLIXARD_CODE", "BLIXARD_NODE")


def save_journal(host: Host, into: Path) -> list[str]:
    """Write down every boot of a host, also of one that is off; the lines."""
    read = subprocess.run(
        ["journalctl", f"--directory={host.root}/var/log/journal", "--no-pager", "--merge", "--output=json", "--quiet"],
        stdout=subprocess.PIPE, text=True, check=False)
    lines = [_line(json.loads(entry)) for entry in read.stdout.splitlines()]
    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_text("\n".join(lines) + "\n")
    return lines


def _line(entry: dict[str, object]) -> str:
    seconds = int(str(entry["__REALTIME_TIMESTAMP"])) / 1e6
    time = datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S.%f")[:-3]
    unit = entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or entry.get("SYSLOG_IDENTIFIER")
    fields = {key.removeprefix(FIELD).lower(): value for key, value in sorted(entry.items())
              if key.startswith(FIELD) and not key.startswith(WITHOUT)}
    beside = "".join(f" {key}={_text(value)}" for key, value in fields.items())
    return f"{time} {unit}: {_text(entry.get('MESSAGE'))}{beside}"


def _text(value: object) -> str:
    """journalctl gives what isn't printable as a list of bytes."""
    if isinstance(value, list) and all(isinstance(byte, int) for byte in value):
        return bytes(value).decode(errors="replace")
    return str(value)
