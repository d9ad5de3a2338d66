"""Run by tests/all: `python3 -m unittest discover -s tests/rig`. Needs no root."""

import itertools
import socket
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

import store  # noqa: F401 (prelude is found through it)
from observer import Life, Observer, overlaps
from prelude import wait_for


def life(host: str, begin: float, end: float | None, instance: str = "web-0") -> Life:
    return Life(instance, host, begin, end)


class Overlaps(unittest.TestCase):
    def test_lives_that_were_at_once_overlap_in_any_order_and_on_one_host_too(self) -> None:
        for one, other in itertools.permutations([life("alpha", 1, 4), life("beta", 3, 5)]):
            self.assertEqual(overlaps([one, other]), [(one, other)])
            self.assertEqual(one.overlap(other), 1)
        within = [life("alpha", 1, 9), life("alpha", 3, 5)]
        self.assertEqual(overlaps(within), [(within[0], within[1])])

    def test_one_after_the_other_is_no_overlap(self) -> None:
        lives = [life("alpha", 1, 3), life("beta", 3, 5), life("alpha", 6, None)]
        self.assertEqual(overlaps(lives), [])
        self.assertEqual(lives[0].overlap(lives[2]), -3)

    def test_a_life_goes_on_until_its_end_is_seen(self) -> None:
        lives = [life("alpha", 1, None), life("beta", 3, None), life("gamma", 4, 5)]
        self.assertEqual(len(overlaps(lives)), 3)

    def test_other_instances_are_no_copies(self) -> None:
        self.assertEqual(overlaps([life("alpha", 1, None), life("beta", 1, None, "web-1")]), [])


class Connections(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.hosts = [SimpleNamespace(name=name, directory=Path(directory.name) / name, binds=[]) for name in ("alpha", "beta")]
        for host in self.hosts:
            host.directory.mkdir()
        self.observer = Observer(self.hosts, ["web-0", "web-1"])

    def begin(self, host: int, instance: str) -> socket.socket:
        [(sockets, _)] = self.hosts[host].binds
        hypervisor = socket.socket(socket.AF_UNIX)
        self.addCleanup(hypervisor.close)
        hypervisor.connect(str(sockets / instance))
        return hypervisor

    def wait_for_lives(self, *hosts: str) -> None:
        wait_for(f"web-0 to live on {hosts}", lambda: self.observer.living("web-0"), lambda seen: seen == list(hosts), 10)

    def test_a_life_is_as_long_as_its_connection(self) -> None:
        first = self.begin(0, "web-0")
        self.begin(1, "web-1")
        self.wait_for_lives("alpha")
        first.close()
        self.wait_for_lives()
        self.begin(1, "web-0")
        self.wait_for_lives("beta")
        self.observer.check()

    def test_a_second_copy_fails_the_check_until_it_is_forgotten(self) -> None:
        self.begin(0, "web-0")
        self.wait_for_lives("alpha")
        self.begin(1, "web-0")
        self.wait_for_lives("alpha", "beta")
        with self.assertRaisesRegex(AssertionError, "web-0: on alpha from .* until now, and on beta from"):
            self.observer.check()
        self.observer.forget()
        self.observer.check()


if __name__ == "__main__":
    unittest.main()
