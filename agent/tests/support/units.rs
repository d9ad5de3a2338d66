//! Units that are only remembered: what was asked of a host, and what runs on it.

use std::sync::{Arc, Mutex, MutexGuard};

use blixard::units::{Units, UnitsError};
use blixard_core::reconcile::UnitChange;
use blixard_core::unit::{Observed, ObservedTask, ObservedVm, UnitPhase, VmUnit};
use tokio::sync::watch;

/// One host's units; all clones are of the same host.
#[derive(Clone, Default)]
pub struct FakeUnits {
    held: Arc<Mutex<Held>>,
    changes: Arc<watch::Sender<u64>>,
}

/// What a host has.
#[derive(Default)]
pub struct Held {
    pub observed: Observed,
    /// Every change that was asked for, such as `start web-0`.
    pub asked: Vec<String>,
    /// Why starts fail, while they do.
    pub broken: Option<String>,
}

impl FakeUnits {
    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    /// Changes something by itself, which the agent then hears of.
    pub fn change(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held());
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Units for FakeUnits {
    async fn observe(&self) -> Result<Observed, UnitsError> {
        Ok(self.held().observed.clone())
    }

    fn is_prepared(&self, _unit: &VmUnit) -> bool {
        false
    }

    async fn prepare(&self, _unit: &VmUnit) -> Result<(), UnitsError> {
        Ok(())
    }

    async fn perform(&self, change: &UnitChange) -> Result<(), UnitsError> {
        let mut held = self.held();
        let (verb, broken) = (change.verb(), held.broken.clone());
        let name = match change {
            UnitChange::StopVm(instance) => instance.to_string(),
            UnitChange::StartVm(unit, _) | UnitChange::UpdateVm(unit, _) => unit.instance.to_string(),
            UnitChange::StopTask(task) => task.to_string(),
            UnitChange::StartTask(unit) => unit.task.to_string(),
        };
        held.asked.push(format!("{verb} {name}"));
        if let (Some(result), "start") = (broken, verb) {
            return Err(UnitsError::Started { unit: name, result });
        }
        let Observed { vms, tasks, .. } = &mut held.observed;
        match change.clone() {
            UnitChange::StopVm(instance) => drop(vms.remove(&instance)),
            UnitChange::StartVm(unit, _) | UnitChange::UpdateVm(unit, _) => {
                let instance = unit.instance.clone();
                let phase = UnitPhase::Running;
                vms.insert(instance, ObservedVm { phase, installed: Some(unit), restarts: 0, last_exit: None });
            }
            UnitChange::StopTask(task) => drop(tasks.remove(&task)),
            UnitChange::StartTask(unit) => {
                let phase = UnitPhase::Running;
                tasks.insert(unit.task, ObservedTask { phase, installed: Some(unit), last_exit: None });
            }
        }
        drop(held);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
