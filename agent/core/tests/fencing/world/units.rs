//! What systemd, the gate, the fence and the watchdog device do.

use blixard_core::fence::{Action, Reply, Request};
use blixard_core::types::{Failover, InstanceId, Nonce};

use super::{Asker, Event, HostId, MILLISECOND, SECOND, Time, World};
use crate::host::{Device, FenceProcess, RunPhase, Unit, UnitName};
use crate::mutations::Mutation;

/// How long systemd takes to kill what depends on a fence that has died, and a fence what is in its slice.
pub(super) const BOUND_KILL: Time = 600 * MILLISECOND;
const GROUP_KILL: Time = 200 * MILLISECOND;
/// How long systemd waits for a sign of life of a fence that was never armed.
const UNARMED: Time = 10 * SECOND;
/// How long a gate waits for its fence.
const GATE_PATIENCE: Time = 2 * SECOND;

impl World {
    /// A request on its way to the fence of its host.
    pub(super) fn ask(&mut self, id: HostId, asker: Asker, request: Request) {
        if let Some(process) = &self.hosts[&id].fence {
            let (life, soon) = (process.life, self.random.below(2 * MILLISECOND));
            self.after(soon, id, Event::Asked { life, asker, request });
        }
    }

    pub(super) fn unit_event(&mut self, id: HostId, event: Event) {
        match event {
            Event::StartFence => self.start_fence(id),
            Event::Asked { life, asker, request } => self.fence_is_asked(id, life, asker, request),
            Event::FenceWakes { life } => {
                let process = self.hosts[&id].fence.as_ref();
                if process.is_some_and(|process| process.life == life && process.wakes_at <= self.now) {
                    self.fence_turns(id);
                }
            }
            Event::FenceHangs { life } => {
                let process = self.hosts[&id].fence.as_ref();
                if process.is_some_and(|process| process.life == life && process.hangs_at <= self.now) {
                    self.facts.hung += 1;
                    self.kill_fence(id);
                }
            }
            Event::FenceIsLost if self.mutation == Mutation::SparesWhatRuns => {}
            Event::FenceIsLost => self.kill_slice(id, BOUND_KILL),
            Event::DeviceBites => {
                if self.hosts[&id].device.bites_at.is_some_and(|time| time <= self.now) {
                    self.facts.resets += 1;
                    let boots = self.random.between(SECOND, 10 * SECOND);
                    self.power_off(id, Some(boots));
                }
            }
            Event::Start { name } => self.start_unit(id, name),
            Event::GateReads { name, run } => self.gate_reads(id, &name, run),
            Event::Executes { name, run } => self.execute(id, &name, run),
            Event::GateGivesUp { name, run } => {
                if self.unit(id, &name, run).is_some_and(|unit| unit.phase == RunPhase::Gate) {
                    self.host(id).units.remove(&name);
                }
            }
            Event::Dies { name, run } => self.unit_dies(id, &name, run),
            _ => unreachable!("it is no unit's"),
        }
    }

    fn start_fence(&mut self, id: HostId) {
        let (life, now) = (self.number(), self.now);
        let host = self.host(id);
        if host.fence.is_none() && host.goes_down.is_none() {
            let fence = blixard_core::fence::Fence::default();
            let process = FenceProcess { life, fence, paused_until: 0, watchdog: UNARMED, hangs_at: now, wakes_at: 0 };
            host.fence = Some(process);
            self.fence_turns(id);
        }
    }

    /// A fence's process ends: systemd kills what is bound to it, and starts it again.
    pub fn kill_fence(&mut self, id: HostId) {
        if self.host(id).fence.take().is_none() {
            return;
        }
        self.note(|| format!("{id:?} has lost its fence"));
        self.after(0, id, Event::FenceIsLost);
        let again = self.random.between(50 * MILLISECOND, SECOND);
        self.after(again, id, Event::StartFence);
    }

    pub(super) fn end_fence(&mut self, id: HostId) {
        let host = self.host(id);
        (host.fence, host.device) = (None, Device::default());
    }

    fn fence_is_asked(&mut self, id: HostId, life: u64, asker: Asker, request: Request) {
        let (now, mutation) = (self.now, self.mutation);
        let host = self.host(id);
        let run = if let Asker::Gate { run, .. } = &asker { Some(*run) } else { None };
        let at = host.clock.read(now);
        let Some(mut process) = host.fence.take_if(|process| process.life == life) else { return };
        let reply = match &request {
            Request::Stop { .. } if mutation == Mutation::ForgetsTombstones => Reply::Done,
            _ => {
                let early = if mutation == Mutation::StartsAtTheEnd { 1_000_000_000 } else { 0 };
                let is_start = matches!(request, Request::Start { .. });
                let at = if is_start { blixard_core::types::BootTime(at.0.saturating_sub(early)) } else { at };
                process.fence.handle(at, &request, |instance| host.group(instance, run))
            }
        };
        if let (Request::Arm { terms, .. }, Reply::Done) = (&request, &reply) {
            process.watchdog = u64::try_from(terms.fence_watchdog().as_micros()).expect("it is short");
            host.device.timeout = Some(u64::from(terms.device_timeout_seconds()) * SECOND);
        }
        host.fence = Some(process);
        self.fence_turns(id);
        let soon = self.random.below(2 * MILLISECOND);
        self.after(soon, id, Event::Answered { asker, request, reply });
    }

    /// What whoever runs a fence does after each request, and whenever it is time.
    fn fence_turns(&mut self, id: HostId) {
        loop {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&self.number().to_be_bytes());
            let (now, mutation) = (self.now, self.mutation);
            let blind = matches!(mutation, Mutation::ArmsBeforeItIsEmpty | Mutation::SparesWhatRuns);
            let has_device = mutation != Mutation::LacksItsDevice;
            let host = self.host(id);
            let (clock, is_empty) = (host.clock, host.is_slice_empty() || blind);
            let Some(process) = &mut host.fence else { return };
            let turn = process.fence.tick(clock.read(now), is_empty);
            process.hangs_at = now + process.watchdog;
            let (hangs_at, life) = (process.hangs_at, process.life);
            let timeout = host.device.timeout.filter(|_| turn.pet && has_device);
            if let Some(timeout) = timeout {
                host.device.bites_at = Some(now + timeout);
                self.after(timeout, id, Event::DeviceBites);
            }
            self.after(hangs_at - now, id, Event::FenceHangs { life });
            match turn.action {
                Action::Draw => {
                    let process = self.host(id).fence.as_mut().expect("it has turned");
                    process.fence.ready(Ok(Nonce(nonce)));
                    continue;
                }
                Action::Kill => self.kill_slice(id, GROUP_KILL),
                Action::Wait => {}
                Action::End => return self.end_fence(id),
            }
            let process = self.host(id).fence.as_mut().expect("it has turned");
            let wakes_at = clock.when(turn.wake).max(now + 1);
            if process.wakes_at <= now || wakes_at < process.wakes_at {
                process.wakes_at = wakes_at;
                self.after(wakes_at - now, id, Event::FenceWakes { life });
            }
            return;
        }
    }

    fn kill_slice(&mut self, id: HostId, within: Time) {
        let names: Vec<UnitName> =
            self.hosts[&id].units.keys().filter(|(_, failover)| *failover == Failover::Automatic).cloned().collect();
        for name in names {
            self.kill_unit(id, &name, within);
        }
    }

    pub(super) fn kill_unit(&mut self, id: HostId, name: &UnitName, within: Time) {
        let (soon, now) = (self.random.between(MILLISECOND, within), self.now);
        let host = self.host(id);
        let stuck = host.stuck_until.saturating_sub(now);
        let Some(unit) = host.units.get_mut(name).filter(|unit| !unit.is_killed) else { return };
        unit.is_killed = true;
        let run = unit.run;
        self.after(soon.max(stuck), id, Event::Dies { name: name.clone(), run });
    }

    /// An agent has a unit stopped.
    pub(super) fn stop_unit(&mut self, id: HostId, name: &UnitName) {
        let takes = self.random.between(10 * MILLISECOND, 2 * SECOND);
        let unit = self.host(id).units.get_mut(name).expect("it runs");
        unit.phase = if unit.phase == RunPhase::Gate { RunPhase::Gate } else { RunPhase::Stopping };
        let run = unit.run;
        self.after(takes, id, Event::Dies { name: name.clone(), run });
    }

    /// An instance ends by itself: systemd starts it again.
    pub fn crash_unit(&mut self, id: HostId, name: &UnitName) {
        let host = self.host(id);
        if host.units.get(name).is_some_and(|unit| unit.phase == RunPhase::Running && !unit.is_killed) {
            host.units.remove(name);
            let again = self.random.between(100 * MILLISECOND, SECOND);
            self.after(again, id, Event::Start { name: name.clone() });
        }
    }

    /// Somebody types `systemctl start`.
    pub fn type_start(&mut self, id: HostId, instance: InstanceId, failover: Failover) {
        self.after(0, id, Event::Start { name: (instance, failover) });
    }

    /// A person says of a host that nothing manual runs there, which isn't so: from now on that is that person's to answer for.
    pub fn deny(&mut self, id: HostId) {
        let units = self.host(id).units.iter_mut().filter(|((_, failover), _)| *failover == Failover::Manual);
        units.for_each(|(_, unit)| unit.is_denied = true);
    }

    fn unit(&self, id: HostId, name: &UnitName, run: u64) -> Option<&Unit> {
        self.hosts[&id].units.get(name).filter(|unit| unit.run == run)
    }

    fn start_unit(&mut self, id: HostId, name: UnitName) {
        let run = self.number();
        let host = self.host(id);
        if host.units.contains_key(&name) || host.goes_down.is_some() {
            return;
        }
        let generation = host.installed.get(&name.0).map(|unit| unit.generation).unwrap_or_default();
        host.units
            .insert(name.clone(), Unit { run, phase: RunPhase::Gate, generation, is_killed: false, is_denied: false });
        let most = if self.random.percent(5) { 1500 * MILLISECOND } else { 30 * MILLISECOND };
        let soon = self.random.below(most);
        self.after(soon, id, Event::GateReads { name, run });
    }

    fn gate_reads(&mut self, id: HostId, name: &UnitName, run: u64) {
        let host = self.host(id);
        let Some(unit) = host.units.get_mut(name).filter(|unit| unit.run == run) else { return };
        let Some(installed) = host.installed.get(&name.0).filter(|installed| installed.failover == name.1) else {
            host.units.remove(name);
            return;
        };
        unit.generation = installed.generation;
        let generation = unit.generation;
        if name.1 == Failover::Manual || self.mutation == Mutation::StartsUnasked {
            return self.after(MILLISECOND, id, Event::Executes { name: name.clone(), run });
        }
        let asker = Asker::Gate { name: name.clone(), run };
        self.ask(id, asker, Request::Start { instance: name.0.clone(), generation });
        self.after(GATE_PATIENCE, id, Event::GateGivesUp { name: name.clone(), run });
    }

    pub(super) fn gate_hears(&mut self, id: HostId, name: &UnitName, run: u64, reply: &Reply) {
        if self.unit(id, name, run).is_none() {
            return;
        }
        if *reply == Reply::Done {
            let most = if self.random.percent(5) { 900 * MILLISECOND } else { 20 * MILLISECOND };
            let soon = self.random.below(most);
            let at = self.time_on(id);
            self.facts.let_through(&self.hosts[&id], name, at);
            self.after(soon, id, Event::Executes { name: name.clone(), run });
        } else {
            self.facts.refused += 1;
            self.host(id).units.remove(name);
        }
    }

    fn execute(&mut self, id: HostId, name: &UnitName, run: u64) {
        let host = self.host(id);
        let Some(unit) = host.units.get_mut(name).filter(|unit| unit.run == run && unit.phase == RunPhase::Gate) else {
            return;
        };
        unit.phase = RunPhase::Running;
        self.facts.starts += 1;
        self.note(|| format!("{id:?} runs {} ({})", name.0, name.1));
        let alive = self.alive(&name.0);
        let shown = || self.shown();
        self.facts.no_instance_has_two_live_units(&name.0, &alive, self.now, shown);
    }

    fn unit_dies(&mut self, id: HostId, name: &UnitName, run: u64) {
        let now = self.now;
        let host = self.host(id);
        let stuck = host.stuck_until.saturating_sub(now);
        if host.units.get(name).is_none_or(|unit| unit.run != run) {
            return;
        }
        if stuck > 0 {
            return self.after(stuck, id, Event::Dies { name: name.clone(), run });
        }
        host.units.remove(name);
        self.note(|| format!("{id:?} runs {} ({}) no more", name.0, name.1));
    }
}
