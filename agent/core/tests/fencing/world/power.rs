//! How a host goes down and comes back: at once or in order, and with the disk that it had or an earlier one.

use blixard_core::command::Command;
use blixard_core::fence::Request;
use blixard_core::types::{Availability, Failover, Hash};

use super::units::BOUND_KILL;
use super::{Asker, Event, HostId, MILLISECOND, SECOND, Time, World};
use crate::host::{Clock, Device, Disk, Host, UnitName};
use crate::mutations::Mutation;

/// How long a host that is to go down waits for the cluster's word, and until it is empty.
const HEARD: Time = 3 * SECOND;
const EMPTY: Time = 10 * SECOND;
/// How often it is looked whether that is so, and whether what it stops has ended.
const LOOK: Time = 50 * MILLISECOND;

/// A host that is to go down, once it is empty.
#[derive(Clone, Copy)]
pub struct Emptying {
    /// In this boot.
    boot: Hash,
    since: Time,
    is_heard: bool,
    boots_after: Time,
}

impl World {
    pub(super) fn boot(&mut self, id: HostId) {
        let (now, rate) = (self.now, self.random.between(995_000, 1_005_000));
        let host = self.host(id);
        if host.is_on || host.is_retired {
            return;
        }
        host.is_on = true;
        host.clock = Clock::new(now, rate);
        self.facts.boots += 1;
        let (fence, agent) = (self.random.below(SECOND), self.random.below(SECOND));
        self.after(fence, id, Event::StartFence);
        self.after(agent, id, Event::StartAgent);
    }

    /// Everything on it is gone, but for the disk; it is booted after a while, if at all.
    pub fn power_off(&mut self, id: HostId, boots_after: Option<Time>) {
        self.note(|| format!("{id:?} is off"));
        self.crash_agent(id, None);
        let host = self.host(id);
        host.is_on = false;
        host.goes_down = None;
        host.fence = None;
        host.installed.clear();
        host.units.clear();
        host.device = Device::default();
        (host.paused_until, host.agent_paused_until) = (0, 0);
        (host.systemd_paused_until, host.stuck_until) = (0, 0);
        if let Some(time) = boots_after {
            self.after(time, id, Event::Boot);
        }
    }

    /// A host sleeps: its fence ends before, so that nothing runs when it wakes that its clock has left behind.
    pub fn suspend(&mut self, id: HostId, time: Time) {
        let (now, mutation) = (self.now, self.mutation);
        let host = self.host(id);
        // No sleep is begun on the way down.
        if host.goes_down.is_some() {
            return;
        }
        host.device = Device::default();
        if mutation != Mutation::SleepsAsItIs {
            host.units.retain(|(_, failover), _| *failover == Failover::Manual);
            host.fence = None;
        }
        host.paused_until = host.paused_until.max(now + time);
        self.after(0, id, Event::StartFence);
    }

    /// Everything that it lacks is started.
    pub fn wake(&mut self, id: HostId) {
        for event in [Event::Boot, Event::StartFence, Event::StartAgent] {
            self.after(0, id, event);
        }
    }

    pub fn retire(&mut self, id: HostId) {
        self.power_off(id, None);
        self.host(id).is_retired = true;
    }

    /// A host goes down in order: emptied before, while the cluster does that, and at once where it doesn't answer.
    pub fn reboot(&mut self, id: HostId, boots_after: Time) {
        self.note(|| format!("{id:?} is to go down"));
        let boot = self.hosts[&id].clock.boot();
        self.empties(id, Emptying { boot, since: self.now, is_heard: false, boots_after });
    }

    pub(super) fn empties(&mut self, id: HostId, mut emptying: Emptying) {
        let host = &self.hosts[&id];
        let (node, waited) = (host.node, self.now - emptying.since);
        if host.clock.boot() != emptying.boot || host.goes_down.is_some() {
            return;
        }
        let known = host.agent.as_ref().map(|agent| agent.known().1);
        let availability = known.and_then(|state| state.nodes().get(&node)).map(|member| member.availability);
        let is_emptied = matches!(availability, Some(Availability::Rebooting | Availability::Draining));
        emptying.is_heard |= is_emptied;
        let is_empty = is_emptied && known.is_some_and(|state| state.held_by(node) == 0);
        let is_over = emptying.is_heard && !is_emptied;
        if is_empty || is_over || waited > if emptying.is_heard { EMPTY } else { HEARD } {
            return self.shut_down(id, emptying.boots_after);
        }
        if !emptying.is_heard {
            let availability = Availability::Rebooting;
            self.propose(id, Command::SetAvailability { node, availability, abandon_volumes: false });
        }
        self.after(4 * LOOK, id, Event::Empties(emptying));
    }

    /// A host goes down, and is booted after a while: its agent ends, and systemd stops the units, and last the fence, which
    /// ends once nothing of them runs.
    pub fn shut_down(&mut self, id: HostId, boots_after: Time) {
        self.note(|| format!("{id:?} goes down"));
        self.crash_agent(id, None);
        self.host(id).goes_down = Some(boots_after);
        let names: Vec<UnitName> = self.hosts[&id].units.keys().cloned().collect();
        self.facts.goes_down(names.len());
        for name in names {
            match name.1 {
                Failover::Automatic => self.kill_unit(id, &name, BOUND_KILL),
                Failover::Manual => self.stop_unit(id, &name),
            }
        }
        if self.mutation == Mutation::EndsBeforeItIsEmpty {
            self.end_fence(id);
        } else {
            self.ask(id, Asker::Nobody, Request::End);
        }
        self.go_down(id);
    }

    /// It is off once nothing runs.
    pub(super) fn go_down(&mut self, id: HostId) {
        let host = &self.hosts[&id];
        let Some(boots_after) = host.goes_down else { return };
        if host.units.is_empty() && host.fence.is_none() {
            self.power_off(id, Some(boots_after));
        } else {
            self.after(LOOK, id, Event::GoesDown);
        }
    }

    /// What is on a host's disk now.
    pub fn image(&self, id: HostId) -> Disk {
        let Host { agent, disk, .. } = &self.hosts[&id];
        let server = agent.as_ref().and_then(|agent| agent.server.as_ref());
        let log = server.map(|server| (server.id, server.log().clone()));
        Disk { log: log.or_else(|| disk.log.clone()), ..disk.clone() }
    }

    /// A server lacks what it has acknowledged: its agent ends, and isn't started from that disk again.
    pub(super) fn lost_its_log(&mut self, id: HostId) {
        self.note(|| format!("{id:?} has lost its log"));
        self.facts.lost_logs += 1;
        let again = (self.mutation == Mutation::ForgetsThatItsLogIsLost).then_some(2 * SECOND);
        self.crash_agent(id, again);
        self.host(id).disk.is_forbidden = again.is_none();
    }
}
