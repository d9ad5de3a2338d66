//! The ways between the hosts, and what is under way on them.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::command::{Command, NewNode};
use blixard_core::driver::{Message as RaftMessage, RefusedMessage};
use blixard_core::state::Assignment;
use blixard_core::types::{ClusterEpoch, NodeEpoch, NodeId, RaftId};

use super::{Event, HostId, MILLISECOND, SECOND, Time, World};
use crate::server::{Answer, Told};

#[derive(Clone)]
pub struct Sent {
    pub from: HostId,
    /// Of the cluster of which the sender is a member.
    pub epoch: ClusterEpoch,
    pub message: Message,
}

#[derive(Clone)]
pub enum Message {
    Raft(RaftMessage),
    /// A node is there, and asks for its lease where it has an epoch.
    Beat {
        request: u64,
        node: NodeId,
        epoch: Option<NodeEpoch>,
    },
    Granted {
        request: u64,
    },
    Barrier {
        request: u64,
    },
    Index {
        request: u64,
        index: u64,
    },
    /// What is placed on this node?
    Ask {
        node: NodeId,
        known: u64,
    },
    Assigned(Vec<u8>),
    Propose {
        command: Command,
        hops: u8,
    },
    /// This server is none any more.
    Dismissed(RaftId),
    /// A member of an earlier epoch wants in again.
    Rejoin(NewNode),
    /// It is a member of this one.
    Rejoined,
}

/// How the network is.
pub struct Network {
    /// Ways that nothing goes, one direction each.
    pub cut: BTreeSet<(HostId, HostId)>,
    pub drop_percent: u64,
    pub twice_percent: u64,
    /// Longest that a message is under way, and one that comes twice.
    pub latency: Time,
    pub late: Time,
    /// Hosts that don't hear what is placed on them.
    pub deaf: BTreeSet<HostId>,
    /// Ways on which everything takes this long on top.
    pub slow: BTreeMap<(HostId, HostId), Time>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            cut: BTreeSet::new(),
            drop_percent: 0,
            twice_percent: 0,
            latency: 2 * MILLISECOND,
            late: SECOND,
            deaf: BTreeSet::new(),
            slow: BTreeMap::new(),
        }
    }
}

impl World {
    /// Takes the ways between a host and all others away, in both directions.
    pub fn isolate(&mut self, id: HostId) {
        let others: Vec<HostId> = self.hosts.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            self.network.cut.extend([(id, other), (other, id)]);
        }
    }

    pub(super) fn send(&mut self, from: HostId, to: HostId, message: Message) {
        let sent = Box::new(Sent { from, epoch: self.hosts[&from].epoch(), message });
        if from == to {
            return self.after(0, to, Event::Deliver(sent));
        }
        if matches!(sent.message, Message::Assigned(_)) && self.network.deaf.contains(&to) {
            return;
        }
        if self.network.cut.contains(&(from, to)) || self.random.percent(self.network.drop_percent) {
            return;
        }
        if self.random.percent(self.network.twice_percent) {
            let late = self.random.below(self.network.late);
            self.after(late, to, Event::Deliver(sent.clone()));
        }
        let slow = self.network.slow.get(&(from, to)).copied().unwrap_or_default();
        let latency = self.random.between(200, self.network.latency) + slow;
        self.after(latency, to, Event::Deliver(sent));
    }

    /// Brings a command to whoever leads, as far as its sender knows.
    pub fn propose(&mut self, from: HostId, command: Command) {
        let hosts = self.servers_of(self.hosts[&from].epoch());
        let own = hosts.contains(&from).then_some(from);
        if let Some(to) = own.or_else(|| self.random.one_of(&hosts)) {
            self.send(from, to, Message::Propose { command, hops: 0 });
        }
    }

    /// Sends what a server's turns ask for.
    pub(super) fn turns(&mut self, id: HostId) {
        let (at, epoch) = (self.time_on(id), self.hosts[&id].epoch());
        let Some(server) = self.server(id) else { return };
        let told = server.turns(at);
        let forwards = std::mem::take(&mut server.forwards);
        self.note_applied(epoch, &told);
        let Told { messages, answers, .. } = told;
        for message in messages {
            if let Some(to) = self.rafts.get(&(epoch.tag, RaftId(message.to))).copied() {
                self.send(id, to, Message::Raft(message));
            }
        }
        for answer in answers {
            match answer {
                Answer::Granted { to, request } => self.send(id, to, Message::Granted { request }),
                Answer::Index { to, request, index } => self.send(id, to, Message::Index { request, index }),
            }
        }
        for command in forwards {
            for to in self.servers_of(epoch) {
                let sent = Sent { from: id, epoch, message: Message::Propose { command: command.clone(), hops: 0 } };
                let late = self.random.between(SECOND, 3 * SECOND);
                self.after(late, to, Event::Deliver(Box::new(sent)));
            }
        }
    }

    pub(super) fn delivered(&mut self, id: HostId, sent: Sent) {
        let (at, epoch) = (self.time_on(id), self.hosts[&id].epoch());
        let Sent { from, epoch: of, message } = sent;
        match message {
            Message::Rejoin(host) => return self.wants_in(id, from, host, of),
            Message::Rejoined => return self.is_in(id, of),
            _ if of != epoch || self.hosts[&id].disk.rejoins => return,
            Message::Granted { request } => return self.granted(id, request),
            Message::Index { request, index } => return self.barrier_is_known(id, request, index),
            Message::Assigned(bytes) => return self.assigned(id, &bytes),
            Message::Dismissed(raft) => return self.dismiss(id, raft),
            Message::Raft(message) => {
                let (member, raft) = (self.hosts[&from].node, RaftId(message.from));
                if self.server(id).is_some_and(|server| server.state.is_dismissed(member, raft)) {
                    return self.send(id, from, Message::Dismissed(raft));
                }
                if let Some(server) = self.server(id).filter(|server| server.id.0 == message.to)
                    && let Err(RefusedMessage::LostLog(_)) = server.driver.step(message)
                {
                    return self.lost_its_log(id);
                }
            }
            Message::Beat { request, node, epoch } => {
                let answer = self.server(id).and_then(|server| server.beat((from, request), node, epoch, at));
                if let Some(Answer::Granted { to, request }) = answer {
                    self.send(id, to, Message::Granted { request });
                }
            }
            Message::Barrier { request } => {
                if let Some(server) = self.server(id) {
                    server.barrier(from, request);
                }
            }
            Message::Ask { node, known } => {
                let news = self.server(id).filter(|server| server.applied.index > known);
                if let Some(bytes) = news.map(|server| server.state.assignment(node, server.applied.index).encode()) {
                    self.send(id, from, Message::Assigned(bytes));
                }
            }
            Message::Propose { command, hops } => self.proposed(id, command, hops),
        }
        self.turns(id);
    }

    /// A host goes on as a worker.
    pub(super) fn dismiss(&mut self, id: HostId, raft: RaftId) {
        if let Some(agent) = self.host(id).agent.as_mut() {
            agent.server.take_if(|server| server.id == raft);
        }
    }

    fn proposed(&mut self, id: HostId, command: Command, hops: u8) {
        let at = self.hosts[&id].clock.read(self.now);
        let Some(server) = self.server(id) else { return };
        if server.leads() {
            server.propose(command, at);
        } else if let Some(leader) = server.driver.soft().leader.filter(|_| hops < 2) {
            let to = self.rafts[&(self.hosts[&id].epoch().tag, leader)];
            self.send(id, to, Message::Propose { command, hops: hops + 1 });
        }
    }

    fn assigned(&mut self, id: HostId, bytes: &[u8]) {
        let Some(agent) = self.host(id).agent.as_mut() else { return };
        // An older one than it knows is refused.
        if let Ok(assignment) = Assignment::decode(bytes, agent.told.0) {
            agent.told = (assignment.applied, assignment.state().expect("it was made from a state"));
        }
    }
}
