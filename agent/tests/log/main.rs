//! The raft log on a real directory, and on a disk that loses its power.

mod anything;
mod power;

use std::fs;
use std::path::{Path, PathBuf};

use blixard::log::{Directory, Log, LogError, Replay};
use blixard_core::driver::{LogStore, Position};
use power::{Fault, Power, Random};
use raft::eraftpb::{Entry, HardState};

fn entry(index: u64, term: u64) -> Entry {
    let size = usize::try_from(index * 37 % 300).unwrap();
    Entry { index, term, data: vec![u8::try_from(index % 251).unwrap(); size], ..Entry::default() }
}

fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    indexes.map(|index| entry(index, term)).collect()
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 1, commit }
}

fn reopened(dir: &Path) -> Replay {
    Log::open(dir).unwrap().1
}

fn refusal(dir: &Path) -> LogError {
    Log::open(dir).err().expect("it is refused")
}

fn segment(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:016x}.log"))
}

/// A log of three segments with entries 1 to 30, in batches of one.
fn three_segments(dir: &Path) {
    let (mut log, _) = Log::open_on(Directory::open(dir).unwrap(), 2_000).unwrap();
    for index in 1..=30 {
        let first = (index == 1).then(|| hard_state(1, 0));
        log.write(&[entry(index, 1)], first.as_ref()).unwrap();
    }
    drop(log);
    assert!(segment(dir, 3).exists() && !segment(dir, 4).exists());
}

#[test]
fn what_was_written_is_there_when_the_log_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raft/log");
    let (mut log, replay) = Log::open(&path).unwrap();
    assert_eq!(replay, Replay::default());
    log.write(&entries(1..=5, 1), Some(&hard_state(1, 0))).unwrap();
    log.write(&[], Some(&hard_state(2, 3))).unwrap();
    log.write(&entries(4..=4, 2), None).unwrap();
    drop(log);
    let expected = [entries(1..=3, 1), entries(4..=4, 2)].concat();
    for _ in 0..2 {
        let replay = reopened(&path);
        assert_eq!((replay.entries, replay.hard_state), (expected.clone(), hard_state(2, 3)));
    }
}

#[test]
fn a_restart_forgets_all_entries_and_keeps_the_hard_state() {
    let dir = tempfile::tempdir().unwrap();
    three_segments(dir.path());
    let (mut log, _) = Log::open(dir.path()).unwrap();
    // Behind the log's end, and within it: there its entries are of a leader that lost.
    for base in [Position { index: 900, term: 4 }, Position { index: 700, term: 5 }] {
        log.restart(base, &hard_state(6, base.index)).unwrap();
        log.write(&entries(base.index + 1..=base.index + 2, 6), None).unwrap();
        drop(log);
        let (opened, replay) = Log::open(dir.path()).unwrap();
        let rest = entries(base.index + 1..=base.index + 2, 6);
        assert_eq!(replay, Replay { base, entries: rest, hard_state: hard_state(6, base.index) });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "one segment and the lock");
        log = opened;
    }
}

#[test]
fn a_log_catches_up_with_the_snapshot_that_the_store_holds() {
    let dir = tempfile::tempdir().unwrap();
    three_segments(dir.path());
    let (mut log, mut replay) = Log::open(dir.path()).unwrap();
    let before = replay.clone();
    log.write(&[], Some(&hard_state(1, 20))).unwrap();
    replay.hard_state = hard_state(1, 20);
    log.catch_up(&mut replay, Position { index: 20, term: 1 }).unwrap();
    assert_eq!(replay.entries, before.entries, "it holds that entry itself");
    let installed = Position { index: 500, term: 3 };
    log.catch_up(&mut replay, installed).unwrap();
    let expected =
        Replay { base: installed, entries: Vec::new(), hard_state: HardState { term: 3, vote: 0, commit: 500 } };
    assert_eq!(replay, expected);
    drop(log);
    assert_eq!(reopened(dir.path()), expected);
}

#[test]
fn released_segments_go_and_the_rest_keeps_its_place_and_hard_state() {
    let dir = tempfile::tempdir().unwrap();
    three_segments(dir.path());
    let (mut log, _) = Log::open(dir.path()).unwrap();
    log.release_before(29).unwrap();
    drop(log);
    assert!(!segment(dir.path(), 1).exists() && !segment(dir.path(), 2).exists());
    let replay = reopened(dir.path());
    assert_eq!(replay.hard_state, hard_state(1, 0), "it was written once, into a segment that is gone");
    let first = replay.entries.first().unwrap().index;
    assert!((2..=29).contains(&first));
    assert_eq!(replay.base, Position { index: first - 1, term: 1 });
    assert_eq!(replay.entries, entries(first..=30, 1));
}

#[test]
fn a_torn_end_is_cut_and_written_over() {
    let dir = tempfile::tempdir().unwrap();
    three_segments(dir.path());
    let last = segment(dir.path(), 3);
    let whole = fs::read(&last).unwrap();
    for (cut, zeros) in [(1, 0), (1, 1), (20, 0), (20, 600), (0, 700)] {
        let mut bytes = whole[..whole.len() - cut].to_vec();
        bytes.extend(vec![0; zeros]);
        fs::write(&last, bytes).unwrap();
        let (mut log, replay) = Log::open(dir.path()).unwrap();
        let kept = if cut == 0 { 30 } else { 29 };
        assert_eq!(replay.entries, entries(1..=kept, 1), "cut {cut}, zeros {zeros}");
        log.write(&[entry(kept + 1, 2)], Some(&hard_state(2, 0))).unwrap();
        drop(log);
        assert_eq!(reopened(dir.path()).entries.last(), Some(&entry(kept + 1, 2)));
    }
}

#[test]
fn damage_before_valid_records_is_refused_with_file_and_offset() {
    for sequence in 1..=3 {
        let dir = tempfile::tempdir().unwrap();
        three_segments(dir.path());
        let path = segment(dir.path(), sequence);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = refusal(dir.path());
        let within = |offset: u64| usize::try_from(offset).unwrap() <= middle;
        assert!(matches!(&error, LogError::Damaged { path: at, offset } if *at == path && within(*offset)));
        assert!(error.to_string().contains("move the data directory away"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "a refusal changes nothing");
    }
}

#[test]
fn a_torn_end_of_a_segment_that_is_not_the_last_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    three_segments(dir.path());
    let path = segment(dir.path(), 2);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(refusal(dir.path()), LogError::Damaged { .. }));
    fs::remove_file(&path).unwrap();
    assert!(matches!(refusal(dir.path()), LogError::MissingSegment { path: missing } if missing == path));
}

#[test]
fn foreign_newer_and_headless_files_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    three_segments(dir.path());
    let path = segment(dir.path(), 3);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, "[Unit]\nDescription=…").unwrap();
    assert!(matches!(refusal(dir.path()), LogError::ForeignFile { .. }));
    fs::write(&path, "").unwrap();
    assert!(matches!(refusal(dir.path()), LogError::Damaged { offset: 0, .. }));
    fs::write(&path, &whole[..30]).unwrap();
    assert!(matches!(refusal(dir.path()), LogError::Damaged { offset: 0, .. }));
    let mut newer = whole.clone();
    newer[8] = 9;
    fs::write(&path, newer).unwrap();
    assert!(matches!(refusal(dir.path()), LogError::NewerFormat { version: 9, .. }));
    fs::write(&path, whole).unwrap();
    fs::write(dir.path().join("notes.log"), "").unwrap();
    assert!(matches!(refusal(dir.path()), LogError::ForeignFile { .. }));
}

#[test]
fn a_segment_under_another_ones_name_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    three_segments(dir.path());
    fs::copy(segment(dir.path(), 2), segment(dir.path(), 3)).unwrap();
    assert!(matches!(refusal(dir.path()), LogError::Damaged { offset: 0, .. }));
}

#[test]
fn a_second_agent_cannot_open_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let held = Log::open(dir.path()).unwrap();
    assert!(matches!(refusal(dir.path()), LogError::Locked { .. }));
    drop(held);
    Log::open(dir.path()).unwrap();
}

#[test]
fn a_file_where_the_directory_should_be_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "").unwrap();
    let error = refusal(&path);
    assert!(matches!(error, LogError::OpenDirectory { .. }) && error.to_string().contains("log"), "{error}");
}

#[test]
fn after_a_failed_write_nothing_is_written_any_more() {
    let power = Power::default();
    let (mut log, _) = Log::open_on(power.clone(), 1_000).unwrap();
    log.write(&entries(1..=1, 1), Some(&hard_state(1, 0))).unwrap();
    power.fail_after(1, Fault::Once(libc::EIO));
    assert!(matches!(log.write(&entries(2..=2, 1), None), Err(LogError::WriteSegment { .. })));
    assert!(matches!(log.write(&entries(2..=2, 1), None), Err(LogError::WriteAfterFailure)));
    assert!(matches!(log.release_before(1), Err(LogError::WriteAfterFailure)));
}

#[test]
fn a_full_disk_is_named_wherever_a_segment_meets_it_and_nothing_is_lost_by_it() {
    let mut met = 0;
    for failing in 0.. {
        let power = Power::default();
        let (mut log, _) = Log::open_on(power.clone(), 500).unwrap();
        power.fail_after(failing, Fault::Lasting(libc::ENOSPC));
        let refused = (1..=20).find_map(|index| Some((index, log.write(&[entry(index, 1)], None).err()?)));
        let Some((refused, error)) = refused else { break };
        let told = blixard::error_chain(&error);
        assert!(told.contains("/power/") && told.contains("has room") && told.contains("No space left"), "{told}");
        // It can't be opened either before there is room, since it is written anew.
        drop(log);
        let error = Log::open_on(power.clone(), 500).err().expect("the disk is still full");
        assert!(matches!(error, LogError::WriteSegment { .. }), "{error}");
        power.fail_after(usize::MAX, Fault::PowerCut);
        let (_, replay) = Log::open_on(power, 500).unwrap();
        let kept = replay.entries.len() as u64;
        assert!(kept == refused - 1 || kept == refused, "{kept} entries, and the write of {refused} was refused");
        assert_eq!(replay.entries, entries(1..=kept, 1), "at write {failing}");
        met += 1;
    }
    assert!(met > 50, "{met}");
}

/// What a log must hold, as far as it was acknowledged, and as far as it was asked.
#[derive(Clone, Default, Debug, PartialEq)]
struct Model {
    entries: Vec<Entry>,
    hard_state: HardState,
    released_before: u64,
}

impl Model {
    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) {
        if let Some(first) = entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(entries);
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
    }

    fn matches(&self, replay: &Replay) -> bool {
        let base = replay.base.index;
        let rest: Vec<_> = self.entries.iter().filter(|entry| entry.index > base).cloned().collect();
        let base_term = self.entries.iter().find(|entry| entry.index == base).map_or(0, |entry| entry.term);
        (base == 0 || base < self.released_before)
            && rest == replay.entries
            && base_term == replay.base.term
            && self.hard_state == replay.hard_state
    }
}

/// Writes, overwrites, commits and releases as the seed has it, until the power goes; what was acknowledged, what was asked.
fn work(log: &mut Log<Power>, model: &mut Model, random: &mut Random, steps: usize) -> Result<(), Model> {
    for _ in 0..steps {
        let last = model.entries.len() as u64;
        let HardState { term, commit, .. } = model.hard_state;
        let mut asked = model.clone();
        let done = match random.below(10) {
            0 => {
                let commit = commit + random.below(usize::try_from(last - commit).unwrap() + 1) as u64;
                asked.hard_state.commit = commit;
                log.write(&[], Some(&asked.hard_state))
            }
            1 => {
                asked.released_before = commit.max(1);
                log.release_before(commit.max(1))
            }
            2 => {
                // A new term, whose leader overwrites some of what isn't committed.
                let first = commit + 1 + random.below(usize::try_from(last - commit).unwrap() + 1) as u64;
                let batch = entries(first..=first + random.below(4) as u64, term + 1);
                asked.write(&batch, Some(&hard_state(term + 1, commit)));
                log.write(&batch, Some(&hard_state(term + 1, commit)))
            }
            _ => {
                let batch = entries(last + 1..=last + 1 + random.below(4) as u64, term.max(1));
                let state = (term == 0).then(|| hard_state(1, 0));
                asked.write(&batch, state.as_ref());
                log.write(&batch, state.as_ref())
            }
        };
        match done {
            Ok(()) => *model = asked,
            Err(_) => return Err(asked),
        }
    }
    Ok(())
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    let (mut cuts, mut half_done) = (0, 0);
    for seed in 0..4 {
        let power = Power::default();
        let (mut log, _) = Log::open_on(power.clone(), 1_500).unwrap();
        let opened = power.writes();
        work(&mut log, &mut Model::default(), &mut Random(seed), 120).unwrap();
        let writes = power.writes() - opened;
        for cut in 0..writes {
            let power = Power::default();
            let (mut log, _) = Log::open_on(power.clone(), 1_500).unwrap();
            power.cut_after(cut);
            let mut model = Model::default();
            let asked = work(&mut log, &mut model, &mut Random(seed), 120).unwrap_err();
            let mut random = Random(seed ^ (cut as u64) << 20);
            let mut disk = power.back(&mut random);
            // The power may go again while the log opens.
            disk.cut_after(random.below(8));
            if Log::open_on(disk.clone(), 1_500).is_err() {
                disk = disk.back(&mut random);
            }
            disk.cut_after(usize::MAX);
            let (_, replay) =
                Log::open_on(disk, 1_500).unwrap_or_else(|error| panic!("seed {seed} cut {cut}: {error}"));
            assert!(
                model.matches(&replay) || asked.matches(&replay),
                "seed {seed} cut {cut}: acknowledged {model:?}, found {replay:?}"
            );
            cuts += 1;
            half_done += usize::from(!model.matches(&replay));
        }
    }
    assert!(cuts > 800 && half_done > 50, "{cuts} cuts, {half_done} of which kept what was not acknowledged");
}
