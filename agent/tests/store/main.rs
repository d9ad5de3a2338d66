//! The store on a real file, beside the log that it must not get ahead of.

use std::fs;
use std::path::{Path, PathBuf};

use blixard::log::{CommitOnDisk, Log, Replay};
use blixard::store::{Durability, Loaded, Store, StoreError};
use blixard_core::driver::{Content, Driver, LogStore, Membership, Recovered, Settings};
use blixard_core::state::{Change, Table};
use blixard_core::types::RaftId;
use raft::eraftpb::{Entry, HardState};
use redb::TableDefinition;

struct Place {
    directory: tempfile::TempDir,
    log: Log,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(&directory.path().join("log")).unwrap();
        let entries: Vec<_> = (1..=100).map(|index| Entry { index, term: 1, ..Entry::default() }).collect();
        log.write(&entries, Some(&HardState { term: 1, vote: 1, commit: 0 })).unwrap();
        Self { directory, log }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("state.redb")
    }

    fn create(&self) -> Store {
        Store::create(&self.path()).unwrap()
    }

    fn committed(&mut self, index: u64) -> CommitOnDisk {
        self.log.record_commit(&HardState { term: 1, vote: 1, commit: index }).unwrap()
    }

    /// A whole store with rows, closed.
    fn fill(&mut self) -> Loaded {
        let mut store = self.create();
        let commit = self.committed(50);
        let changes: Vec<_> =
            (0..200_u8).map(|key| put(Table::ALL[usize::from(key) % Table::ALL.len()], key, 100)).collect();
        store.set_identity(b"alpha", Some(&Membership::founded_by(RaftId(1))), commit).unwrap();
        store.commit(&changes, 50, None, Durability::Now(commit)).unwrap();
        store.load().unwrap()
    }

    /// What a process that is killed now leaves behind.
    fn killed(&self) -> Store {
        let copy = self.directory.path().join("copy.redb");
        fs::copy(self.path(), &copy).unwrap();
        Store::open(&copy).unwrap().unwrap()
    }
}

fn put(table: Table, key: u8, size: usize) -> Change {
    Change { table, key: vec![key], value: Some(vec![key; size]) }
}

fn row(table: Table, key: u8) -> (Table, Vec<u8>, Vec<u8>) {
    (table, vec![key], vec![key; 3])
}

fn refusal(path: &Path) -> StoreError {
    Store::open(path).err().expect("it is refused")
}

#[test]
fn rows_the_applied_index_the_servers_and_the_identity_come_back() {
    let mut place = Place::new();
    let mut store = place.create();
    assert_eq!(store.load().unwrap(), Loaded::default());
    let membership = Membership::founded_by(RaftId(1));
    store.set_identity(b"alpha", Some(&membership), place.committed(0)).unwrap();
    let changes = [put(Table::Vms, 1, 3), put(Table::Nodes, 2, 3), put(Table::Vms, 3, 3), put(Table::Vms, 1, 3)];
    store.commit(&changes, 7, None, Durability::Lazy).unwrap();
    let removal = Change { table: Table::Vms, key: vec![3], value: None };
    store.commit(&[removal], 8, None, Durability::Now(place.committed(8))).unwrap();
    let expected = Loaded {
        rows: vec![row(Table::Nodes, 2), row(Table::Vms, 1)],
        applied: 8,
        membership,
        identity: Some(b"alpha".to_vec()),
    };
    assert_eq!(store.load().unwrap(), expected);
    drop(store);
    assert_eq!(Store::open(&place.path()).unwrap().unwrap().load().unwrap(), expected);
}

#[test]
fn a_missing_store_is_none_and_an_existing_one_is_never_created_over() {
    let place = Place::new();
    assert!(Store::open(&place.path()).unwrap().is_none());
    drop(place.create());
    assert!(matches!(Store::create(&place.path()), Err(StoreError::CreateOverExisting { .. })));
    let names = fs::read_dir(place.directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| name != "state.redb.unfinished"));
}

#[test]
fn what_an_interrupted_creation_left_is_made_anew() {
    let place = Place::new();
    fs::write(place.directory.path().join("state.redb.unfinished"), "half of it").unwrap();
    assert!(Store::open(&place.path()).unwrap().is_none());
    assert_eq!(place.create().load().unwrap(), Loaded::default());
}

#[test]
fn a_durable_commit_ahead_of_the_log_is_refused_and_writes_nothing() {
    let mut place = Place::new();
    let mut store = place.create();
    let commit = place.committed(4);
    let ahead = store.commit(&[put(Table::Vms, 1, 3)], 5, None, Durability::Now(commit));
    assert!(matches!(ahead, Err(StoreError::AheadOfLog { applied: 5, commit: 4 })));
    store.commit(&[put(Table::Vms, 1, 3)], 5, None, Durability::Lazy).unwrap();
    let identity = store.set_identity(b"alpha", None, commit);
    assert!(matches!(identity, Err(StoreError::AheadOfLog { applied: 5, commit: 4 })), "it would flush what is lazy");
    assert_eq!(place.killed().applied(), 0);
    store.commit(&[], 5, None, Durability::Now(place.committed(5))).unwrap();
    assert_eq!(place.killed().applied(), 5);
}

#[test]
fn a_crash_takes_lazy_commits_whole_and_replay_brings_them_back() {
    let mut place = Place::new();
    let mut store = place.create();
    store.commit(&[put(Table::Vms, 1, 3)], 1, None, Durability::Now(place.committed(1))).unwrap();
    let replayed = |store: &mut Store| {
        for applied in store.applied() + 1..=20 {
            store
                .commit(&[put(Table::Tasks, u8::try_from(applied).unwrap(), 3)], applied, None, Durability::Lazy)
                .unwrap();
        }
    };
    replayed(&mut store);
    let expected = store.load().unwrap();
    let mut killed = place.killed();
    let left = killed.load().unwrap();
    assert_eq!((left.applied, left.rows), (1, vec![row(Table::Vms, 1)]));
    replayed(&mut killed);
    assert_eq!(killed.load().unwrap(), expected);
}

#[test]
fn a_store_that_is_given_up_stays_where_it_was_durable() {
    let mut place = Place::new();
    let mut store = place.create();
    store.commit(&[put(Table::Vms, 1, 3)], 3, None, Durability::Now(place.committed(3))).unwrap();
    store.commit(&[put(Table::Vms, 2, 3)], 4, None, Durability::Lazy).unwrap();
    // The log may have failed, and then it doesn't hold a commit index of 4.
    drop(store);
    let store = Store::open(&place.path()).unwrap().unwrap();
    assert_eq!((store.applied(), store.load().unwrap().rows), (3, vec![row(Table::Vms, 1)]));
}

#[test]
fn a_second_agent_cannot_open_the_store() {
    let place = Place::new();
    let store = place.create();
    assert!(matches!(refusal(&place.path()), StoreError::Locked { .. }));
    drop(store);
    assert!(Store::open(&place.path()).unwrap().is_some());
}

#[test]
fn foreign_and_empty_files_are_refused_and_left_alone() {
    let place = Place::new();
    for content in ["", "SQLite format 3\0", "redb", "[Unit]\nDescription=a unit"] {
        fs::write(place.path(), content).unwrap();
        let error = refusal(&place.path());
        assert!(matches!(error, StoreError::ForeignFile { .. }), "{content:?}: {error}");
        assert!(error.to_string().contains("state.redb"), "{error}");
        assert_eq!(fs::read_to_string(place.path()).unwrap(), content);
    }
    fs::remove_file(place.path()).unwrap();
    drop(redb::Database::create(place.path()).unwrap());
    assert!(matches!(refusal(&place.path()), StoreError::ForeignFile { .. }), "a redb file of another program");
}

#[test]
fn a_store_of_another_format_is_refused_with_its_number() {
    let place = Place::new();
    drop(place.create());
    let database = redb::Database::open(place.path()).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = TableDefinition::<&str, &[u8]>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 9_u32.to_le_bytes().as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(matches!(refusal(&place.path()), StoreError::OtherFormat { version: 9, .. }));
}

#[test]
fn a_file_cut_short_is_refused_at_any_length() {
    let mut place = Place::new();
    place.fill();
    let whole = fs::read(place.path()).unwrap();
    for part in 1..20 {
        fs::write(place.path(), &whole[..whole.len() * part / 20]).unwrap();
        let error = refusal(&place.path());
        assert!(matches!(error, StoreError::Damaged { .. }), "{part} twentieths: {error:?}");
    }
}

#[test]
fn a_flipped_byte_is_refused_or_was_in_no_use() {
    let mut place = Place::new();
    let expected = place.fill();
    let whole = fs::read(place.path()).unwrap();
    let mut refused = 0;
    for offset in (0..whole.len()).step_by(whole.len() / 211) {
        let mut bytes = whole.clone();
        bytes[offset] ^= 0x55;
        fs::write(place.path(), bytes).unwrap();
        match Store::open(&place.path()) {
            Ok(store) => assert_eq!(store.unwrap().load().unwrap(), expected, "byte {offset}"),
            Err(error) => {
                assert!(error.to_string().contains("state.redb"), "byte {offset}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_that_names_the_store() {
    let place = Place::new();
    let file = place.directory.path().join("a file");
    fs::write(&file, "").unwrap();
    let path = file.join("state.redb");
    let error = Store::create(&path).err().unwrap();
    assert!(matches!(error, StoreError::Create { .. }) && error.to_string().contains("a file/state.redb"), "{error}");
    assert!(matches!(refusal(&path), StoreError::Open { .. }));
    let missing = place.directory.path().join("missing/state.redb");
    assert!(matches!(Store::create(&missing), Err(StoreError::Create { .. })));
}

const ALONE: RaftId = RaftId(1);

/// Applies all that the driver commits, each command as a row of its own, lazily.
fn turns(driver: &mut Driver, log: &mut Log, store: &mut Store) {
    while let Some(turn) = driver.turn() {
        for entry in turn.write_to(log).unwrap().advance().committed {
            let change = |command| Change { table: Table::Tasks, key: command, value: Some(Vec::new()) };
            let changes = match entry.content {
                Content::Command(command) => vec![change(command)],
                Content::Nothing | Content::Membership { .. } => Vec::new(),
            };
            store.commit(&changes, entry.position.index, None, Durability::Lazy).unwrap();
            driver.applied(entry.position.index);
        }
    }
}

#[test]
fn a_server_that_is_killed_again_and_again_goes_on_with_all_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let (logs, path) = (directory.path().join("log"), directory.path().join("state.redb"));
    let (mut log, _) = Log::open(&logs).unwrap();
    let commit = log.record_commit(&HardState::default()).unwrap();
    Store::create(&path).unwrap().set_identity(b"alpha", Some(&Membership::founded_by(ALONE)), commit).unwrap();
    drop(log);
    let mut expected = 0_u32;
    for boot in 0..10 {
        let (mut log, Replay { base, entries, hard_state }) = Log::open(&logs).unwrap();
        let mut store = Store::open(&path).unwrap().unwrap();
        let Loaded { applied, membership, .. } = store.load().unwrap();
        let recovered = Recovered { base, entries, hard_state, membership, applied };
        let mut driver = Driver::new(Settings::new(ALONE, boot), recovered).unwrap();
        driver.campaign_if_alone();
        turns(&mut driver, &mut log, &mut store);
        let held: Vec<_> = store.load().unwrap().rows.into_iter().map(|(_, key, _)| key).collect();
        assert_eq!(held, (0..expected).map(|number| number.to_be_bytes().to_vec()).collect::<Vec<_>>(), "boot {boot}");
        for number in expected..expected + 30 {
            driver.propose(number.to_be_bytes().to_vec()).unwrap();
            turns(&mut driver, &mut log, &mut store);
            if number % 50 == 0 {
                let commit = log.record_commit(driver.hard_state()).unwrap();
                store.commit(&[], store.applied(), None, Durability::Now(commit)).unwrap();
                log.release_before(store.applied()).unwrap();
            }
        }
        expected += 30;
    }
}
