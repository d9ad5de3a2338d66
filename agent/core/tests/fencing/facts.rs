//! What has to be so at every moment, each as a function that says it.

use blixard_core::command::{Command, Reply};
use blixard_core::fence::Stage;
use blixard_core::state::State;
use blixard_core::types::{BootTime, Failover, InstanceId};

use super::host::{Host, UnitName};
use super::world::{HostId, SECOND, Time};

/// How often what had to happen did.
#[derive(Default, Debug)]
pub struct Facts {
    seed: u64,
    pub boots: u64,
    pub starts: u64,
    /// Starts that a fence refused, hosts that their watchdog device has reset, fences that systemd took for hung.
    pub refused: u64,
    pub resets: u64,
    pub hung: u64,
    pub stops: u64,
    pub armed: u64,
    pub fenced: u64,
    pub confirmed: u64,
    pub frozen: u64,
    /// How often a cluster began anew with what a server had, and with a backup.
    pub recovered: u64,
    pub restored: u64,
    /// Hosts that have gone down in order, emptied before or with something still to stop.
    pub emptied: u64,
    pub stopped: u64,
    /// Servers that have found that their disks lack what they acknowledged.
    pub lost_logs: u64,
}

impl Facts {
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// What happened in another history, too.
    pub fn add(&mut self, other: &Self) {
        let Self {
            seed: _,
            boots,
            starts,
            refused,
            resets,
            hung,
            stops,
            armed,
            fenced,
            confirmed,
            frozen,
            recovered,
            restored,
            emptied,
            stopped,
            lost_logs,
        } = other;
        self.boots += boots;
        self.starts += starts;
        self.refused += refused;
        self.resets += resets;
        self.hung += hung;
        self.stops += stops;
        self.armed += armed;
        self.fenced += fenced;
        self.confirmed += confirmed;
        self.frozen += frozen;
        self.recovered += recovered;
        self.restored += restored;
        self.emptied += emptied;
        self.stopped += stopped;
        self.lost_logs += lost_logs;
    }

    /// An entry was applied for the first time.
    pub fn applied(&mut self, command: &Command, reply: &Reply) {
        if *reply == Reply::Done {
            self.armed += u64::from(matches!(command, Command::Arm { .. }));
            self.fenced += u64::from(matches!(command, Command::Fence { .. }));
            self.confirmed += u64::from(matches!(command, Command::ConfirmDead { .. }));
            self.frozen += u64::from(matches!(command, Command::SetTakeover { is_frozen: true }));
        }
    }

    /// A host goes down in order, with so many units.
    pub fn goes_down(&mut self, units: usize) {
        self.emptied += u64::from(units == 0);
        self.stopped += u64::from(units > 0);
    }

    pub fn no_instance_has_two_live_units(
        &self,
        instance: &InstanceId,
        alive: &[HostId],
        now: Time,
        shown: impl FnOnce() -> String,
    ) {
        if alive.len() > 1 {
            let shown = shown();
            panic!("seed {}: {instance} has two live units at {} s, on {alive:?}: {shown}", self.seed, now / SECOND);
        }
    }

    /// A gate has heard that it may start this; `at` is when, by its host's clock.
    pub fn let_through(&self, host: &Host, name: &UnitName, at: BootTime) {
        let seed = self.seed;
        // Its fence may have been killed since.
        let Some(process) = &host.fence else { return };
        if let Stage::Armed { deadline: Some(deadline), .. } = process.fence.status().stage {
            // The answer was under way for a few milliseconds.
            let left = at.until(deadline);
            assert!(left.as_millis() > 990, "seed {seed}: {} starts {left:?} before its lease ends", name.0);
        }
    }

    /// An agent has a unit stopped: the log doesn't say that this very generation is to run there.
    pub fn stops(&mut self, truth: &State, host: &Host, name: &UnitName) {
        self.stops += 1;
        let (Some(installed), Some(unit)) = (host.installed.get(&name.0), host.units.get(name)) else { return };
        let placement = truth.instances().get(&name.0).and_then(|instance| instance.placement.as_ref());
        let is_placed = placement.is_some_and(|placement| {
            placement.node == host.node && !placement.stopping && placement.unit == *installed
        });
        let is_current = unit.generation == installed.generation && name.1 == installed.failover;
        let is_fenced = name.1 == Failover::Automatic;
        assert!(
            !(is_placed && is_current),
            "seed {}: {:?} stops {} (automatic: {is_fenced}), which is placed there",
            self.seed,
            host.id,
            name.0
        );
    }
}
