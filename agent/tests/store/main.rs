//! The store on a real file, beside the log that it must not get ahead of.

#[path = "../log/power.rs"]
mod power;

mod backup;
mod failing;
mod overtaken;
mod pages;
mod together;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use blixard::log::{Log, Replay};
use blixard::store::{Beside, ChunkError, Incoming, Store, StoreError, rows_of};
use blixard_core::driver::{
    Checkpoint, CommitOnDisk, Content, Driver, Membership, Position, Recovered, Settings, Write,
};
use blixard_core::state::{Change, Table};
use blixard_core::types::RaftId;
use raft::eraftpb::HardState;
use redb::TableDefinition;

/// What a store holds, row by row.
type Loaded = blixard::store::Loaded<Rows>;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Rows(BTreeSet<(Table, Vec<u8>, Vec<u8>)>);

impl<'a> Extend<(Table, &'a [u8], &'a [u8])> for Rows {
    fn extend<T: IntoIterator<Item = (Table, &'a [u8], &'a [u8])>>(&mut self, rows: T) {
        self.0.extend(rows.into_iter().map(|(table, key, value)| (table, key.to_vec(), value.to_vec())));
    }
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("state.redb")
    }

    fn create(&self) -> Store {
        Store::create(&self.path()).unwrap()
    }

    /// A whole store with rows, closed.
    fn fill(&self) -> Loaded {
        let mut store = self.create();
        store.set_identity(b"alpha").unwrap();
        store.commit(&many_rows(), &at(50), committed(50)).unwrap();
        store.load().unwrap()
    }

    /// What a process that is killed now leaves behind.
    fn killed(&self) -> Store {
        let copy = self.directory.path().join("copy.redb");
        fs::copy(self.path(), &copy).unwrap();
        match fs::copy(snapshot_of(&self.path()), snapshot_of(&copy)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => _ = copied.unwrap(),
        }
        Store::open(&copy).unwrap().unwrap()
    }
}

/// Where a snapshot lies that has overtaken a store.
fn snapshot_of(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".snapshot");
    PathBuf::from(name)
}

/// As a log says it that holds such a commit index.
fn committed(index: u64) -> CommitOnDisk {
    let hard_state = HardState { term: 1, vote: 1, commit: index };
    Recovered { hard_state, ..Recovered::default() }.commit()
}

fn at(index: u64) -> Checkpoint {
    Checkpoint { position: Position { index, term: 1 }, membership: Membership::founded_by(RaftId(1)) }
}

fn many_rows() -> Vec<Change> {
    (0..200_u8).map(|key| put(Table::ALL[usize::from(key) % Table::ALL.len()], key, 100)).collect()
}

fn put(table: Table, key: u8, size: usize) -> Change {
    Change { table, key: vec![key], value: Some(vec![key; size].into()) }
}

fn row(table: Table, key: u8) -> (Table, Vec<u8>, Vec<u8>) {
    (table, vec![key], vec![key; 3])
}

fn refusal(path: &Path) -> StoreError {
    Store::open(path).err().expect("it is refused")
}

#[test]
fn rows_the_checkpoint_and_the_identity_come_back() {
    let place = Place::new();
    let mut store = place.create();
    assert_eq!(store.load().unwrap(), Loaded::default());
    store.set_identity(b"alpha").unwrap();
    let changes = [put(Table::Vms, 1, 3), put(Table::Nodes, 2, 3), put(Table::Vms, 3, 3), put(Table::Vms, 1, 3)];
    store.commit(&changes, &at(7), committed(7)).unwrap();
    let removal = Change { table: Table::Vms, key: vec![3], value: None };
    store.commit(&[removal], &at(8), committed(8)).unwrap();
    let expected = Loaded {
        rows: Rows([row(Table::Nodes, 2), row(Table::Vms, 1)].into()),
        checkpoint: at(8),
        installed: false,
        identity: Some(b"alpha".to_vec()),
    };
    assert_eq!(store.load().unwrap(), expected);
    assert_eq!(place.killed().load().unwrap(), expected);
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
fn a_checkpoint_ahead_of_the_log_is_refused_and_writes_nothing() {
    let place = Place::new();
    let mut store = place.create();
    let ahead = store.commit(&[put(Table::Vms, 1, 3)], &at(5), committed(4));
    assert!(matches!(ahead, Err(StoreError::AheadOfLog { applied: 5, commit: 4 })));
    assert_eq!(place.killed().load().unwrap(), Loaded::default());
    store.commit(&[put(Table::Vms, 1, 3)], &at(5), committed(5)).unwrap();
    assert_eq!(place.killed().checkpoint(), &at(5));
}

/// Copies what `from` holds into a new store beside the one at `path`, in chunks of `bytes`; also what passed by.
fn copied(from: &Store, path: &Path, bytes: usize) -> (Incoming, Rows) {
    let reader = from.reader().unwrap().unwrap();
    let (mut incoming, mut passed) =
        (Incoming::begin(Beside::path_of(path), reader.checkpoint().clone()).unwrap(), Rows::default());
    loop {
        let (chunk, next) = reader.chunk(&incoming.resume(), bytes).unwrap();
        let is_last = incoming.put(&chunk).unwrap();
        passed.extend(rows_of(&chunk).unwrap());
        assert_eq!((is_last, incoming.resume()), (next.is_none(), next.unwrap_or(incoming.resume())));
        if is_last {
            return (incoming, passed);
        }
    }
}

#[test]
fn a_snapshot_takes_the_stores_place_whole_and_leaves_who_the_node_is() {
    let (from, to) = (Place::new(), Place::new());
    let expected = from.fill();
    let source = Store::open(&from.path()).unwrap().unwrap();
    for bytes in [1, 1_000, 1 << 20] {
        let mut store = Store::open(&to.path()).unwrap().unwrap_or_else(|| to.create());
        store.set_identity(b"beta").unwrap();
        store.commit(&[put(Table::Held, 255, 3)], &at(9), committed(9)).unwrap();
        let (incoming, passed) = copied(&source, &to.path(), bytes);
        assert_eq!(passed, expected.rows);
        assert_eq!(to.killed().checkpoint(), &at(9), "nothing has changed before it is installed");
        store.install(incoming).unwrap();
        let mut installed = Loaded { identity: Some(b"beta".to_vec()), installed: true, ..expected.clone() };
        assert_eq!(store.load().unwrap(), installed);
        assert_eq!(to.killed().load().unwrap(), installed, "it is on disk");
        assert!(store.reader().unwrap().is_none(), "its rows aren't in their tables yet");
        store.commit(&[put(Table::Held, 254, 3)], &at(51), committed(51)).unwrap();
        (installed.installed, installed.checkpoint) = (false, at(51));
        installed.rows.0.insert(row(Table::Held, 254));
        assert_eq!(to.killed().load().unwrap(), installed, "the log has begun anew by now");
        assert_eq!(copied(&store, &to.path(), bytes).1, installed.rows, "others can have them");
        assert!(!snapshot_of(&to.path()).exists());
        drop(store);
        fs::remove_file(to.path()).unwrap();
    }
}

#[test]
fn a_reader_sees_its_own_checkpoint_while_the_store_goes_on() {
    let (from, to) = (Place::new(), Place::new());
    let expected = from.fill();
    let mut source = Store::open(&from.path()).unwrap().unwrap();
    let mut store = to.create();
    let reader = source.reader().unwrap().unwrap();
    let mut incoming = Incoming::begin(Beside::path_of(&to.path()), reader.checkpoint().clone()).unwrap();
    while !incoming.put(&reader.chunk(&incoming.resume(), 500).unwrap().0).unwrap() {
        let index = source.checkpoint().position.index + 1;
        let changes: Vec<_> = many_rows().into_iter().map(|change| Change { value: None, ..change }).collect();
        source.commit(&changes, &at(index), committed(index)).unwrap();
    }
    store.install(incoming).unwrap();
    let loaded: Loaded = store.load().unwrap();
    assert_eq!(loaded.rows, expected.rows);
    assert_eq!(store.checkpoint(), &at(50));
    store.commit(&[], &at(60), committed(60)).unwrap();
}

#[test]
fn the_hash_of_the_same_rows_is_what_every_agent_has_made_of_them() {
    let place = Place::new();
    let mut store = place.create();
    let rows: Vec<Change> = (0..250).map(|key| put(Table::Vms, key, 4_000)).collect();
    store.commit(&rows, &at(7), committed(7)).unwrap();
    let hash = store.reader().unwrap().unwrap().hash().unwrap();
    assert_eq!(hash.to_string(), "211ea7aa6129618a875568453123b51afa5a44f42d2ba20a43262e8db838074f");
}

#[test]
fn a_snapshot_that_lost_a_part_or_cannot_be_read_is_refused() {
    let (from, to) = (Place::new(), Place::new());
    from.fill();
    let source = Store::open(&from.path()).unwrap().unwrap();
    let reader = source.reader().unwrap().unwrap();
    let mut incoming = Incoming::begin(Beside::path_of(&to.path()), reader.checkpoint().clone()).unwrap();
    let (_, next) = reader.chunk(&[], 5_000).unwrap();
    let (rest, _) = reader.chunk(&next.unwrap(), 1 << 20).unwrap();
    assert!(matches!(incoming.put(&rest), Err(ChunkError::Incomplete { total: 200, .. })));
    let mut incoming = Incoming::begin(Beside::path_of(&to.path()), reader.checkpoint().clone()).unwrap();
    assert!(matches!(incoming.put(b"\xff\xff"), Err(ChunkError::Unreadable)));
    let unknown_table = postcard::to_stdvec(&(vec![(99_u8, vec![1_u8], vec![1_u8])], None::<u64>)).unwrap();
    assert!(matches!(incoming.put(&unknown_table), Err(ChunkError::Unreadable)));
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
    let place = Place::new();
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
    let place = Place::new();
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

/// Applies all that the driver commits, each command as a row of its own; the rows.
fn turns(driver: &mut Driver, log: &mut Log) -> Vec<Change> {
    let mut rows = Vec::new();
    while let Some(turn) = driver.turn() {
        if let Some(durable) = Write::write_all(turn.write.into_iter().collect(), log).unwrap() {
            assert!(driver.persisted(durable).is_empty(), "there is nobody to send to");
        }
        for entry in turn.committed {
            driver.applied(entry.position.index);
            if let Content::Command(key) = entry.content {
                rows.push(Change { table: Table::Tasks, key, value: Some([].into()) });
            }
        }
    }
    rows
}

#[test]
fn a_server_that_is_killed_again_and_again_goes_on_with_all_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let (logs, path) = (directory.path().join("log"), directory.path().join("state.redb"));
    drop(Store::create(&path).unwrap());
    let mut expected = 0_u32;
    for boot in 0..10 {
        let (mut log, Replay { base, entries, hard_state }) = Log::open(&logs).unwrap();
        let mut store = Store::open(&path).unwrap().unwrap();
        let Loaded { checkpoint, rows, .. } = store.load().unwrap();
        let applied = checkpoint.position.index;
        let recovered = Recovered { base, entries, hard_state, membership: Membership::founded_by(ALONE), applied };
        let mut driver = Driver::new(Settings { keep_bytes: 0, ..Settings::new(ALONE, boot) }, recovered).unwrap();
        driver.campaign_if_alone();
        let mut changes = turns(&mut driver, &mut log);
        let replayed = changes.iter().map(|change| &change.key);
        let held: Vec<_> = rows.0.iter().map(|(_, key, _)| key).chain(replayed).cloned().collect();
        assert_eq!(held, (0..expected).map(|number| number.to_be_bytes().to_vec()).collect::<Vec<_>>(), "boot {boot}");
        for number in expected..expected + 30 {
            driver.propose(number.to_be_bytes().to_vec()).unwrap();
            changes.extend(turns(&mut driver, &mut log));
            if number % 50 == 0 {
                let record = driver.record_commit();
                let durable = Write::write_all(vec![record], &mut log).unwrap().unwrap();
                let commit = durable.commit();
                let _ = driver.persisted(durable);
                let status = driver.status();
                let position = Position { index: status.applied, term: status.term };
                let checkpoint = Checkpoint { position, membership: status.membership };
                store.commit(&changes, &checkpoint, commit).unwrap();
                changes.clear();
                log.release_before(driver.checkpointed(checkpoint)).unwrap();
            }
        }
        expected += 30;
    }
}
