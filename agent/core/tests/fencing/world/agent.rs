//! What an agent does: it keeps its host's lease, and makes the units what the placements say.

use std::collections::{BTreeMap, VecDeque};

use blixard_core::command::Command;
use blixard_core::fence::{Reply, Request};
use blixard_core::lease::keep::{self, Step};
use blixard_core::reconcile::{self, Attempts, UnitChange};
use blixard_core::types::{BootTime, Failover, InstanceId};
use blixard_core::unit::VmUnit;

use super::network::Message;
use super::{Asker, Event, HostId, MILLISECOND, SECOND, TICK, World};
use crate::cluster;
use crate::host::{Agent, Job, RunPhase};
use crate::mutations::Mutation;
use crate::server::Log;

/// How long a job waits for an answer.
const PATIENCE: u64 = 5 * SECOND;
/// How long a proposal waits before it is made again.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(300);

impl World {
    fn agent(&mut self, id: HostId, boot: u64) -> Option<&mut Agent> {
        self.host(id).agent.as_mut().filter(|agent| agent.boot == boot)
    }

    pub(super) fn agent_event(&mut self, id: HostId, event: Event) {
        match event {
            Event::Deliver(sent) => {
                if self.hosts[&id].agent.is_some() {
                    self.delivered(id, *sent);
                }
            }
            Event::Tick { boot } => {
                let at = self.hosts[&id].clock.read(self.now);
                let Some(agent) = self.agent(id, boot) else { return };
                if let Some(server) = &mut agent.server {
                    server.tick(at);
                    self.turns(id);
                }
                self.after(TICK, id, Event::Tick { boot });
            }
            Event::Look { boot } => {
                if self.agent(id, boot).is_some() {
                    self.look(id, boot);
                    let pause = self.random.between(50 * MILLISECOND, 150 * MILLISECOND);
                    self.after(pause, id, Event::Look { boot });
                }
            }
            Event::Work { boot, instance, job } => {
                if self.agent(id, boot).is_some() {
                    self.work(id, boot, &instance, job);
                }
            }
            _ => unreachable!("it is no agent's"),
        }
    }

    fn look(&mut self, id: HostId, boot: u64) {
        if self.hosts[&id].disk.rejoins {
            return self.want_in(id);
        }
        self.become_server(id);
        self.register(id);
        let servers = self.servers_of(self.hosts[&id].epoch());
        let request = self.number();
        let is_hasty = self.mutation == Mutation::ActsUnregistered;
        let host = self.host(id);
        let (node, agent) = (host.node, host.agent.as_mut().expect("it looks"));
        let known = agent.told.0;
        let asks = agent.needs.is_none() && (agent.is_registered || is_hasty);
        if asks {
            agent.barrier.get_or_insert(request);
        }
        let barrier = agent.barrier.filter(|_| asks);
        if let Some(to) = self.random.one_of(&servers) {
            self.send(id, to, Message::Ask { node, known });
            if let Some(request) = barrier {
                self.send(id, to, Message::Barrier { request });
            }
        }
        self.ask(id, Asker::Agent { boot }, Request::Status);
        self.keep_units(id, boot);
    }

    /// Tells the cluster of this boot of its host, until it has heard it: what a person has said of the one before is carried
    /// out by then, or refused.
    fn register(&mut self, id: HostId) {
        let host = self.host(id);
        let (node, boot) = (host.node, host.clock.boot());
        let agent = host.agent.as_mut().expect("it looks");
        let Some(member) = agent.known().1.nodes().get(&node) else { return };
        let (role, is_known) = (member.role, member.boot == Some(boot));
        agent.is_registered |= is_known;
        if !agent.is_registered && self.random.percent(30) {
            self.propose(id, cluster::registration(node.0, role, boot));
        }
    }

    /// Starts a server where the cluster has made the node one, or ends it where it is none any more.
    fn become_server(&mut self, id: HostId) {
        let host = &self.hosts[&id];
        let agent = host.agent.as_ref().expect("it looks");
        let raft = agent.server.as_ref().map(|server| server.id);
        if let Some(raft) = raft.filter(|raft| agent.known().1.is_dismissed(host.node, *raft)) {
            return self.dismiss(id, raft);
        }
        if let Some(raft) = agent.known().1.is_enlisted(host.node, host.disk.spent) {
            let log = Log::blank(&host.disk.beginning);
            self.start_server(id, raft, log);
        }
    }

    pub(super) fn barrier_is_known(&mut self, id: HostId, request: u64, index: u64) {
        if let Some(agent) = self.host(id).agent.as_mut().filter(|agent| agent.barrier == Some(request)) {
            agent.needs = Some(index);
        }
    }

    /// What a fence's answer is good for.
    pub(super) fn agent_hears(&mut self, id: HostId, asker: &Asker, request: &Request, reply: &Reply) {
        match (asker, request, reply) {
            (Asker::Agent { boot }, Request::Status, Reply::Status(status)) => {
                let host = &self.hosts[&id];
                let Some(agent) = host.agent.as_ref().filter(|agent| agent.boot == *boot) else { return };
                let lease = agent.known().1.nodes().get(&host.node).map(|member| member.lease);
                let step = lease.map_or(Step::Wait, |lease| keep::next_step(&lease, status));
                let step = self.mutation.step(step, lease.as_ref());
                self.keep_lease(id, *boot, step);
            }
            (Asker::Job { boot, instance, job }, ..) => self.job_hears(id, *boot, instance, *job, reply),
            _ => {}
        }
    }

    fn keep_lease(&mut self, id: HostId, boot: u64, step: Step) {
        let (node, machine, at) = (self.hosts[&id].node, self.hosts[&id].machine, self.time_on(id));
        let renew = self.truth.settings().lease.renew();
        let epoch = if let Step::Renew { epoch, .. } = step { Some(epoch) } else { None };
        let request = self.number();
        let Some(agent) = self.agent(id, boot) else { return };
        let is_due = agent.beats_at <= at;
        if is_due {
            agent.beats_at = at.after(renew);
            agent.renewals.retain(|_, (_, sent)| sent.after(PAUSE * 100) > at);
            agent.renewals.extend(epoch.map(|epoch| (request, (epoch, at))));
        }
        let may_arm = agent.proposes_at <= at && agent.is_registered;
        if is_due {
            for to in self.servers_of(self.hosts[&id].epoch()) {
                self.send(id, to, Message::Beat { request, node, epoch });
            }
        }
        match step {
            Step::Arm { expected, nonce } if may_arm => {
                self.agent(id, boot).expect("as before").proposes_at = at.after(PAUSE);
                self.propose(id, Command::Arm { node, expected, nonce, machine });
            }
            Step::TellFence { nonce, epoch, terms } => {
                self.ask(id, Asker::Agent { boot }, Request::Arm { nonce, epoch, terms });
            }
            _ => {}
        }
    }

    pub(super) fn granted(&mut self, id: HostId, request: u64) {
        let at = self.time_on(id);
        let Some(agent) = self.host(id).agent.as_mut() else { return };
        let (boot, Some((epoch, sent))) = (agent.boot, agent.renewals.remove(&request)) else { return };
        let sent = if self.mutation == Mutation::CountsFromReceipt { at } else { sent };
        self.ask(id, Asker::Agent { boot }, Request::Renewed { epoch, sent });
    }

    fn keep_units(&mut self, id: HostId, boot: u64) {
        let now = self.now;
        let is_bold = self.mutation == Mutation::ActsOnWhatIsOld;
        let mutation = self.mutation;
        let host = self.host(id);
        let (node, observed) = (host.node, host.observed());
        let at = host.clock.read(now);
        let agent = host.agent.as_mut().expect("it looks");
        let observed = mutation.observed(observed, node, agent.known().1);
        agent.jobs.retain(|_, job| job.since + PATIENCE > now);
        if !agent.is_current() && !is_bold {
            return;
        }
        let under_way = agent.jobs.keys().map(InstanceId::to_string).collect();
        let attempts = Attempts { under_way, ..Attempts::default() };
        let (_, state) = agent.known();
        let actions = mutation.actions(reconcile::reconcile(node, state, &observed, &attempts), node, state);
        let returns = reconcile::returns(node, state, &actions);
        let (vms, tasks) = reconcile::report(node, state, &observed, &attempts);
        let reports = (returns || !vms.is_empty()) && agent.proposes_at <= at;
        if reports {
            agent.proposes_at = at.after(PAUSE);
        }
        let mut grouped: BTreeMap<InstanceId, VecDeque<UnitChange>> = BTreeMap::new();
        for action in actions {
            let instance = match &action.change {
                UnitChange::StopVm(instance) => instance,
                UnitChange::StartVm(unit, _) | UnitChange::UpdateVm(unit, _) => &unit.instance,
                UnitChange::StopTask(_) | UnitChange::StartTask(_) => unreachable!("there are no tasks"),
            };
            grouped.entry(instance.clone()).or_default().push_back(action.change);
        }
        if reports {
            let news = if returns { Command::ReturnNode { node } } else { Command::Report { node, vms, tasks } };
            self.propose(id, news);
        }
        for (instance, changes) in grouped {
            let job = self.number();
            let agent = self.agent(id, boot).expect("it looks");
            if !agent.jobs.contains_key(&instance) {
                agent.jobs.insert(instance.clone(), Job { id: job, since: now, changes });
                let soon = self.random.below(20 * MILLISECOND);
                self.after(soon, id, Event::Work { boot, instance, job });
            }
        }
    }

    fn change(&mut self, id: HostId, boot: u64, instance: &InstanceId, job: u64) -> Option<UnitChange> {
        let job = self.agent(id, boot)?.jobs.get(instance).filter(|known| known.id == job)?;
        job.changes.front().cloned()
    }

    /// The next of a job's steps that needs nobody's answer.
    fn work(&mut self, id: HostId, boot: u64, instance: &InstanceId, job: u64) {
        match self.change(id, boot, instance, job) {
            Some(UnitChange::StopVm(_)) => self.work_at_stop(id, boot, instance, job),
            Some(UnitChange::StartVm(unit, epoch) | UnitChange::UpdateVm(unit, epoch)) => {
                if unit.failover == Failover::Manual {
                    return self.install_unit(id, boot, unit, job);
                }
                let (instance, generation) = (instance.clone(), unit.generation);
                let asker = Asker::Job { boot, instance: instance.clone(), job };
                self.ask(id, asker, Request::Allow { epoch, instance, generation });
            }
            Some(UnitChange::StopTask(_) | UnitChange::StartTask(_)) => unreachable!("there are no tasks"),
            None => {}
        }
    }

    fn work_at_stop(&mut self, id: HostId, boot: u64, instance: &InstanceId, job: u64) {
        let names = [Failover::Automatic, Failover::Manual].map(|failover| (instance.clone(), failover));
        let mut runs = false;
        for name in names {
            let Some(unit) = self.hosts[&id].units.get(&name) else { continue };
            runs = true;
            if unit.phase != RunPhase::Stopping {
                if self.hosts[&id].epoch() == self.epoch() {
                    self.facts.stops(&self.truth, &self.hosts[&id], &name);
                }
                self.stop_unit(id, &name);
            }
        }
        if runs && self.mutation != Mutation::AcknowledgesTooEarly {
            let soon = self.random.between(10 * MILLISECOND, 50 * MILLISECOND);
            return self.after(soon, id, Event::Work { boot, instance: instance.clone(), job });
        }
        let installed = self.hosts[&id].installed.get(instance);
        match installed.filter(|unit| unit.failover == Failover::Automatic && !runs) {
            Some(unit) => {
                let (instance, generation) = (instance.clone(), unit.generation);
                let asker = Asker::Job { boot, instance: instance.clone(), job };
                self.ask(id, asker, Request::Stop { instance, generation });
            }
            None => self.is_stopped(id, boot, instance, job),
        }
    }

    fn is_stopped(&mut self, id: HostId, boot: u64, instance: &InstanceId, job: u64) {
        self.host(id).installed.remove(instance);
        if self.mutation == Mutation::AcknowledgesTooEarly {
            self.report_as_stopped(id, instance);
        }
        self.next(id, boot, instance, job);
    }

    /// With [`Mutation::AcknowledgesTooEarly`]: what still runs is reported to be stopped.
    fn report_as_stopped(&mut self, id: HostId, instance: &InstanceId) {
        use blixard_core::command::{InstancePhase, VmReport};
        let node = self.hosts[&id].node;
        let (_, state) = self.hosts[&id].agent.as_ref().expect("it works").known();
        let placement = state.instances().get(instance).and_then(|instance| instance.placement.as_ref());
        let Some(placement) = placement.filter(|placement| placement.node == node) else { return };
        let generation = placement.unit.generation;
        let (instance, message) = (instance.clone(), String::new());
        let report = VmReport { instance, generation, phase: InstancePhase::Stopped, restarts: 0, message };
        self.propose(id, Command::Report { node, vms: vec![report], tasks: Vec::new() });
    }

    fn job_hears(&mut self, id: HostId, boot: u64, instance: &InstanceId, job: u64, reply: &Reply) {
        match (self.change(id, boot, instance, job), reply) {
            (Some(UnitChange::StopVm(_)), Reply::Done) => self.is_stopped(id, boot, instance, job),
            (Some(UnitChange::StartVm(unit, _) | UnitChange::UpdateVm(unit, _)), Reply::Done) => {
                self.install_unit(id, boot, unit, job);
            }
            (Some(_), _) => self.give_up(id, boot, instance),
            (None, _) => {}
        }
    }

    /// Writes the file of a unit, and starts it where that is the change.
    fn install_unit(&mut self, id: HostId, boot: u64, unit: VmUnit, job: u64) {
        let name = (unit.instance.clone(), unit.failover);
        let starts = matches!(self.change(id, boot, &unit.instance, job), Some(UnitChange::StartVm(..)));
        self.host(id).installed.insert(unit.instance.clone(), unit);
        if starts {
            let soon = self.random.below(20 * MILLISECOND);
            self.after(soon, id, Event::Start { name: name.clone() });
        }
        self.next(id, boot, &name.0, job);
    }

    fn next(&mut self, id: HostId, boot: u64, instance: &InstanceId, job: u64) {
        let Some(agent) = self.agent(id, boot) else { return };
        let Some(known) = agent.jobs.get_mut(instance).filter(|known| known.id == job) else { return };
        known.changes.pop_front();
        if known.changes.is_empty() {
            agent.jobs.remove(instance);
        } else {
            self.after(MILLISECOND, id, Event::Work { boot, instance: instance.clone(), job });
        }
    }

    /// What failed is tried again at the next look.
    fn give_up(&mut self, id: HostId, boot: u64, instance: &InstanceId) {
        if let Some(agent) = self.agent(id, boot) {
            agent.jobs.remove(instance);
        }
    }

    /// When a host's clock shows what it shows now.
    pub fn time_on(&self, id: HostId) -> BootTime {
        self.hosts[&id].clock.read(self.now)
    }
}
