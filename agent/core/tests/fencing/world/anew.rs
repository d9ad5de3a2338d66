//! How the cluster begins anew, by persons: with what is on one of its hosts, or with a backup; and how the others come back.

use std::rc::Rc;

use blixard_core::command::{Command, Entry, NewNode};
use blixard_core::driver::{Position, Recovered};
use blixard_core::state::{Absence, Beginner, Renewal, State};
use blixard_core::types::{ClusterEpoch, NodeId, NodeRole, RaftId, Term, Timestamp};

use super::network::Message;
use super::{Event, HostId, World};
use crate::cluster;
use crate::host::{Disk, Host};
use crate::server::{Beginning, Log};

/// What a server has applied.
pub struct Backup {
    state: State,
    position: Position,
}

impl Backup {
    /// The node that a host becomes which begins with it.
    pub fn newcomer(&self) -> NodeId {
        NodeId(self.state.newest_node().0 + 1)
    }
}

impl World {
    /// A host that was admitted begins.
    pub fn admit(&mut self, id: HostId, node: NodeId) {
        let disk = Disk::of(&self.beginning);
        self.install(id, node, disk);
    }

    /// All that the leader has applied.
    pub fn back_up(&mut self, leader: HostId) -> Backup {
        let server = self.server(leader).expect("it leads");
        Backup { state: server.state.clone(), position: server.applied }
    }

    /// A server goes on alone, with all that is in its log.
    pub fn recover(&mut self, id: HostId) {
        self.crash_agent(id, None);
        let host = &self.hosts[&id];
        let (_, log) = host.disk.log.as_ref().expect("it is a server");
        let recovered = log.recovered(&host.disk.beginning);
        let (node, mut state) = (host.node, host.disk.beginning.state.clone());
        for (Position { index, term }, command) in recovered.unapplied() {
            state.apply(index, Term(term), &Entry::decode(command).expect("it was encoded here"));
        }
        self.begin_epoch(id, (Renewal::Recovered, Beginner::Survivor(node)), &recovered, state);
    }

    /// A host that was no member begins with a backup.
    pub fn restore(&mut self, id: HostId, backup: &Backup) {
        let node = backup.newcomer();
        let host = cluster::host(node.0, NodeRole::Server);
        let recovered = Recovered { base: backup.position, ..Recovered::default() };
        self.admit(id, node);
        let beginner = Beginner::Newcomer { host: &host, replaces: false };
        self.begin_epoch(id, (Renewal::Restored, beginner), &recovered, backup.state.clone());
    }

    fn begin_epoch(
        &mut self,
        id: HostId,
        (how, beginner): (Renewal, Beginner),
        recovered: &Recovered,
        mut state: State,
    ) {
        let tag = u32::try_from(self.number()).expect("there aren't so many");
        let before = state.clone();
        let (_, raft) = state.begin_epoch(how, beginner, tag, self.wall_clock()).expect("it can");
        let (start, state) = (recovered.anew(raft), self.mutation.begins(&before, state));
        self.truth_at = start.base.index;
        self.truth = state.clone();
        self.beginning = Rc::new(Beginning { start, state });
        match how {
            Renewal::Recovered => self.facts.recovered += 1,
            Renewal::Restored => self.facts.restored += 1,
        }
        self.note(|| format!("{id:?} begins the cluster anew"));
        let log = Some((raft, Log::blank(&self.beginning)));
        self.host(id).disk = Disk { log, spent: raft, ..Disk::of(&self.beginning) };
        self.after(0, id, Event::StartAgent);
    }

    /// Every second is worth a day, so that there are fewer placements than seconds.
    fn wall_clock(&self) -> Timestamp {
        Timestamp(self.now * 86_400 / 1000)
    }

    /// Whether it is one of the newest epoch.
    pub fn is_member(&self, host: &Host) -> bool {
        host.epoch() == self.epoch()
    }

    /// What a host has of its cluster is put aside: it is to be a member of the newest one.
    pub fn rejoin(&mut self, id: HostId) {
        self.crash_agent(id, None);
        let disk = &mut self.host(id).disk;
        (disk.log, disk.spent, disk.rejoins, disk.is_forbidden) = (None, RaftId::default(), true, false);
        self.after(0, id, Event::StartAgent);
    }

    /// What an agent does that is no member.
    pub(super) fn want_in(&mut self, id: HostId) {
        let (node, servers) = (self.hosts[&id].node, self.servers_of(self.epoch()));
        let role = self.beginning.state.nodes().get(&node).map_or(NodeRole::Auto, |member| member.role);
        if let Some(to) = self.random.one_of(&servers) {
            self.send(id, to, Message::Rejoin(cluster::host(node.0, role)));
        }
    }

    pub(super) fn wants_in(&mut self, id: HostId, from: HostId, host: NewNode, was_in: ClusterEpoch) {
        let at = self.time_on(id);
        let node = self.hosts[&from].node;
        let Some(server) = self.server(id).filter(|server| server.leads()) else { return };
        if server.state.absent().get(&node) == Some(&Absence::Away) {
            server.propose(Command::Rejoin { host, was_in }, at);
            self.turns(id);
        } else {
            self.send(id, from, Message::Rejoined);
        }
    }

    pub(super) fn is_in(&mut self, id: HostId, epoch: ClusterEpoch) {
        if self.hosts[&id].disk.rejoins && epoch == self.epoch() {
            self.crash_agent(id, Some(0));
            self.host(id).disk = Disk::of(&self.beginning);
        }
    }
}
