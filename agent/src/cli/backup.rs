//! The verbs that write a backup, and begin a cluster of one.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use blixard_core::state::BeginError;
use blixard_core::types::Level;
use clap::Args;
use rustix::fs::{CWD, RenameFlags};

use super::ask::{AskError, Asked, look, print};
use super::client::connect;
use super::cluster::{Offline, absent, confirm, short};
use super::table::age;
use super::{Reading, show};
use crate::agent::recovery::{self, RecoveryError, Restorable};
use crate::api::proto;

/// Why there is no backup; nothing has the name that it was to have.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{path} is there already, and no backup is replaced by another: name another file")]
    Exists { path: PathBuf },
    #[error("cannot write the backup {path}: see that its directory is there and has room")]
    Write { path: PathBuf, source: io::Error },
    #[error("the backup was written, and can't be read back as it was")]
    Verify(#[source] RecoveryError),
}

#[derive(Args, Debug)]
pub struct BackupArgs {
    /// Where it is written to; nothing may be there
    file: PathBuf,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// A backup
    file: PathBuf,
    #[command(flatten)]
    offline: Offline,
    /// The backup has a member of this host's name: nothing of that one runs any more, and its volumes are lost
    #[arg(long)]
    replace: bool,
    /// The first characters of the cluster's id, as status shows them: what is typed where this isn't given
    #[arg(long, value_name = "CLUSTER")]
    confirm: Option<String>,
}

pub async fn backup(args: &BackupArgs) -> Asked {
    let BackupArgs { file, reading } = args;
    let failed = |source| AskError::Backup(BackupError::Write { path: file.clone(), source });
    if file.exists() {
        return Err(AskError::Backup(BackupError::Exists { path: file.clone() }));
    }
    let mut client = connect(reading.path()).await.map_err(AskError::Connect)?;
    let request = proto::BackupRequest { freshness: reading.freshness().into() };
    let mut pieces = client.backup(request).await.map_err(AskError::Refused)?.into_inner();
    let unfinished = Unfinished::beside(file).map_err(failed)?;
    let mut out = &unfinished.file;
    while let Some(piece) = pieces.message().await.map_err(AskError::Refused)? {
        out.write_all(&piece.bytes).map_err(failed)?;
    }
    unfinished.file.sync_all().map_err(failed)?;
    let head = recovery::verify(&unfinished.path).map_err(|error| AskError::Backup(BackupError::Verify(error)))?;
    let bytes = unfinished.file.metadata().map_err(failed)?.len();
    unfinished.take_name(file).map_err(failed)?;
    print(&format!(
        "{}: all up to log entry {}, {bytes} bytes, read back and whole\n",
        file.display(),
        head.position.index
    ))
}

/// A file that isn't whole; it is gone with this.
struct Unfinished {
    path: PathBuf,
    file: File,
}

impl Unfinished {
    fn beside(file: &Path) -> io::Result<Self> {
        let mut path = file.as_os_str().to_owned();
        path.push(format!(".{}.unfinished", std::process::id()));
        let path = PathBuf::from(path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file })
    }

    /// The name is its own, on disk, unless something has it by now.
    fn take_name(&self, name: &Path) -> io::Result<()> {
        rustix::fs::renameat_with(CWD, &self.path, CWD, name, RenameFlags::NOREPLACE)?;
        let directory = name.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Where it has got its name there is nothing any more.
        let _ = fs::remove_file(&self.path);
    }
}

pub fn restore(args: &RestoreArgs) -> Asked {
    let config = args.offline.config()?;
    let restorable = recovery::examine_backup(&args.file, config, Level::NEWEST).map_err(AskError::Recovery)?;
    if let Some((_, member)) = restorable.state().node_named(restorable.name()).filter(|_| !args.replace) {
        let (name, address) = (member.name.clone(), member.address.clone());
        return Err(AskError::Recovery(RecoveryError::Begin(BeginError::NameTaken { name, address })));
    }
    let cluster = restorable.cluster();
    print(&warning(&restorable))?;
    confirm(cluster, args.confirm.as_deref())?;
    let epoch = restorable.restore(args.replace).map_err(AskError::Recovery)?;
    let (cluster, epoch) = (short(cluster), epoch.number);
    print(&format!("cluster {cluster} is in epoch {epoch}: start the agent, with `systemctl start blixard`\n"))
}

fn warning(restorable: &Restorable) -> String {
    let (state, head, name) = (restorable.state(), restorable.head(), restorable.name());
    let mut text = format!(
        "This makes a cluster of {name} alone, of a backup of cluster {} that {} made {} ago: all up to log entry {}, {}.\n\
         Do it only if that cluster is lost for good: what it acknowledged since is lost with it, and where it isn't, there \
         are two.\n",
        short(restorable.cluster()),
        head.by,
        age(look().now.saturating_sub(head.taken_at.0)),
        head.position.index,
        show::count(state.instances().len(), "instance"),
    );
    text += &absent(state, |_, member| member.name != *name);
    if state.node_named(name).is_some() {
        let _ =
            writeln!(text, "\nThe {name} that it has is taken for dead: it runs nothing, and its volumes are lost.");
    }
    text
}
