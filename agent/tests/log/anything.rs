//! Segments that hold anything at all: what opens is a log, and the rest is refused.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;

use blixard::log::{Disk, DiskFile, Log, Replay};
use blixard_core::driver::{Driver, LogStore, Membership, Position, Recovered, Settings, wire};
use blixard_core::types::RaftId;
use raft::eraftpb::{Entry, HardState};

use super::power::{Power, Random};
use super::{entry, hard_state};

const CASES: u64 = 1_500;
const SEGMENT_BYTES: u64 = 1_000;

fn try_all(run: fn(&mut Random)) {
    for case in 0..CASES {
        let tried = std::panic::catch_unwind(AssertUnwindSafe(|| run(&mut Random(case))));
        tried.unwrap_or_else(|cause| {
            eprintln!("it was case {case}");
            std::panic::resume_unwind(cause)
        });
    }
}

fn put(disk: &Power, sequence: u64, bytes: &[u8]) {
    disk.create(&format!("{sequence:016x}.log")).unwrap().append(bytes).unwrap();
}

/// Opens what is there; what opens can be opened again, and is the same then.
fn opened(disk: &Power) -> Option<(Log<Power>, Replay)> {
    let (log, replay) = Log::open_on(disk.clone(), SEGMENT_BYTES).ok()?;
    let mut before = replay.base;
    for entry in &replay.entries {
        assert_eq!(entry.index, before.index + 1, "a gap");
        before = Position::of(entry);
    }
    drop(log);
    let (log, again) = Log::open_on(disk.clone(), SEGMENT_BYTES).expect("it opened just now");
    assert_eq!(replay, again);
    Some((log, replay))
}

#[test]
fn a_log_that_is_damaged_anywhere_gives_what_was_written_or_nothing() {
    try_all(|random| {
        let disk = Power::default();
        let (mut log, _) = Log::open_on(disk.clone(), SEGMENT_BYTES).unwrap();
        let mut written = BTreeSet::new();
        let mut last = 0;
        for term in 1..=1 + random.below(30) as u64 {
            if random.below(12) == 0 {
                last += 5;
                log.restart(Position { index: last, term }, &hard_state(term, last)).unwrap();
            }
            let next = last + 1;
            let batch: Vec<Entry> = (next..next + random.below(4) as u64).map(|index| entry(index, term)).collect();
            log.write(&batch, Some(&hard_state(term, 0))).unwrap();
            last += batch.len() as u64;
            written.extend(batch.iter().map(|entry| (entry.index, entry.term, entry.data.clone())));
        }
        drop(log);
        let mut names: Vec<String> = disk.names().unwrap();
        names.sort();
        let name = &names[random.below(names.len())];
        let mut bytes = disk.read(name).unwrap();
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => drop(bytes.drain(at..(at + 1 + random.below(100)).min(bytes.len()))),
            _ => bytes.extend_from_within(at..),
        }
        disk.create(name).unwrap().append(&bytes).unwrap();
        if let Some((mut log, replay)) = opened(&disk) {
            for Entry { index, term, data, .. } in &replay.entries {
                assert!(written.contains(&(*index, *term, data.clone())), "entry {index} of term {term} is invented");
            }
            let next = replay.entries.last().map_or(replay.base.index, |entry| entry.index) + 1;
            log.write(&[entry(next, 99)], None).unwrap();
        }
    });
}

/// A segment whose checksums are right, whatever is in its frames.
fn sealed(sequence: u64, base: Position, frames: &[Vec<u8>]) -> Vec<u8> {
    const SALT: u64 = 7;
    let mut bytes = b"BLXDLOG\n\x01\0\0\0".to_vec();
    for number in [sequence, SALT, base.index, base.term] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    for frame in frames {
        let place = [SALT, bytes.len() as u64].map(u64::to_le_bytes).concat();
        let crc = |covered: &[u8]| crc32c::crc32c(&[place.as_slice(), covered].concat()).to_le_bytes();
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        let head = [length, crc(frame)].concat();
        bytes.extend([&head[..], &crc(&head)[..], frame].concat());
    }
    bytes
}

/// A number that is near another one, or at an end of what there is.
fn number(random: &mut Random, near: u64) -> u64 {
    match random.below(8) {
        0..=3 => near.saturating_add(random.below(3) as u64),
        4 => near.saturating_sub(1),
        5 => u64::MAX - random.below(2) as u64,
        6 => random.below(4) as u64,
        _ => 1 << random.below(64),
    }
}

fn item(random: &mut Random, last: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let kind = match random.below(16) {
        0..=10 => {
            *last = if random.below(4) == 0 { number(random, *last) } else { last.wrapping_add(1) };
            let entry_type = i32::try_from(random.below(4)).unwrap() / 2;
            let entry = Entry { index: *last, term: number(random, 1), entry_type, ..Entry::default() };
            wire::encode_entry(&entry, &mut bytes);
            1
        }
        11..=14 => {
            let (term, commit) = (number(random, 3), number(random, *last));
            wire::encode_hard_state(&HardState { term, vote: 1, commit }, &mut bytes);
            2
        }
        kind => u8::try_from(kind).unwrap(),
    };
    if random.below(40) == 0 && !bytes.is_empty() {
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
    }
    let length = u32::try_from(bytes.len()).unwrap() + u32::from(random.below(60) == 0);
    [&[kind], &length.to_le_bytes()[..], &bytes].concat()
}

#[test]
fn whatever_a_log_says_under_right_checksums_stops_nothing() {
    let (mut opens, mut starts) = (0, 0);
    for case in 0..CASES {
        let mut random = Random(case);
        let disk = Power::default();
        let mut base = Position { index: number(&mut random, 0), term: number(&mut random, 1) };
        for sequence in 1..=1 + random.below(3) as u64 {
            let mut last = base.index;
            let frames: Vec<Vec<u8>> = (0..random.below(6))
                .map(|_| (0..random.below(4)).flat_map(|_| item(&mut random, &mut last)).collect())
                .collect();
            put(&disk, sequence, &sealed(sequence, base, &frames));
            base = Position { index: number(&mut random, last), term: number(&mut random, 1) };
        }
        let tried = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let (_, replay) = opened(&disk)?;
            let Replay { base, entries, hard_state } = replay;
            let membership = Membership { voters: [1, 2].map(RaftId).into(), ..Membership::default() };
            let recovered = Recovered { applied: base.index, base, entries, hard_state, membership };
            Some(Driver::new(Settings::new(RaftId(1), 0), recovered).ok().map(|mut driver| drop(driver.turn())))
        }));
        let opened = tried.unwrap_or_else(|cause| {
            eprintln!("it was case {case}");
            std::panic::resume_unwind(cause)
        });
        opens += u64::from(opened.is_some());
        starts += u64::from(opened.flatten().is_some());
    }
    assert!(opens > CASES / 10 && starts > CASES / 100, "{opens} opened, and {starts} started");
}
