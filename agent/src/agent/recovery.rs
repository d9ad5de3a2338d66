//! A cluster that begins anew on this host while no agent runs here: from what a survivor has of it, or from a backup.
//!
//! The new data is made whole beside the old, and then takes its place at once: a crash leaves the one or the other.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use blixard_core::command::{DecodeError, Entry, NewNode};
use blixard_core::driver::{LogStore as _, Position, Recovered};
use blixard_core::state::{BeginError, Beginner, Loading, Renewal, RowError, State};
use blixard_core::types::{ClusterEpoch, ClusterId, Level, NodeId, NodeName, NodeRole, RaftId, Term};
use rustix::fs::{CWD, RenameFlags};

use super::data::{self, Data, Replica};
use super::{AgentError, make_dir, raft_dir, secrets};
use crate::config::Config;
use crate::identity::{self, Authority, AuthorityError, IdentityError, NodeKey, SecretError, Secrets};
use crate::log::{Log, LogError};
use crate::node::{NodeError, directory_of, now};
use crate::seat::{Seat, SeatError};
use crate::store::{BackupError, BackupHead, Store, StoreError, read_backup};

/// Why a cluster does not begin anew on this host; its data is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(
        "there is no cluster's data in {path}: see whether node.data_dir is right, and run this on a host that has it"
    )]
    Blank { path: PathBuf },
    #[error("this host is no server, so it has only what it has to do itself, and not the state: run this on a server")]
    NoServer,
    #[error(transparent)]
    Open(AgentError),
    #[error("cannot do without the cluster secret; name a file that has it with --secret-file")]
    Secret(#[source] SecretError),
    #[error("cannot tell who this host is")]
    Seat(#[source] SeatError),
    #[error("this host is configured without the cluster secret: name a file that has it with --secret-file")]
    NoSecret,
    #[error("cannot issue this host's certificate with the cluster secret")]
    Issue(#[source] AuthorityError),
    #[error("cannot make this host's identity")]
    Identity(#[source] IdentityError),
    #[error("cannot read log entry {index}")]
    Decode { index: u64, source: DecodeError },
    #[error(
        "{path} holds what this host has of a cluster: a backup is restored on a host that is in none; move that \
         directory away, or restore on another host"
    )]
    NotBlank { path: PathBuf },
    #[error(
        "this host is configured as a worker, and the cluster begins anew with one server, this one: restore on another host, \
         or set node.role to auto"
    )]
    Worker,
    #[error("cannot use the backup {path}")]
    Backup { path: PathBuf, source: BackupError },
    #[error("cannot make a state of the backup {path}")]
    Rows { path: PathBuf, source: RowError },
    #[error(transparent)]
    Unfit(NodeError),
    #[error(transparent)]
    Begin(BeginError),
    #[error(
        "{path} is there already: it holds this host's data of an earlier epoch, or what a try made that was cut short; move it \
         away"
    )]
    Kept { path: PathBuf },
    #[error("cannot write the new log")]
    WriteLog(#[source] LogError),
    #[error("cannot write the new store")]
    WriteStore(#[source] StoreError),
    #[error("cannot make the new data in {path}: see that its disk works and has room")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot put {path} in the place of the old data: its file system has to exchange two directories")]
    Exchange { path: PathBuf, source: io::Error },
}

/// What this host has of a cluster, found fit to begin it anew. While it is held, no agent starts here.
pub struct Survivor {
    config: Config,
    dir: PathBuf,
    /// Held open, so that no agent takes them.
    _files: (Log, Store),
    recovered: Recovered,
    seat: Seat,
    raft: RaftId,
    /// The state with all of the log in it.
    state: State,
    authority: Authority,
}

/// Reads all that this host has of its cluster. `understands` is the newest level of this agent.
///
/// # Errors
/// When another agent runs, or the cluster can't begin anew from it.
pub fn examine(config: Config, understands: Level) -> Result<Survivor, RecoveryError> {
    let secrets = read_secrets(&config)?;
    let (Data { dir, store, replica, .. }, seat) = open(&config)?;
    let (replica, raft) = replica.zip(seat.raft).ok_or(RecoveryError::NoServer)?;
    let Replica { log, recovered, mut state } = replica;
    for (Position { index, term }, command) in recovered.unapplied() {
        let entry = Entry::decode(command).map_err(|source| RecoveryError::Decode { index, source })?;
        state.apply(index, Term(term), &entry);
    }
    if let Some(level) = state.level().filter(|level| *level > understands) {
        return Err(RecoveryError::Unfit(NodeError::TooOld { level, understands }));
    }
    if let Some(diverged) = state.divergence(seat.identity.node) {
        return Err(RecoveryError::Unfit(NodeError::Diverged(diverged)));
    }
    let cluster = state.cluster().ok_or_else(|| RecoveryError::Blank { path: dir.clone() })?;
    let authority = Authority::unseal(&cluster.sealed_ca_key, &secrets).map_err(RecoveryError::Issue)?;
    Ok(Survivor { config, dir, _files: (log, store), recovered, seat, raft, state, authority })
}

impl Survivor {
    pub fn cluster(&self) -> ClusterId {
        self.seat.identity.cluster
    }

    pub fn node(&self) -> NodeId {
        self.seat.identity.node
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Index of the last log entry, and how many entries aren't known to be committed.
    pub fn entries(&self) -> (u64, u64) {
        let anew = self.recovered.anew(self.raft);
        (anew.applied - 1, self.recovered.uncommitted())
    }

    /// Where the data is kept that the new one takes the place of.
    pub fn kept(&self) -> PathBuf {
        kept(&self.dir, self.seat.identity.epoch)
    }

    /// Makes a cluster of this one node of it; which epoch that is.
    ///
    /// # Errors
    /// When it can't be; then this host's data is as it was.
    pub fn recover(mut self) -> Result<ClusterEpoch, RecoveryError> {
        let kept = self.kept();
        let begun = self.state.begin_epoch(Renewal::Recovered, Beginner::Survivor(self.node()), draw_tag(), now());
        let ids = begun.map_err(RecoveryError::Begin)?;
        let key = self.seat.identity.key().map_err(RecoveryError::Identity)?;
        let Self { config, dir, recovered, state, authority, .. } = &self;
        let seat = seat_of(state, authority, &key, ids)?;
        let begun = Begun { state, seat: &seat, recovered: recovered.anew(ids.1) };
        take_place(config, dir, &kept, |log, store| begun.write(config, log, store))?;
        Ok(seat.identity.epoch)
    }
}

/// What a backup holds, found fit to begin a cluster of it on this host. While it is held, no agent starts here.
pub struct Restorable {
    config: Config,
    data: Data,
    head: BackupHead,
    state: State,
    authority: Authority,
}

/// Reads all of a backup, for this host, which has to be a blank one.
///
/// # Errors
/// When this host is a member of a cluster or declared a worker, or the backup isn't whole, or of a newer agent, or needs
/// another secret.
pub fn examine_backup(file: &Path, config: Config, understands: Level) -> Result<Restorable, RecoveryError> {
    if config.role() == NodeRole::Worker {
        return Err(RecoveryError::Worker);
    }
    let secrets = read_secrets(&config)?;
    let dir = raft_dir(&config);
    make_dir(&config.node.data_dir, 0o755).map_err(RecoveryError::Open)?;
    make_dir(&dir, 0o700).map_err(RecoveryError::Open)?;
    let data = Data::open(dir).map_err(RecoveryError::Open)?;
    if data.kept.as_deref().and_then(Seat::cluster_of).is_some() {
        return Err(RecoveryError::NotBlank { path: data.dir });
    }
    let failed = |source| RecoveryError::Backup { path: file.to_owned(), source };
    let (mut loading, mut level) = (Loading::default(), Level(0));
    let read = read_backup(open_backup(file)?, |head| level = head.level, |row| loading.extend([row]));
    if level > understands {
        return Err(RecoveryError::Unfit(NodeError::TooOld { level, understands }));
    }
    let head = read.map_err(failed)?;
    let rows = |source| RecoveryError::Rows { path: file.to_owned(), source };
    let state = loading.finish().map_err(rows)?;
    let cluster = state.cluster().ok_or(RecoveryError::Begin(BeginError::NoCluster))?;
    let authority = Authority::unseal(&cluster.sealed_ca_key, &secrets).map_err(RecoveryError::Issue)?;
    Ok(Restorable { config, data, head, state, authority })
}

/// Reads all of a backup, and says of what it is.
///
/// # Errors
/// When it isn't whole.
pub fn verify(file: &Path) -> Result<BackupHead, RecoveryError> {
    let failed = |source| RecoveryError::Backup { path: file.to_owned(), source };
    read_backup(open_backup(file)?, |_| (), |_| ()).map_err(failed)
}

fn open_backup(file: &Path) -> Result<io::BufReader<File>, RecoveryError> {
    let failed = |source| RecoveryError::Backup { path: file.to_owned(), source: BackupError::Read(source) };
    Ok(io::BufReader::new(File::open(file).map_err(failed)?))
}

impl Restorable {
    pub fn head(&self) -> &BackupHead {
        &self.head
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn cluster(&self) -> ClusterId {
        self.authority.cluster()
    }

    /// This host's name.
    pub fn name(&self) -> &NodeName {
        self.config.name()
    }

    /// Makes a cluster of this host alone of it; which epoch that is. With `replaces`, a member of its name is dead.
    ///
    /// # Errors
    /// When it can't be; then this host is as blank as it was.
    pub fn restore(mut self, replaces: bool) -> Result<ClusterEpoch, RecoveryError> {
        let key = NodeKey::generate().map_err(RecoveryError::Identity)?;
        let request = key.request().map_err(RecoveryError::Identity)?;
        let own = self.config.own();
        let host = NewNode {
            name: own.name.clone(),
            address: own.address.clone(),
            key: Authority::key_of(&request).map_err(RecoveryError::Issue)?,
            understands: Level::NEWEST,
            role: self.config.role(),
        };
        let beginner = Beginner::Newcomer { host: &host, replaces };
        let ids =
            self.state.begin_epoch(Renewal::Restored, beginner, draw_tag(), now()).map_err(RecoveryError::Begin)?;
        let Self { config, data, head, state, authority } = &self;
        let seat = seat_of(state, authority, &key, ids)?;
        let recovered = Recovered { base: head.position, ..Recovered::default() }.anew(ids.1);
        let blank = data.dir.with_extension("blank");
        let begun = Begun { state, seat: &seat, recovered };
        take_place(config, &data.dir, &blank, |log, store| begun.write(config, log, store))?;
        fs::remove_dir_all(&blank).map_err(|source| RecoveryError::Write { path: blank, source })?;
        Ok(seat.identity.epoch)
    }
}

/// What a node begins an epoch with.
struct Begun<'a> {
    state: &'a State,
    seat: &'a Seat,
    recovered: Recovered,
}

impl Begun<'_> {
    fn write(&self, config: &Config, log: &mut Log, store: &mut Store) -> Result<(), RecoveryError> {
        let Self { state, seat, recovered } = self;
        log.restart(recovered.base, &recovered.hard_state).map_err(RecoveryError::WriteLog)?;
        seat.keep(config, store).map_err(RecoveryError::Seat)?;
        let committed = store.commit(&state.all_rows(), &recovered.checkpoint(), recovered.commit());
        committed.map_err(RecoveryError::WriteStore)
    }
}

/// Puts aside what this host has of its cluster, so that its agent joins anew as the node that it was; where it is then.
///
/// # Errors
/// When another agent runs, or this host is no member of a cluster.
pub fn rejoin(config: &Config) -> Result<PathBuf, RecoveryError> {
    let (data, seat) = open(config)?;
    let kept = kept(&data.dir, seat.identity.epoch);
    take_place(config, &data.dir, &kept, |_, store| seat.keep_to_rejoin(store).map_err(RecoveryError::Seat))?;
    Ok(kept)
}

/// The data of a member.
fn open(config: &Config) -> Result<(Data, Seat), RecoveryError> {
    let dir = raft_dir(config);
    let blank = || RecoveryError::Blank { path: dir.clone() };
    if !dir.join(data::STORE).exists() {
        return Err(blank());
    }
    let data = Data::open(dir.clone()).map_err(RecoveryError::Open)?;
    let seat = data.kept.as_ref().map(|kept| Seat::of_kept(config, kept)).transpose().map_err(RecoveryError::Seat)?;
    Ok((data, seat.flatten().ok_or_else(blank)?))
}

fn read_secrets(config: &Config) -> Result<Secrets, RecoveryError> {
    secrets(config).map_err(RecoveryError::Secret)?.ok_or(RecoveryError::NoSecret)
}

fn draw_tag() -> u32 {
    u32::from_be_bytes(identity::random())
}

/// Of the node that begins the epoch which the state is in.
fn seat_of(
    state: &State,
    authority: &Authority,
    key: &NodeKey,
    (node, raft): (NodeId, RaftId),
) -> Result<Seat, RecoveryError> {
    let epoch = state.cluster().expect("it has begun anew").epoch;
    let request = key.request().map_err(RecoveryError::Identity)?;
    let issued = authority.issue_alone(&request, epoch, node).map_err(RecoveryError::Issue)?;
    let identity = key.identify(authority.cluster(), epoch, node, issued).map_err(RecoveryError::Identity)?;
    Ok(Seat { identity, raft: Some(raft), spent: raft, members: directory_of(state), founding: None })
}

/// Lets new data take the place of what is in `dir`, which is in `kept` then; `fill` is given a log and a store that are
/// empty.
fn take_place(
    config: &Config,
    dir: &Path,
    kept: &Path,
    fill: impl FnOnce(&mut Log, &mut Store) -> Result<(), RecoveryError>,
) -> Result<(), RecoveryError> {
    if kept.exists() {
        return Err(RecoveryError::Kept { path: kept.to_owned() });
    }
    let unfinished = dir.with_extension("unfinished");
    let failed = |source| RecoveryError::Write { path: unfinished.clone(), source };
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    make_dir(&unfinished, 0o700).map_err(RecoveryError::Open)?;
    // They are locked until all is in its place, so that no agent takes it meanwhile.
    let (mut log, _) = Log::open(&unfinished.join(data::LOG)).map_err(RecoveryError::WriteLog)?;
    let mut store = Store::create(&unfinished.join(data::STORE)).map_err(RecoveryError::WriteStore)?;
    fill(&mut log, &mut store)?;
    let sync = |dir: &Path| File::open(dir)?.sync_all();
    sync(&unfinished).map_err(failed)?;
    // Under the name that the old data gets: the exchange is all that is left to do.
    fs::rename(&unfinished, kept).map_err(failed)?;
    let exchange = || {
        sync(&config.node.data_dir)?;
        Ok(rustix::fs::renameat_with(CWD, kept, CWD, dir, RenameFlags::EXCHANGE)?)
    };
    if let Err(source) = exchange() {
        // It is in nobody's way but another try's.
        let _ = fs::remove_dir_all(kept);
        return Err(RecoveryError::Exchange { path: kept.to_owned(), source });
    }
    sync(&config.node.data_dir).map_err(failed)
}

/// Where the data of an epoch is kept that isn't this host's any more.
fn kept(dir: &Path, epoch: ClusterEpoch) -> PathBuf {
    dir.with_extension(format!("epoch-{}", epoch.number))
}
