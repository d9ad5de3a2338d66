//! Loaded units, files and GC roots → [`Observed`].

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

use blixard_core::types::{InstanceId, TaskId};
use blixard_core::unit::{ExitRecord, Observed, ObservedTask, ObservedVm, UnitPhase};
use futures_util::future::try_join_all;
use serde::de::DeserializeOwned;
use zbus::OwnedObjectPath;

use super::bus::{Bus, BusError};
use super::{AUTO_PREFIX, TASK_PREFIX, UnitsError, VM_PREFIX};
use crate::fence::{self, control_groups};
use crate::gate::files::{self, Installed, InstalledTask, RunDir};
use crate::nix::NixStore;

const SERVICE_INTERFACE: &str = "org.freedesktop.systemd1.Service";

/// A row of `ListUnitsByPatterns`: name, description, load, active and sub state, followed unit, object, job's number,
/// type and object.
type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// One look at everything; the parts are read one after another, so a change in between is seen by the next look.
pub async fn observe(bus: &Bus, run_dir: &RunDir, nix: &impl NixStore) -> Result<Observed, UnitsError> {
    let patterns = [VM_PREFIX, AUTO_PREFIX, TASK_PREFIX].map(|prefix| format!("{prefix}*.service"));
    let rows: Vec<Row> = bus
        .manager("ListUnitsByPatterns", &(&[""; 0][..], &patterns[..]))
        .await
        .map_err(|source| UnitsError::List { source })?;
    let mut observed = Observed::default();
    let mut vms = Vec::new();
    // All at once: one after another, the hundreds of a large host would wait for each other.
    let phases = rows.iter().map(|(_, _, _, active, _, _, object, _, job, _)| phase_of(bus, object, active, job));
    let phases = try_join_all(phases).await.map_err(|source| UnitsError::List { source })?;
    for ((name, _, _, _, _, _, object, ..), phase) in rows.into_iter().zip(phases) {
        let of_vm = [VM_PREFIX, AUTO_PREFIX].into_iter().find_map(|prefix| instance_of::<InstanceId>(&name, prefix));
        if let Some(instance) = of_vm {
            vms.push((instance, phase, object));
        } else if let Some(task) = instance_of::<TaskId>(&name, TASK_PREFIX) {
            observed.tasks.insert(task, ObservedTask { phase, ..unloaded_task() });
        } else {
            tracing::debug!(unit = name, "a unit of a name that the gate refuses");
        }
    }
    let restarts = try_join_all(vms.iter().map(|(_, _, object)| restarts(bus, object))).await?;
    for ((instance, phase, _), restarts) in vms.into_iter().zip(restarts) {
        // Of the two units of an instance one is left from before, if there are both.
        let known = observed.vms.entry(instance).or_insert_with(unloaded_vm);
        if known.phase == UnitPhase::Inactive {
            *known = ObservedVm { phase, restarts, ..unloaded_vm() };
        }
    }
    for root in nix.roots().await.map_err(|source| UnitsError::Roots { source })? {
        if let Ok(instance) = root.parse() {
            observed.vms.entry(instance).or_insert_with(unloaded_vm);
        }
    }
    for instance in owners(&run_dir.vms())? {
        observed.vms.entry(instance).or_insert_with(unloaded_vm);
    }
    for task in owners(&run_dir.tasks())? {
        observed.tasks.entry(task).or_insert_with(unloaded_task);
    }
    for (instance, vm) in &mut observed.vms {
        vm.installed = read::<Installed>(&run_dir.vm(instance)).map(|installed| installed.unit);
        vm.last_exit = read::<ExitRecord>(&run_dir.vm_exit(instance));
    }
    for (id, task) in &mut observed.tasks {
        task.installed = read::<InstalledTask>(&run_dir.task(*id)).map(|installed| installed.unit);
        task.last_exit = read::<ExitRecord>(&run_dir.task_exit(*id));
    }
    Ok(observed)
}

/// A unit's phase: it is inactive once systemd says so, and nothing is left in its control group. What a SIGKILL doesn't end,
/// as it waits for a disk, runs on in a unit that systemd has given up.
pub async fn phase_of(bus: &Bus, unit: &OwnedObjectPath, active: &str, job: &str) -> Result<UnitPhase, BusError> {
    let phase = phase(active, job);
    if phase != UnitPhase::Inactive {
        return Ok(phase);
    }
    match bus.property(unit, SERVICE_INTERFACE, "ControlGroup").await {
        Ok(group) => Ok(emptied(&control_groups(), <&str>::try_from(&*group).unwrap_or_default())),
        // Unloaded since: systemd keeps what isn't empty.
        Err(error) if error.is_no_such_unit() => Ok(UnitPhase::Inactive),
        Err(error) => Err(error),
    }
}

/// The phase of a unit that systemd calls inactive. It names the unit's control group for as long as there is one.
fn emptied(control_groups: &Path, group: &str) -> UnitPhase {
    let is_empty = group.is_empty() || fence::is_empty(&control_groups.join(group.trim_start_matches('/')));
    if is_empty { UnitPhase::Inactive } else { UnitPhase::Stopping }
}

/// The phase that systemd says, from the active state and the type of the job that waits for the unit.
///
/// `activating` is also what a unit is between two automatic starts. A state of a newer systemd may be one in which
/// something runs, so it counts as stopping.
fn phase(active: &str, job: &str) -> UnitPhase {
    match active {
        "active" | "reloading" | "refreshing" => UnitPhase::Running,
        "activating" => UnitPhase::Starting,
        "inactive" | "failed" if matches!(job, "start" | "restart") => UnitPhase::Starting,
        "inactive" | "failed" => UnitPhase::Inactive,
        _ => UnitPhase::Stopping,
    }
}

async fn restarts(bus: &Bus, unit: &OwnedObjectPath) -> Result<u32, UnitsError> {
    match bus.property(unit, SERVICE_INTERFACE, "NRestarts").await {
        Ok(value) => Ok(u32::try_from(&*value).unwrap_or(0)),
        // Unloaded since it was listed.
        Err(error) if error.is_no_such_unit() => Ok(0),
        Err(source) => Err(UnitsError::List { source }),
    }
}

/// Whose unit it is; nothing where the instance isn't written as the agent writes it.
fn instance_of<T: FromStr + ToString>(unit: &str, prefix: &str) -> Option<T> {
    let text = unit.strip_prefix(prefix)?.strip_suffix(".service")?;
    text.parse().ok().filter(|id: &T| id.to_string() == text)
}

/// The instances or tasks that a directory has a file of.
fn owners<T: FromStr + Ord>(dir: &Path) -> Result<BTreeSet<T>, UnitsError> {
    let read = || -> io::Result<BTreeSet<T>> {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        Ok(names.iter().filter_map(|name| files::owner(name.to_str()?)).collect())
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        read => read.map_err(|source| UnitsError::ReadDir { path: dir.to_owned(), source }),
    }
}

/// What a file holds; one that can't be used counts as missing, so that reconcile writes it anew.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    files::read(path).unwrap_or_else(|error| {
        tracing::warn!(%error, cause = std::error::Error::source(&error), "a unit's file can't be used");
        None
    })
}

fn unloaded_vm() -> ObservedVm {
    ObservedVm { phase: UnitPhase::Inactive, installed: None, restarts: 0, last_exit: None }
}

fn unloaded_task() -> ObservedTask {
    ObservedTask { phase: UnitPhase::Inactive, installed: None, last_exit: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_waits_to_be_started_again_is_starting() {
        assert_eq!(phase("activating", ""), UnitPhase::Starting);
        assert_eq!(phase("inactive", "start"), UnitPhase::Starting);
        assert_eq!(phase("failed", "restart"), UnitPhase::Starting);
    }

    #[test]
    fn a_unit_of_which_nothing_runs_is_inactive_however_it_ended() {
        assert_eq!(phase("inactive", ""), UnitPhase::Inactive);
        assert_eq!(phase("failed", ""), UnitPhase::Inactive);
        assert_eq!(phase("inactive", "stop"), UnitPhase::Inactive);
    }

    #[test]
    fn a_unit_that_systemd_has_given_up_stops_until_its_control_group_is_empty() {
        let root = tempfile::tempdir().unwrap();
        let group = "/blixard.slice/blixard-vms.slice/blixard-vm@web-0.service";
        let dir = root.path().join(&group[1..]);
        let phase = |group| emptied(root.path(), group);
        assert_eq!((phase(""), phase(group)), (UnitPhase::Inactive, UnitPhase::Inactive), "it was removed");
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(phase(group), UnitPhase::Stopping, "what can't be read isn't empty");
        for (populated, expected) in [("1", UnitPhase::Stopping), ("0", UnitPhase::Inactive)] {
            fs::write(dir.join("cgroup.events"), format!("populated {populated}\nfrozen 0\n")).unwrap();
            assert_eq!(phase(group), expected, "populated {populated}");
        }
    }

    #[test]
    fn what_may_still_run_is_never_called_inactive() {
        for active in ["deactivating", "maintenance", "of-a-newer-systemd", ""] {
            assert_eq!(phase(active, ""), UnitPhase::Stopping, "{active}");
        }
        assert_eq!(phase("active", "stop"), UnitPhase::Running);
    }

    #[test]
    fn a_units_instance_is_read_only_as_the_agent_writes_it() {
        let web = instance_of::<InstanceId>("blixard-vm@web-0.service", VM_PREFIX);
        assert_eq!(web, Some("web-0".parse().unwrap()));
        assert_eq!(instance_of::<TaskId>("blixard-task@task-7.service", TASK_PREFIX), Some(TaskId(7)));
        assert_eq!(instance_of::<TaskId>("blixard-task@7.service", TASK_PREFIX), None);
        assert_eq!(instance_of::<InstanceId>("blixard-vm@web.service", VM_PREFIX), None);
        assert_eq!(instance_of::<InstanceId>("blixard-vm@web-0.slice", VM_PREFIX), None);
    }

    #[test]
    fn a_file_that_cannot_be_understood_counts_as_missing_but_still_names_its_instance() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        let web: InstanceId = "web-0".parse().unwrap();
        fs::create_dir(run_dir.vms()).unwrap();
        fs::write(run_dir.vm(&web), "{").unwrap();
        assert_eq!(owners::<InstanceId>(&run_dir.vms()).unwrap(), BTreeSet::from([web.clone()]));
        assert_eq!(read::<Installed>(&run_dir.vm(&web)), None);
        assert_eq!(owners::<TaskId>(&run_dir.tasks()).unwrap(), BTreeSet::new());
    }
}
