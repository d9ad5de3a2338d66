"""Run scenarios on the rig, or measure there.

    python3 tests/rig                            every scenario
    python3 tests/rig CLAIM...                   these
    python3 tests/rig --measure [PART...]        what is in tests/measure, or these parts of it
    python3 tests/rig --shell HOST [COMMAND...]  a root shell in a host of whichever rig is up

As root. The agent is the newest that cargo built, or BLIXARD_BIN. Exit status: how many scenarios failed, or parts of which a
gate doesn't hold.
"""

import os
import subprocess
import sys

from driver import measure, prepare, run_scenario
from host import shell_in
from install import agent_binary, claims, parts
from isolation import find_host, is_isolated, isolate


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0:
        sys.exit("rig: needs root (try: sudo python3 tests/rig)")
    if arguments[:1] == ["--shell"]:
        leader = find_host(arguments[1])
        if leader is None:
            sys.exit(f"rig: no host {arguments[1]} is up; `tests/demo --keep` leaves three up")
        shell_in(leader, arguments[2:])
    if arguments[:1] == ["--help"]:
        sys.exit(__doc__)
    option = arguments[:1] if arguments[:1] == ["--measure"] else []
    asked, known, run = arguments[len(option):], *((parts(), measure) if option else (claims(), run_scenario))
    unknown = set(asked) - set(known)
    if unknown:
        sys.exit(f"rig: there is no {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    agent = agent_binary(os.environ.get("BLIXARD_BIN"))
    if len(asked) == 1:
        if not is_isolated():
            prepare()
        isolate()
        return 0 if run(asked[0], agent) else 1
    prepare()
    failed = [one for one in asked or known
              if subprocess.run([sys.executable, sys.argv[0], *option, one], check=False).returncode]
    print(f"{len(asked or known) - len(failed)} passed, {len(failed)} failed" + "".join(f"\n  {one}" for one in failed))
    return min(len(failed), 99)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
