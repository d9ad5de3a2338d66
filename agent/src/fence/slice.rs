//! The control group of everything that a fence stops, and those of the units in it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use blixard_core::fence::{Group, Unable};
use blixard_core::types::InstanceId;
use rustix::process::Pid;

/// Where the control groups of version 2 are: alone, or beside those of version 1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// The slice that the template's units are in.
const SLICE: &str = "blixard.slice/blixard-fenced.slice";

/// Where this host's are.
pub fn control_groups() -> PathBuf {
    let root = ROOTS.into_iter().find(|root| Path::new(root).join("cgroup.controllers").exists());
    PathBuf::from(root.unwrap_or(ROOTS[0]))
}

/// `blixard-fenced.slice`. Systemd makes it for the first unit and removes it after the last.
#[derive(Debug)]
pub struct Slice {
    root: PathBuf,
}

impl Slice {
    pub fn of_this_host() -> Self {
        Self::below(control_groups())
    }

    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Why it couldn't be killed, if so.
    pub fn unusable(&self) -> Option<Unable> {
        let own = fs::read_to_string("/proc/self/cgroup").ok();
        let own = own.as_deref().and_then(|groups| groups.lines().find_map(|line| line.strip_prefix("0::/")));
        let kill = self.root.join(own.unwrap_or_default()).join("cgroup.kill");
        match fs::metadata(&kill) {
            Ok(_) => None,
            Err(error) => Some(Unable::ControlGroups { reason: format!("{}: {error}", kill.display()) }),
        }
    }

    /// Whether nothing at all is in it. What can't be read isn't empty.
    pub fn is_empty(&self) -> bool {
        is_empty(&self.path())
    }

    /// Kill all that is in it, and whatever that has started, at once.
    ///
    /// # Errors
    /// The kernel refuses to, or is too old.
    pub fn kill(&self) -> io::Result<()> {
        match fs::write(self.path().join("cgroup.kill"), "1") {
            // It went with the last unit.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.path().exists() => Ok(()),
            done => done,
        }
    }

    /// What is in an instance's unit, for a process that asks about it.
    pub fn group(&self, instance: &InstanceId, asking: Pid) -> Group {
        if is_empty(&self.unit(instance)) {
            Group::Empty
        } else if self.processes(instance).contains(&asking) {
            Group::Asking
        } else {
            Group::Populated
        }
    }

    /// The processes in an instance's unit, as far as they can be known.
    pub fn processes(&self, instance: &InstanceId) -> Vec<Pid> {
        let processes = fs::read_to_string(self.unit(instance).join("cgroup.procs")).unwrap_or_default();
        processes.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }

    fn unit(&self, instance: &InstanceId) -> PathBuf {
        self.path().join(format!("blixard-auto@{instance}.service"))
    }

    fn path(&self) -> PathBuf {
        self.root.join(SLICE)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}

/// Whether nothing runs in a control group, nor in those below it. What can't be read isn't empty.
pub fn is_empty(group: &Path) -> bool {
    match fs::read_to_string(group.join("cgroup.events")) {
        Ok(events) => events.lines().any(|event| event == "populated 0"),
        Err(error) => error.kind() == io::ErrorKind::NotFound && !group.exists(),
    }
}
