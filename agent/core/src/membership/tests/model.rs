//! Random sequences of joins, crashes, returns, removals and other settings: whatever comes, each step is one change, no
//! step costs a quorum, and once nothing more comes the servers are those that are wanted.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::*;
use crate::command::{Command, Origin, Reply};
use crate::driver::{Role, Soft};
use crate::state::tests::{Fixture, manifest};

/// Most nodes that join.
const MOST: u64 = 9;
/// Steps within which the servers are as wanted: each node is removed, dismissed, enlisted, added and promoted once at most.
const ENOUGH: usize = 100;

#[derive(Clone, Copy, Debug)]
enum Event {
    Join(NodeRole),
    Declare(u64, NodeRole),
    Crash(u64),
    /// It has been away for so long that it is lost.
    Lose(u64),
    Return(u64),
    Leave(u64),
    SetServers(usize),
    CatchUp,
    Steps(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let role = || prop::sample::select(vec![NodeRole::Auto, NodeRole::Auto, NodeRole::Server, NodeRole::Worker]);
    let node = || 1..=MOST;
    prop_oneof![
        3 => role().prop_map(Event::Join),
        1 => (node(), role()).prop_map(|(node, role)| Event::Declare(node, role)),
        2 => node().prop_map(Event::Crash),
        2 => node().prop_map(Event::Lose),
        3 => node().prop_map(Event::Return),
        1 => node().prop_map(Event::Leave),
        1 => prop::sample::select(vec![1, 3, 5]).prop_map(Event::SetServers),
        2 => Just(Event::CatchUp),
        6 => (1..6_usize).prop_map(Event::Steps),
    ]
}

struct Model {
    fixture: Fixture,
    servers: Membership,
    leader: RaftId,
    away: BTreeSet<NodeId>,
    lost: BTreeSet<NodeId>,
    caught_up: BTreeSet<RaftId>,
    /// Raft ids that were in the group and are no more.
    spent: BTreeSet<RaftId>,
}

impl Model {
    fn new() -> Self {
        Self {
            fixture: Fixture::of(1, NodeRole::Auto),
            servers: Membership::founded_by(RaftId(1)),
            leader: RaftId(1),
            away: BTreeSet::new(),
            lost: BTreeSet::new(),
            caught_up: BTreeSet::new(),
            spent: BTreeSet::new(),
        }
    }

    fn is_away(&self, raft: RaftId) -> bool {
        self.fixture.state.node_of_raft(raft).is_none_or(|(node, _)| self.away.contains(&node))
    }

    fn has_quorum(&self) -> bool {
        let voters = &self.servers.voters;
        voters.iter().filter(|voter| !self.is_away(**voter)).count() > voters.len() / 2
    }

    fn happen(&mut self, event: Event) {
        let is_member = |node: u64| self.fixture.state.nodes().contains_key(&NodeId(node));
        match event {
            Event::Join(role) if self.fixture.state.newest_node().0 < MOST => {
                self.fixture.join(self.fixture.state.newest_node().0 + 1, role);
            }
            Event::Declare(node, role) if is_member(node) => self.fixture.register(node, role),
            Event::Crash(node) if is_member(node) => self.crash(NodeId(node), false),
            Event::Lose(node) if is_member(node) => self.crash(NodeId(node), true),
            Event::Return(node) if is_member(node) => self.come_back(NodeId(node)),
            Event::Leave(node) => {
                // Refused where it is the last, or another one leaves.
                self.fixture.say(Command::RemoveNode { node: NodeId(node), dead: false, abandon_volumes: true });
            }
            Event::SetServers(servers) => {
                let mut manifest = manifest(&[]);
                manifest.cluster.servers = servers;
                self.fixture.say(Command::OfferManifest { manifest, from: Origin::Person("a person".to_owned()) });
            }
            Event::CatchUp => self.caught_up = self.servers.learners.clone(),
            Event::Steps(count) => _ = (0..count).find(|_| !self.step()),
            _ => {}
        }
    }

    fn crash(&mut self, node: NodeId, for_long: bool) {
        self.away.insert(node);
        if for_long {
            self.lost.insert(node);
        }
        self.fixture.decide(Command::SetWorkerAlive { node, alive: false });
    }

    fn come_back(&mut self, node: NodeId) {
        self.away.remove(&node);
        self.lost.remove(&node);
        self.fixture.decide(Command::SetWorkerAlive { node, alive: true });
    }

    /// Whoever leads, if anybody can.
    fn elect(&mut self) -> bool {
        if !self.servers.voters.contains(&self.leader) || self.is_away(self.leader) {
            let Some(next) = self.servers.voters.iter().copied().find(|raft| !self.is_away(*raft)) else {
                return false;
            };
            self.leader = next;
        }
        self.has_quorum()
    }

    fn status(&self) -> Status {
        let Membership { voters, learners } = &self.servers;
        let peer = |id: &RaftId| Peer {
            id: *id,
            matched: 9,
            recently_active: !self.is_away(*id),
            caught_up: self.caught_up.contains(id) && !self.is_away(*id),
        };
        let peers = voters.union(learners).filter(|id| **id != self.leader).map(peer).collect();
        Status {
            soft: Soft { role: Role::Leader, leader: Some(self.leader) },
            term: 1,
            commit: 9,
            applied: 9,
            first_index: 1,
            last_index: 9,
            membership: self.servers.clone(),
            peers,
        }
    }

    /// One step of whoever leads; whether there was one.
    fn step(&mut self) -> bool {
        if !self.elect() {
            return false;
        }
        let status = self.status();
        let step = next_step(&self.fixture.state, self.leader, &status, |node| self.lost.contains(&node));
        if let Some(Step::Change(change)) = step {
            self.change(change);
            assert!(self.has_quorum(), "{change} has cost the quorum: {:?}", self.servers);
        }
        match step {
            None => return self.forget(),
            Some(Step::Change(_)) => {}
            Some(Step::HandOver(heir)) => {
                assert!(self.servers.voters.contains(&heir) && !self.is_away(heir) && heir != self.leader);
                self.leader = heir;
            }
            Some(Step::Enlist(node)) => assert_eq!(self.fixture.decide(Command::Enlist { node }), Reply::Done),
        }
        true
    }

    fn change(&mut self, change: MembershipChange) {
        let Membership { voters, learners } = &mut self.servers;
        match change {
            MembershipChange::AddLearner(raft) => {
                assert!(!self.spent.contains(&raft), "{raft} was a server before");
                assert!(!voters.contains(&raft) && learners.insert(raft));
            }
            MembershipChange::Promote(raft) => {
                assert!(self.caught_up.contains(&raft) && learners.remove(&raft) && voters.insert(raft));
            }
            MembershipChange::Remove(raft) => {
                assert!(raft != self.leader && (voters.remove(&raft) || learners.remove(&raft)));
                self.spent.insert(raft);
                self.fixture.remove_server(raft);
            }
        }
        assert!(!self.servers.voters.is_empty() && self.servers.voters.len() <= MAX_SERVERS + 1);
    }

    fn forget(&mut self) -> bool {
        let gone = gone(&self.fixture.state, &self.servers).next();
        gone.is_some_and(|node| self.fixture.decide(Command::ForgetNode { node }) == Reply::Done)
    }

    /// Everybody is back, and has caught up; then there is an end to the steps.
    fn come_to_rest(&mut self) {
        for node in self.fixture.state.nodes().keys().copied().collect::<Vec<_>>() {
            self.come_back(node);
        }
        for _ in 0..ENOUGH {
            self.caught_up = self.servers.learners.clone();
            if !self.step() {
                return;
            }
        }
        panic!("no end to the steps: {:?}", self.servers);
    }

    fn is_as_wanted(&self) {
        let state = &self.fixture.state;
        let Wanted { enlisted, voting } = wanted(state, &self.servers, |_| false);
        let rafts = |nodes: &BTreeSet<NodeId>| -> BTreeSet<RaftId> {
            nodes.iter().map(|node| state.nodes()[node].raft.expect("who is wanted has one")).collect()
        };
        if voting.is_empty() {
            // All are declared workers: the one that has the log keeps it.
            return assert!(!self.servers.voters.is_empty());
        }
        assert_eq!(self.servers.voters, rafts(&voting));
        assert_eq!(&self.servers.voters | &self.servers.learners, rafts(&enlisted));
        let dismissed = state.servers().filter(|(id, _)| !enlisted.contains(id)).count();
        assert_eq!(dismissed, 0);
        let most = state.settings().servers;
        let able = state.nodes().values().filter(|node| node.role != NodeRole::Worker).count().min(most);
        let voters = self.servers.voters.len();
        assert!(voters == able || (voters + 1 == able && voters % 2 == 1), "{voters} of {able}");
        assert!(voters % 2 == 1 || (voters == 2 && able == 2), "{voters}");
    }
}

#[test]
fn of_several_voters_that_go_one_goes_for_each_that_comes() {
    use Event::{CatchUp, Declare, Join, Leave, SetServers, Steps};
    use NodeRole::{Auto, Worker};
    let mut model = Model::new();
    let first = [Join(Auto), Join(Auto), Join(Auto), Steps(2), CatchUp, Steps(1), Join(Auto), Declare(1, Worker)];
    let then = [Join(Auto), Join(Auto), SetServers(5), Leave(2), Join(Auto)];
    first.into_iter().chain(then).for_each(|event| model.happen(event));
    model.come_to_rest();
    model.is_as_wanted();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_step_costs_a_quorum_and_the_servers_become_those_that_are_wanted(
        events in prop::collection::vec(event(), 0..60)
    ) {
        let mut model = Model::new();
        for event in events {
            model.happen(event);
        }
        model.come_to_rest();
        model.is_as_wanted();
    }
}
