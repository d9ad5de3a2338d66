//! A server's log and store on a disk that fails at any one write: it says so, loses nothing, and is as good as before
//! once the disk is.

use std::ops::RangeInclusive;

use super::power::{Fault, Random};
use super::together::{Acknowledged, Machine, Server, founded, rows, states};

/// What a disk says that is full, of an unreadable sector, read-only, beyond a quota, or beyond a limit.
const ERRORS: [i32; 5] = [libc::ENOSPC, libc::EIO, libc::EROFS, libc::EDQUOT, libc::EFBIG];
/// What a person is told who has to see to the disk, and who has lost data.
const FIX: &str = "has room";
const LOSS: [&str; 3] = ["damaged", "restore", "not a"];

#[derive(Default, Debug)]
struct Counts {
    failures: u32,
    of_log: u32,
    of_store: u32,
    starts_refused: u32,
    kept_more_than_acknowledged: u32,
}

/// Names the file and the fix, and doesn't take a disk that can't be written for one whose data is lost.
fn says_what_to_do(told: &str, at: &str) {
    assert!(told.contains("/power/") || told.contains("state.redb"), "{at}: {told}");
    assert!(told.contains(FIX) && told.contains("os error"), "{at}: {told}");
    assert!(!LOSS.iter().any(|word| told.contains(word)), "{at}: {told}");
}

/// Starts a server, which then has the state after one of these numbers of commands; which number that is.
fn start(machine: &Machine, expected: RangeInclusive<u64>, at: &str) -> (Server, u64) {
    let states = states();
    let server = machine.start().unwrap_or_else(|error| panic!("{at}: {error}"));
    let found = expected.clone().find(|number| rows(&server.state) == states[usize::try_from(*number).unwrap()]);
    let found = found.unwrap_or_else(|| panic!("{at}: the state isn't that after {expected:?} commands"));
    (server, found)
}

fn fail(fault: fn(i32) -> Fault, counts: &mut Counts) {
    let (machine, mut server) = founded();
    let before = machine.power.writes();
    server.work(1, &mut Acknowledged::default()).unwrap();
    let writes = machine.power.writes() - before;
    drop(server);
    for failing in 0..writes {
        let fault = fault(ERRORS[failing % ERRORS.len()]);
        let at = format!("write {failing} of {writes}, {fault:?}");
        let (machine, mut server) = founded();
        let mut acknowledged = Acknowledged::default();
        machine.power.fail_after(failing, fault);
        let told = server.work(1, &mut acknowledged).expect_err(&at);
        says_what_to_do(&told, &at);
        counts.failures += 1;
        counts.of_log += u32::from(told.contains("/power/"));
        counts.of_store += u32::from(told.contains("state.redb"));
        // It ends, and what it does then is on the same disk.
        drop(server);
        let mut random = Random(failing as u64);
        // It may be started before anybody has seen to the disk.
        machine.power.fail_after(random.below(12), fault);
        if let Err(told) = machine.start() {
            says_what_to_do(&told, &at);
            counts.starts_refused += 1;
        }
        machine.power.cut_after(usize::MAX);
        let (server, found) = start(&machine, acknowledged.0..=acknowledged.0 + 1, &at);
        counts.kept_more_than_acknowledged += u32::from(found > acknowledged.0);
        // What it showed is on the disk by then, not only in the system's cache.
        drop(server);
        let machine = machine.back(&mut random);
        let (mut server, again) = start(&machine, found..=found, &at);
        server.work(again + 1, &mut acknowledged).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(Some(&rows(&server.state)), states().last(), "{at}");
    }
}

fn a_failing_disk_loses_nothing(fault: fn(i32) -> Fault) {
    let mut counts = Counts::default();
    fail(fault, &mut counts);
    println!("{counts:?}");
    assert!(counts.of_log > 50 && counts.of_store > 50 && counts.starts_refused > 50, "{counts:?}");
}

#[test]
fn a_disk_that_fails_for_good_stops_the_server_and_loses_nothing() {
    a_failing_disk_loses_nothing(Fault::Lasting);
}

#[test]
fn a_disk_that_fails_once_stops_the_server_and_loses_nothing() {
    a_failing_disk_loses_nothing(Fault::Once);
}
