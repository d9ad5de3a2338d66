//! The files under the run directory in which the agent tells the gate what an instance is, and the gate how it ended.
//!
//! `vms/web-0.json` and `tasks/task-7.json` are written by the agent, `….exit.json` beside them by the gate. The
//! directory is gone after a reboot, and with it every permission to start something.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blixard_core::types::{InstanceId, TaskId};
use blixard_core::unit::{TaskUnit, VmUnit};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Where the run directory is unless the agent's config says otherwise.
pub const RUN_DIR: &str = "/run/blixard";

const EXIT_SUFFIX: &str = ".exit";

/// A VM's unit, and what of this host its gate needs to start it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Installed {
    pub unit: VmUnit,
    pub account: Account,
    /// The bridge that the runner's taps are attached to.
    pub bridge: Option<String>,
    /// Where the runner keeps its volumes and sockets; made by the gate, never removed.
    pub work_dir: PathBuf,
}

/// A task's unit, and what of this host its gate needs to start it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InstalledTask {
    pub unit: TaskUnit,
    pub account: Account,
    /// The command's scratch directory; made by the gate, and removed by it when the command has ended.
    pub work_dir: PathBuf,
}

/// Who an instance's processes run as: names of this host's `/etc/passwd` and `/etc/group`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Account {
    pub user: String,
    pub group: String,
}

/// Why one of the files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {}: is the run directory another's?", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot understand {}: it was written by another version; remove it, and the agent writes it anew", path.display())]
    Decode { path: PathBuf, source: serde_json::Error },
    #[error("cannot write {}: is there room, and may this process write there?", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// The run directory: which file is whose.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
    pub fn vms(&self) -> PathBuf {
        self.0.join("vms")
    }
    pub fn tasks(&self) -> PathBuf {
        self.0.join("tasks")
    }
    /// Where the fence is asked.
    pub fn fence(&self) -> PathBuf {
        crate::fence::socket_in(&self.0)
    }
    /// Holds an [`Installed`].
    pub fn vm(&self, instance: &InstanceId) -> PathBuf {
        self.vms().join(format!("{instance}.json"))
    }
    /// Holds a [`blixard_core::unit::ExitRecord`].
    pub fn vm_exit(&self, instance: &InstanceId) -> PathBuf {
        self.vms().join(format!("{instance}{EXIT_SUFFIX}.json"))
    }
    /// Holds an [`InstalledTask`].
    pub fn task(&self, task: TaskId) -> PathBuf {
        self.tasks().join(format!("{task}.json"))
    }
    /// Holds a [`blixard_core::unit::ExitRecord`].
    pub fn task_exit(&self, task: TaskId) -> PathBuf {
        self.tasks().join(format!("{task}{EXIT_SUFFIX}.json"))
    }
}

/// Whose file it is, by its name: the instance or task, whether it is the exit record or the unit itself.
pub fn owner<T: std::str::FromStr>(file_name: &str) -> Option<T> {
    let stem = file_name.strip_suffix(".json")?;
    stem.strip_suffix(EXIT_SUFFIX).unwrap_or(stem).parse().ok()
}

/// What a file holds, or nothing when there is none.
///
/// # Errors
/// [`FileError::Read`], [`FileError::Decode`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Read { path: path.to_owned(), source }),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| FileError::Decode { path: path.to_owned(), source })
}

/// Write a file that only root can read, whole or not at all; its directory is made where it is missing.
///
/// Two writers of one file would trip over each other's temporary name: the agent writes units, the gate exits.
///
/// # Errors
/// [`FileError::Write`].
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let attempt = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        let tmp = path.with_extension("tmp");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        fs::rename(&tmp, path)
    };
    attempt().map_err(|source| FileError::Write { path: path.to_owned(), source })
}

/// Remove a file; that it isn't there is fine.
///
/// # Errors
/// [`FileError::Remove`].
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FileError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blixard_core::types::{Exit, Generation};
    use blixard_core::unit::ExitRecord;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_names_its_instance_and_nothing_else_does() {
        let web: InstanceId = "web-0".parse().unwrap();
        for name in ["web-0.json", "web-0.exit.json"] {
            assert_eq!(owner::<InstanceId>(name), Some(web.clone()), "{name}");
        }
        for name in ["web-0", "web-0.tmp", "web-0.exit.tmp", ".json", "../web-0.json", "web.json"] {
            assert_eq!(owner::<InstanceId>(name), None, "{name}");
        }
        assert_eq!(owner::<TaskId>("task-7.exit.json"), Some(TaskId(7)));
    }

    /// An agent that can't understand it would have to restart the VM; an upgrade must not.
    #[test]
    fn what_the_first_release_wrote_is_still_understood() {
        let json = r#"{"unit":{"instance":"web-0","generation":3,
            "runner":"/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-web-0","restart":"always","failover":"automatic",
            "notifies":false,"cpus":1,
            "memory_max_mib":224},"account":{"user":"blixard-vm","group":"kvm"},"bridge":"br0",
            "work_dir":"/var/lib/blixard/vms/web-0"}"#;
        let installed: Installed = serde_json::from_str(json).unwrap();
        assert_eq!(installed.unit.generation, Generation(3));
        let exit: ExitRecord = serde_json::from_str(r#"{"generation":3,"exit":{"exited":1}}"#).unwrap();
        assert_eq!(exit.exit, Exit::Exited(1));
    }

    #[test]
    fn what_is_written_reads_back_and_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let path = run.vm_exit(&"web-0".parse().unwrap());
        let record = ExitRecord { generation: Generation(3), exit: Exit::Killed(9) };
        assert_eq!(read::<ExitRecord>(&path).unwrap(), None);
        write(&path, &record).unwrap();
        assert_eq!(read(&path).unwrap(), Some(record));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read::<ExitRecord>(&path).unwrap(), None);
    }

    #[test]
    fn a_file_that_is_not_json_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web-0.json");
        fs::write(&path, "{").unwrap();
        let error = read::<Installed>(&path).unwrap_err();
        assert!(error.to_string().contains("web-0.json"), "{error}");
    }
}
