"""A host with the methods that the NixOS test driver gives a machine: same names, signatures and meaning.

https://nixos.org/manual/nixos/stable/#ssec-machine-objects. Two differences, in the scenario's favour: conditions are
looked at ten times a second instead of once, and a failure also says what the command wrote to standard error. What it
has beyond that: misfortunes of its own, such as a full disk, a pause or a clock that is wrong.
"""

import os
import shlex
import shutil
import time
from collections.abc import Callable

from clock import give_own_clock, set_clock
from host import REBOOT, Host

INTERVAL = 0.1


class Failure(AssertionError):
    """A scenario's expectation was not met. The text is all that needs to be read."""


class Machine(Host):
    # -- commands

    def execute(self, command: str, check_return: bool = True, check_output: bool = True,
                timeout: int | None = 900) -> tuple[int, str]:
        """(exit status, standard output), 124 on timeout. Boots the machine if it is off."""
        self.connect()
        status, output = self.run_command(command, timeout)
        if not check_output:
            return -2, ""
        return (status if check_return else -1), output

    def succeed(self, *commands: str, timeout: int | None = None) -> str:
        """The commands' output; each must exit with 0."""
        return "".join(self._expect(command, True, timeout) for command in commands)

    def fail(self, *commands: str, timeout: int | None = None) -> str:
        """The commands' output; each must exit with something other than 0."""
        return "".join(self._expect(command, False, timeout) for command in commands)

    def _expect(self, command: str, success: bool, timeout: int | None) -> str:
        status, output = self.execute(command, timeout=timeout or 900)
        if (status == 0) is not success:
            said = f"{output}{self.last_stderr()}".strip()
            wanted = f"failed with exit status {status}" if success else "succeeded, and was to fail"
            raise Failure(f"{self.name}: `{command}` {wanted}\n{said}")
        return output

    # -- waiting

    def wait_until_succeeds(self, command: str, timeout: int = 900) -> str:
        return self._wait_for_command(command, True, timeout)

    def wait_until_fails(self, command: str, timeout: int = 900) -> str:
        return self._wait_for_command(command, False, timeout)

    def _wait_for_command(self, command: str, success: bool, timeout: int) -> str:
        last = ""

        def test() -> bool:
            nonlocal last
            status, output = self.execute(command, timeout=timeout)
            last = output if (status == 0) is success else f"exit status {status}\n{output}{self.last_stderr()}"
            return (status == 0) is success

        self._wait(f"`{command}` to {'succeed' if success else 'fail'}", test, lambda: last, timeout)
        return last

    def _wait(self, what: str, test: Callable[[], bool], last_seen: Callable[[], str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not test():
            if time.monotonic() > deadline:
                raise Failure(f"{self.name}: waited {timeout} s for {what}; last seen:\n{last_seen().strip()}")
            time.sleep(INTERVAL)

    def wait_for_unit(self, unit: str, user: str | None = None, timeout: int = 900) -> None:
        """Until the unit is active; at once an error if it failed, or is inactive with nothing about to start it."""
        state = ""

        def test() -> bool:
            nonlocal state
            state = self.get_unit_property(unit, "ActiveState", user)
            if state == "failed":
                raise Failure(f"{self.name}: {unit} failed\n{self._about(unit)}")
            if state == "inactive" and "No jobs" in self.systemctl("list-jobs --full 2>&1", user)[1]:
                state = self.get_unit_property(unit, "ActiveState", user)  # it may have been started in between
                if state == "inactive":
                    raise Failure(f"{self.name}: {unit} is inactive, and no job is pending\n{self._about(unit)}")
            return state == "active"

        self._wait(f"{unit} to be active", test, lambda: f"{state}\n{self._about(unit)}", timeout)

    def _about(self, unit: str) -> str:
        return self.execute(f"journalctl --no-pager --boot --lines=25 --unit {shlex.quote(unit)} || true")[1]

    def wait_for_file(self, filename: str, timeout: int = 900) -> None:
        self.wait_until_succeeds(f"test -e {filename}", timeout)

    def wait_for_open_port(self, port: int, addr: str = "localhost", timeout: int = 900) -> None:
        self.wait_until_succeeds(f"nc -z {addr} {port}", timeout)

    def wait_for_closed_port(self, port: int, addr: str = "localhost", timeout: int = 900) -> None:
        self.wait_until_fails(f"nc -z {addr} {port}", timeout)

    def wait_for_open_unix_socket(self, addr: str, is_datagram: bool = False, timeout: int = 900) -> None:
        self.wait_until_succeeds(f"nc -z -{'u' if is_datagram else ''}U {addr}", timeout)

    # -- units

    def systemctl(self, q: str, user: str | None = None) -> tuple[int, str]:
        assert user is None, "the rig's hosts have no user managers"
        return self.execute(f"systemctl {q}")

    def get_unit_info(self, unit: str, user: str | None = None) -> dict[str, str]:
        status, output = self.systemctl(f"--no-pager show {shlex.quote(unit)}", user)
        if status:
            raise Failure(f"{self.name}: systemctl show {unit} ended with exit status {status}\n{self.last_stderr()}")
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)

    def get_unit_property(self, unit: str, property: str, user: str | None = None) -> str:  # noqa: A002 (upstream's)
        status, output = self.systemctl(f"--no-pager show --property={property} {shlex.quote(unit)}", user)
        if status or "=" not in output:
            raise Failure(f"{self.name}: {unit} has no property {property}\n{self.last_stderr()}")
        return output.split("=", 1)[1].strip()

    def require_unit_state(self, unit: str, require_state: str = "active") -> None:
        state = self.get_unit_property(unit, "ActiveState")
        if state != require_state:
            raise Failure(f"{self.name}: {unit} is {state}, not {require_state}\n{self._about(unit)}")

    def start_job(self, jobname: str, user: str | None = None) -> tuple[int, str]:
        return self.systemctl(f"start {jobname}", user)

    def stop_job(self, jobname: str, user: str | None = None) -> tuple[int, str]:
        return self.systemctl(f"stop {jobname}", user)

    # -- power and cable

    def is_up(self) -> bool:
        return self.is_running()

    def start(self, allow_reboot: bool = False) -> None:
        """Begin to boot; nothing if it is up."""
        if not self.is_running():
            self.power_on()

    def crash(self) -> None:
        """Pull the plug. What was written is there at the next start."""
        self.pull_plug()

    def shutdown(self) -> None:
        self.power_off(60)

    def wait_for_shutdown(self) -> None:
        self.wait_off(60)

    def reboot(self) -> None:
        self.connect()
        self.run_command("systemctl reboot", 30)
        status = self.wait_off(60)
        assert status == REBOOT, f"{self.name}: the reboot ended with {status}"
        self.power_on()

    def block(self) -> None:
        """Unplug the network cable."""
        self.network.carrier(self.name, False)

    def unblock(self) -> None:
        self.network.carrier(self.name, True)

    # -- a clock of its own

    def skewable(self, unit: str) -> None:
        """Let `skew` set the wall clock of a unit. Before the host boots."""
        give_own_clock(self, unit)

    def skew(self, seconds: float) -> None:
        """How far that clock is ahead of the machine's, from now on."""
        set_clock(self, seconds)

    # -- files

    def copy_from_host(self, source: str, target: str) -> None:
        """From the machine that runs the test into this one; a file or a directory."""
        self.connect()
        inside = self.path(target)
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.isdir(source):
            shutil.copytree(source, inside, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, inside)
