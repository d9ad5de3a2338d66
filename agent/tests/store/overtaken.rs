//! A store that a snapshot has overtaken: what it holds whatever is in its place, and whenever the power goes or the disk
//! fails, from the first byte of the snapshot until its rows are in their tables.

use std::fs;

use blixard::log::{Log, Replay};
use blixard::store::{Beside, Incoming, Store, StoreError};
use blixard_core::driver::{Checkpoint, Driver, LogStore as _, Membership, Position, Recovered, Settings};
use blixard_core::state::{Change, Table};
use blixard_core::types::RaftId;
use raft::eraftpb::{Entry, HardState};

use super::pages::Place as Home;
use super::power::{Fault, Power, Random};
use super::{Loaded, Place, Rows, at, committed, copied, put, row, snapshot_of};

/// A store that a snapshot has overtaken, closed, and what it holds by that.
fn overtaken() -> (Place, Loaded) {
    let (from, to) = (Place::new(), Place::new());
    let expected = Loaded { installed: true, identity: Some(b"beta".to_vec()), ..from.fill() };
    let source = Store::open(&from.path()).unwrap().unwrap();
    let mut store = to.create();
    store.set_identity(b"beta").unwrap();
    store.commit(&[put(Table::Held, 255, 3)], &at(9), committed(9)).unwrap();
    let (incoming, _) = copied(&source, &to.path(), 1_000);
    store.install(incoming).unwrap();
    (to, expected)
}

#[test]
fn a_snapshot_that_was_not_whole_counts_for_nothing_and_goes_at_the_next_start() {
    let (place, expected) = overtaken();
    let names = ["state.redb.incoming", "state.redb.unfinished"].map(|name| place.directory.path().join(name));
    for name in &names {
        fs::write(name, "half of it").unwrap();
    }
    Store::remove_unfinished(&Beside::path_of(&place.path())).unwrap();
    assert!(!names.iter().any(|name| name.exists()));
    assert_eq!(Store::open(&place.path()).unwrap().unwrap().load().unwrap(), expected);
}

#[test]
fn a_snapshot_whose_rows_are_in_their_tables_counts_for_nothing() {
    let (place, _) = overtaken();
    let snapshot = fs::read(snapshot_of(&place.path())).unwrap();
    let mut store = Store::open(&place.path()).unwrap().unwrap();
    for index in [50, 51] {
        store.commit(&[], &at(index), committed(index)).unwrap();
        let expected = store.load::<Rows>().unwrap();
        // The power went before it was removed.
        fs::write(snapshot_of(&place.path()), &snapshot).unwrap();
        drop(store);
        store = Store::open(&place.path()).unwrap().unwrap();
        assert_eq!((store.load().unwrap(), expected.installed), (expected, false));
        assert!(!snapshot_of(&place.path()).exists());
    }
}

#[test]
fn a_snapshot_stays_where_its_rows_do_not_come_into_their_tables() {
    let (place, expected) = overtaken();
    let in_the_way = place.directory.path().join("state.redb.unfinished");
    fs::create_dir(&in_the_way).unwrap();
    let mut store = Store::open(&place.path()).unwrap().unwrap();
    let failed = store.commit(&[], &at(50), committed(50));
    assert!(matches!(failed, Err(StoreError::Create { .. })), "{failed:?}");
    fs::remove_dir(in_the_way).unwrap();
    drop(store);
    let mut store = Store::open(&place.path()).unwrap().unwrap();
    assert_eq!(store.load().unwrap(), expected);
    store.commit(&[], &at(50), committed(50)).unwrap();
    assert_eq!(store.load().unwrap(), Loaded { installed: false, ..expected });
}

#[test]
fn a_later_snapshot_takes_the_place_of_one_whose_rows_were_not_in_their_tables() {
    let (place, expected) = overtaken();
    let source = Place::new();
    let mut later = source.create();
    later.commit(&[put(Table::Vms, 1, 3)], &at(60), committed(60)).unwrap();
    let mut store = Store::open(&place.path()).unwrap().unwrap();
    let (incoming, _) = copied(&later, &place.path(), 1_000);
    store.install(incoming).unwrap();
    let rows = Rows([row(Table::Vms, 1)].into());
    assert_eq!(store.load().unwrap(), Loaded { rows, checkpoint: at(60), ..expected });
}

#[test]
fn a_snapshot_that_is_cut_short_or_altered_anywhere_is_refused() {
    let (place, _) = overtaken();
    let snapshot = snapshot_of(&place.path());
    let whole = fs::read(&snapshot).unwrap();
    let cut = (0..whole.len()).step_by(whole.len() / 97).map(|length| whole[..length].to_vec());
    let altered = (0..whole.len()).step_by(whole.len() / 211).map(|offset| {
        let mut bytes = whole.clone();
        bytes[offset] ^= 0x55;
        bytes
    });
    for bytes in cut.chain(altered) {
        fs::write(&snapshot, bytes).unwrap();
        let loaded = Store::open(&place.path()).and_then(|store| store.unwrap().load::<Rows>());
        let error = loaded.expect_err("it is not what was written");
        assert!(matches!(error, StoreError::Damaged { .. } | StoreError::OtherFormat { .. }), "{error}");
        assert!(error.to_string().contains("state.redb.snapshot"), "{error}");
    }
    fs::write(&snapshot, &whole).unwrap();
    assert!(Store::open(&place.path()).unwrap().unwrap().load::<Rows>().is_ok());
}

#[test]
fn a_snapshot_of_a_newer_agent_is_refused_as_one_and_not_as_damaged() {
    let (place, _) = overtaken();
    let snapshot = snapshot_of(&place.path());
    let whole = fs::read(&snapshot).unwrap();
    let refusal = |bytes: &[u8]| {
        fs::write(&snapshot, bytes).unwrap();
        let loaded = Store::open(&place.path()).and_then(|store| store.unwrap().load::<Rows>());
        loaded.expect_err("it is not of this agent").to_string()
    };
    let mut other_format = whole.clone();
    let version = "blixard snapshot\n".len();
    other_format[version] += 1;
    let told = refusal(&other_format);
    assert!(told.contains("format 2") && told.contains("start the agent that wrote it"), "{told}");
    let unknown_table = postcard::to_stdvec(&(vec![(99_u8, vec![1_u8], vec![1_u8])], Some(1_u64))).unwrap();
    let length = u32::try_from(unknown_table.len()).unwrap().to_le_bytes();
    let record = [&length[..], &crc32c::crc32c(&unknown_table).to_le_bytes(), &unknown_table].concat();
    let told = refusal(&[whole, record].concat());
    assert!(told.contains("newer agent"), "{told}");
}

#[test]
fn a_snapshot_without_the_store_that_it_belongs_to_is_refused() {
    let (place, expected) = overtaken();
    let away = place.directory.path().join("away");
    fs::rename(place.path(), &away).unwrap();
    let error = Store::open(&place.path()).err().expect("half of it is missing");
    assert!(matches!(error, StoreError::SnapshotAlone { .. }), "{error}");
    assert!(error.to_string().contains("state.redb.snapshot") && error.to_string().contains("put that"), "{error}");
    fs::rename(away, place.path()).unwrap();
    assert_eq!(Store::open(&place.path()).unwrap().unwrap().load().unwrap(), expected);
}

/// The disk of a follower.
struct Machine {
    power: Power,
    home: Home,
}

/// A follower whose log and store are open.
struct Follower {
    log: Log<Power>,
    store: Store<Home>,
    replay: Replay,
    loaded: Loaded,
}

/// How far a follower has come, each on its disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Step {
    Behind,
    /// The snapshot is what its store holds.
    Overtaken,
    /// The log goes on behind it.
    Acknowledged,
    /// The rows are in their tables, with what was applied since.
    InTables,
}

const BEFORE: u64 = 9;
const SNAPSHOT: u64 = 50;
const AFTER: u64 = 53;

fn checkpoint(index: u64) -> Checkpoint {
    Checkpoint { membership: Membership { voters: [1, 2, 3].map(RaftId).into(), ..Membership::default() }, ..at(index) }
}

fn log_entries(range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    range.map(|index| Entry { index, term: 1, data: vec![7; 100], ..Entry::default() }).collect()
}

fn hard_state(commit: u64) -> HardState {
    HardState { term: 1, vote: 1, commit }
}

/// What was applied behind the snapshot.
fn applied_since() -> Vec<Change> {
    vec![put(Table::Held, 254, 3)]
}

impl Machine {
    /// One whose store and log end before the snapshot.
    fn behind() -> Self {
        let power = Power::default();
        let home = Home::new(&power);
        let mut store = Store::create_in(home.clone()).unwrap();
        store.set_identity(b"beta").unwrap();
        store.commit(&[put(Table::Vms, 255, 3)], &checkpoint(BEFORE), committed(BEFORE)).unwrap();
        let (mut log, _) = Log::open_on(power.clone(), 1_500).unwrap();
        log.write(&log_entries(1..=12), Some(&hard_state(BEFORE))).unwrap();
        Self { power, home }
    }

    fn back(&self, random: &mut Random) -> Self {
        let power = self.power.back(random);
        let home = self.home.back(&power, random);
        Self { power, home }
    }

    /// Opens both, as the agent does; raft takes what they hold.
    fn start(&self) -> Result<Follower, String> {
        let told = |error: &dyn std::error::Error| blixard::error_chain(error);
        Store::remove_unfinished(&self.home).map_err(|error| told(&error))?;
        let (mut log, mut replay) = Log::open_on(self.power.clone(), 1_500).map_err(|error| told(&error))?;
        let store = Store::open_in(self.home.clone()).map_err(|error| told(&error))?.expect("it was created");
        let loaded: Loaded = store.load().map_err(|error| told(&error))?;
        if loaded.installed {
            log.catch_up(&mut replay, loaded.checkpoint.position).map_err(|error| told(&error))?;
        }
        let recovered = Recovered {
            base: replay.base,
            entries: replay.entries.clone(),
            hard_state: replay.hard_state.clone(),
            membership: loaded.checkpoint.membership.clone(),
            applied: loaded.checkpoint.position.index,
        };
        Driver::new(Settings::new(RaftId(1), 7), recovered).map_err(|error| told(&error))?;
        Ok(Follower { log, store, replay, loaded })
    }
}

impl Follower {
    /// How far it has come; all that belongs to it is there.
    fn step(&self, source: &Loaded, at: &str) -> Step {
        let Loaded { rows, checkpoint: held, installed, identity } = &self.loaded;
        assert_eq!(identity.as_deref(), Some(b"beta".as_slice()), "{at}");
        let last = self.replay.entries.last().map_or(self.replay.base.index, |entry| entry.index);
        let mut all = source.rows.clone();
        match held.position.index {
            BEFORE => {
                assert_eq!((rows, last, *installed), (&Rows([row(Table::Vms, 255)].into()), 12, false), "{at}");
                Step::Behind
            }
            SNAPSHOT => {
                assert_eq!((rows, *installed), (&all, true), "{at}");
                assert!(last == SNAPSHOT || last == AFTER, "{at}: the log ends at {last}");
                if last == AFTER { Step::Acknowledged } else { Step::Overtaken }
            }
            AFTER => {
                all.0.insert(row(Table::Held, 254));
                assert_eq!((rows, last, *installed), (&all, AFTER, false), "{at}");
                Step::InTables
            }
            index => panic!("{at}: nothing was ever written at {index}"),
        }
    }

    /// Goes on from that step to the end; `reached` is told of each that is on disk.
    fn go_on(&mut self, from: Step, source: &Store, mut reached: impl FnMut(Step)) -> Result<(), String> {
        let told = |error: &dyn std::error::Error| blixard::error_chain(error);
        if from < Step::Overtaken {
            let reader = source.reader().unwrap().unwrap();
            let begun = Incoming::begin(self.store.home().clone(), checkpoint(SNAPSHOT));
            let mut incoming = begun.map_err(|error| told(&error))?;
            while !incoming.put(&reader.chunk(&incoming.resume(), 2_000).unwrap().0).map_err(|error| told(&error))? {}
            self.store.install(incoming).map_err(|error| told(&error))?;
            reached(Step::Overtaken);
            let base = Position { index: SNAPSHOT, term: 1 };
            self.log.restart(base, &hard_state(SNAPSHOT)).map_err(|error| told(&error))?;
        }
        if from < Step::Acknowledged {
            let entries = log_entries(SNAPSHOT + 1..=AFTER);
            self.log.write(&entries, Some(&hard_state(AFTER))).map_err(|error| told(&error))?;
            reached(Step::Acknowledged);
        }
        if from < Step::InTables {
            let kept = self.store.commit(&applied_since(), &checkpoint(AFTER), committed(AFTER));
            kept.map_err(|error| told(&error))?;
            reached(Step::InTables);
        }
        Ok(())
    }
}

/// Has every write fail like that, in turn, with what `random` leaves of the disk; how often each step was found then.
/// Every other seed has the server start before the power goes, on what the system shows.
fn every_write(fault: fn(usize) -> Fault, seed: u64, found: &mut [u32; 4], failures_of_starts: &mut u32) {
    let place = Place::new();
    let expected = place.fill();
    let source = Store::open(&place.path()).unwrap().unwrap();
    let machine = Machine::behind();
    let mut follower = machine.start().unwrap();
    let before = machine.power.writes();
    follower.go_on(Step::Behind, &source, |_| {}).unwrap();
    let writes = machine.power.writes() - before;
    for failing in 0..writes {
        let at = format!("write {failing} of {writes}, {:?}, seed {seed}", fault(failing));
        let machine = Machine::behind();
        let mut follower = machine.start().unwrap();
        let mut reached = Step::Behind;
        machine.power.fail_after(failing, fault(failing));
        follower.go_on(Step::Behind, &source, |step| reached = step).expect_err(&at);
        drop(follower);
        if seed % 2 == 1 {
            machine.power.fail_after(usize::MAX, Fault::PowerCut);
            let shown = machine.start().unwrap_or_else(|error| panic!("{at}: {error}")).step(&expected, &at);
            assert!(shown >= reached, "{at}: {reached:?} was on disk, and the system shows {shown:?}");
            // The leader may be told of it, and the log be cut behind it.
            reached = shown;
        }
        let mut random = Random(seed << 20 ^ failing as u64);
        let mut machine = machine.back(&mut random);
        // It may happen again while it starts.
        machine.power.fail_after(random.below(8), fault(failing));
        if machine.start().is_err() {
            *failures_of_starts += 1;
            machine = machine.back(&mut random);
        }
        machine.power.fail_after(usize::MAX, Fault::PowerCut);
        let mut follower = machine.start().unwrap_or_else(|error| panic!("{at}: {error}"));
        let step = follower.step(&expected, &at);
        assert!(step >= reached, "{at}: {reached:?} was on disk, and it is {step:?}");
        found[step as usize] += 1;
        // It is as good as it was.
        follower.go_on(step, &source, |_| {}).unwrap_or_else(|error| panic!("{at}: {error}"));
        drop(follower);
        let end = machine.back(&mut random).start().unwrap().step(&expected, &at);
        assert_eq!(end, Step::InTables, "{at}");
    }
}

fn no_failure_loses_a_snapshot(fault: fn(usize) -> Fault) {
    let (mut found, mut failures_of_starts) = ([0; 4], 0);
    for seed in 0..6 {
        every_write(fault, seed, &mut found, &mut failures_of_starts);
    }
    println!("{found:?}, {failures_of_starts}");
    assert!(found.iter().all(|times| *times > 4) && failures_of_starts > 20, "{found:?}, {failures_of_starts}");
}

#[test]
fn no_power_cut_loses_a_snapshot_or_what_was_acknowledged_behind_it() {
    no_failure_loses_a_snapshot(|_| Fault::PowerCut);
}

#[test]
fn no_failing_disk_loses_a_snapshot_or_what_was_acknowledged_behind_it() {
    no_failure_loses_a_snapshot(|failing| Fault::Lasting([libc::ENOSPC, libc::EIO, libc::EROFS][failing % 3]));
}

#[test]
fn a_store_that_a_start_has_found_is_there_after_a_power_cut() {
    let (mut failing, mut created) = (0, false);
    while !created {
        let power = Power::default();
        let home = Home::new(&power);
        power.cut_after(failing);
        created = Store::create_in(home.clone()).is_ok();
        power.cut_after(usize::MAX);
        let found = Store::open_in(home.clone()).unwrap().is_some();
        for seed in 0..8 {
            let mut random = Random(seed << 20 ^ failing as u64);
            let power = power.back(&mut random);
            let again = Store::open_in(home.back(&power, &mut random)).unwrap().is_some();
            assert!(again || !found, "write {failing}, seed {seed}: it was there, and is gone");
        }
        failing += 1;
    }
}
