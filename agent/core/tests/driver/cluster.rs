//! A whole Raft group in one thread: drivers, disks that keep only what was written, a network that obeys a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use blixard_core::driver::{
    Committed, Content, Driver, Fate, LogStore, Membership, Message, Position, Proposals, ReadId, Recovered, Role,
    Settings, Status, Write,
};
use blixard_core::types::RaftId;
use raft::eraftpb::{Entry, HardState};

pub const FOUNDER: RaftId = RaftId(1);

/// A small generator of our own, so that no update of a crate changes what a seed means.
pub struct Random(u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % bound as u64).unwrap()
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// What survives a crash of one server.
#[derive(Default)]
pub struct Disk {
    entries: Vec<Entry>,
    hard_state: HardState,
}

impl Disk {
    fn holds(&self, position: Position) -> bool {
        self.entries.iter().any(|entry| Position::of(entry) == position)
    }
}

impl LogStore for Disk {
    type Error = Infallible;
    fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), Infallible> {
        if let Some(first) = entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(entries);
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        Ok(())
    }

    fn restart(&mut self, _: Position, _: &HardState) -> Result<(), Infallible> {
        unreachable!("no server is sent a snapshot here")
    }
}

struct Member {
    id: RaftId,
    driver: Option<Driver>,
    disk: Disk,
    boots: u64,
    applied: Vec<Committed>,
    /// The servers as of each index that changed them.
    memberships: BTreeMap<u64, Membership>,
    proposals: Proposals<Vec<u8>>,
    /// What was known to be committed when each read was asked for.
    reads: BTreeMap<ReadId, u64>,
}

impl Member {
    fn recovered(&mut self) -> Recovered {
        let hard_state = self.disk.hard_state.clone();
        // The store was durable only up to a commit index that the log held on disk.
        self.applied.retain(|entry| entry.position.index <= hard_state.commit);
        let applied = self.applied.last().map_or(0, |entry| entry.position.index);
        let membership = self.memberships.range(..=applied).next_back().expect("it was founded").1.clone();
        Recovered { base: Position::default(), entries: self.disk.entries.clone(), hard_state, membership, applied }
    }
}

pub struct Cluster {
    seed: u64,
    pub random: Random,
    members: BTreeMap<RaftId, Member>,
    network: Vec<Message>,
    pub drop_percent: usize,
    cut: BTreeSet<(u64, u64)>,
    pub trace: Vec<String>,
    /// By term.
    pub leaders: BTreeMap<u64, RaftId>,
    committed: BTreeMap<u64, Committed>,
    /// Where each command went that its proposer was told about.
    pub acknowledged: BTreeMap<Vec<u8>, Position>,
    pub settled: Vec<(Vec<u8>, Fate)>,
    pub answered: Vec<(RaftId, ReadId, u64)>,
}

impl Cluster {
    /// A founder that leads alone.
    pub fn founded(seed: u64) -> Self {
        let mut cluster = Self {
            seed,
            random: Random(seed),
            members: BTreeMap::new(),
            network: Vec::new(),
            drop_percent: 0,
            cut: BTreeSet::new(),
            trace: Vec::new(),
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            settled: Vec::new(),
            answered: Vec::new(),
        };
        cluster.install(FOUNDER, Membership::founded_by(FOUNDER));
        cluster.driver(FOUNDER).campaign_if_alone();
        cluster.settle(FOUNDER);
        cluster
    }

    /// Servers 1 to `size`, all voters from the start, none of which leads yet.
    pub fn of_voters(seed: u64, size: u64) -> Self {
        let mut cluster = Self::founded(seed);
        cluster.members.clear();
        cluster.leaders.clear();
        cluster.committed.clear();
        let voters: BTreeSet<RaftId> = (1..=size).map(RaftId).collect();
        for id in &voters {
            cluster.install(*id, Membership { voters: voters.clone(), learners: BTreeSet::new() });
        }
        cluster
    }

    /// A blank server, started.
    pub fn install(&mut self, id: RaftId, membership: Membership) {
        let member = Member {
            id,
            driver: None,
            disk: Disk::default(),
            boots: 0,
            applied: Vec::new(),
            memberships: BTreeMap::from([(0, membership)]),
            proposals: Proposals::default(),
            reads: BTreeMap::new(),
        };
        self.members.insert(id, member);
        self.start(id);
    }

    pub fn start(&mut self, id: RaftId) {
        let member = self.members.get_mut(&id).unwrap();
        member.boots += 1;
        let settings = Settings::new(id, self.seed ^ member.boots << 32);
        let recovered = member.recovered();
        member.driver = Some(Driver::new(settings, recovered).unwrap());
    }

    /// Loses everything that isn't on its disk.
    pub fn crash(&mut self, id: RaftId) {
        let member = self.members.get_mut(&id).unwrap();
        member.driver = None;
        member.proposals = Proposals::default();
        member.reads.clear();
    }

    pub fn ids(&self) -> Vec<RaftId> {
        self.members.keys().copied().collect()
    }

    pub fn is_up(&self, id: RaftId) -> bool {
        self.members[&id].driver.is_some()
    }

    pub fn driver(&mut self, id: RaftId) -> &mut Driver {
        self.members.get_mut(&id).unwrap().driver.as_mut().expect("it runs")
    }

    pub fn status(&self, id: RaftId) -> Status {
        self.members[&id].driver.as_ref().expect("it runs").status()
    }

    pub fn applied_commands(&self, id: RaftId) -> Vec<Vec<u8>> {
        let command = |entry: &Committed| match &entry.content {
            Content::Command(command) => Some(command.clone()),
            _ => None,
        };
        self.members[&id].applied.iter().filter_map(command).collect()
    }

    /// The leader of the highest term, if it runs.
    pub fn leader(&self) -> Option<RaftId> {
        let leads = |member: &&Member| member.driver.as_ref().is_some_and(|driver| driver.soft().role == Role::Leader);
        let term = |member: &&Member| member.driver.as_ref().map(|driver| driver.status().term);
        self.members.values().filter(leads).max_by_key(term).map(|member| member.id)
    }

    /// Takes the links between `id` and all others away, in both directions.
    pub fn isolate(&mut self, id: RaftId) {
        for other in self.members.keys().filter(|other| **other != id) {
            self.cut.extend([(id.0, other.0), (other.0, id.0)]);
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.drop_percent = 0;
    }

    pub fn propose(&mut self, id: RaftId, command: &[u8]) -> Option<Position> {
        let position = self.driver(id).propose(command.to_vec()).ok()?;
        self.members.get_mut(&id).unwrap().proposals.track(position, command.to_vec());
        self.settle(id);
        Some(position)
    }

    pub fn read(&mut self, id: RaftId) -> Option<ReadId> {
        let read = self.driver(id).read_index().ok()?;
        let known = self.acknowledged.values().map(|position| position.index).max().unwrap_or(0);
        self.members.get_mut(&id).unwrap().reads.insert(read, known);
        self.settle(id);
        Some(read)
    }

    /// One tick everywhere, then every message that is under way, in the order of the seed.
    pub fn round(&mut self) {
        for id in self.ids() {
            self.tick(id);
        }
        for _ in 0..10_000 {
            if self.network.is_empty() {
                return;
            }
            self.deliver();
        }
        panic!("seed {}: the messages never end", self.seed);
    }

    /// Rounds until `found` says so.
    pub fn until(&mut self, what: &str, mut found: impl FnMut(&Self) -> bool) {
        for _ in 0..3_000 {
            if found(self) {
                return;
            }
            self.round();
        }
        let last: Vec<_> = self.ids().iter().filter(|id| self.is_up(**id)).map(|id| self.status(*id)).collect();
        panic!("seed {}: no {what} after 3000 rounds; last: {last:#?}", self.seed);
    }

    pub fn elect(&mut self) -> RaftId {
        self.until("leader", |cluster| {
            cluster.leader().is_some_and(|id| cluster.status(id).commit > 0 && cluster.follows_everywhere(id))
        });
        self.leader().unwrap()
    }

    fn follows_everywhere(&self, leader: RaftId) -> bool {
        self.members
            .values()
            .filter_map(|member| member.driver.as_ref())
            .all(|driver| driver.soft().leader == Some(leader))
    }

    pub fn tick(&mut self, id: RaftId) {
        if self.is_up(id) {
            self.driver(id).tick();
            self.settle(id);
        }
    }

    /// Delivers or loses one message that is under way.
    pub fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let chosen = self.random.below(self.network.len());
        let message = self.network.remove(chosen);
        let (from, to) = (message.from, RaftId(message.to));
        let lost = self.cut.contains(&(from, to.0)) || self.random.percent(self.drop_percent);
        if lost || !self.members.contains_key(&to) || !self.is_up(to) {
            return;
        }
        self.trace.push(shown(&message));
        // A server that was started again may get answers to what it no longer knows of.
        let _ = self.driver(to).step(message);
        self.settle(to);
    }

    /// Turns until there is nothing left to do, and every invariant.
    pub fn settle(&mut self, id: RaftId) {
        let quorum = {
            let Self { members, network, committed, .. } = self;
            let member = members.get_mut(&id).unwrap();
            let Member { driver, disk, applied, memberships, proposals, reads, .. } = member;
            let driver = driver.as_mut().expect("it runs");
            let mut fresh = Vec::new();
            while let Some(turn) = driver.turn() {
                network.extend(turn.send);
                if let Some(durable) = Write::write_all(turn.write.into_iter().collect(), disk).unwrap() {
                    network.extend(driver.persisted(durable));
                }
                for entry in turn.committed {
                    let index = entry.position.index;
                    let previous = applied.last().map_or(0, |last| last.position.index);
                    assert_eq!(index, previous + 1, "server {id} skipped an entry or got one twice");
                    if let Content::Membership { change, .. } = &entry.content {
                        let next = driver.apply_membership(index, *change).expect("the tests propose what fits");
                        memberships.insert(index, next);
                    }
                    let waiting = proposals.settle(&entry);
                    self.settled.extend(waiting.iter().cloned());
                    for (command, _) in waiting.into_iter().filter(|(_, fate)| *fate == Fate::Applied) {
                        self.acknowledged.insert(command, entry.position);
                    }
                    applied.push(entry.clone());
                    driver.applied(index);
                    fresh.push(entry);
                }
                for (read, index) in turn.reads {
                    let known = reads.remove(&read).expect("every answer belongs to one question");
                    assert!(index >= known, "server {id} read at {index} what was acknowledged up to {known}");
                    self.answered.push((id, read, index));
                }
            }
            for entry in &fresh {
                let known = committed.entry(entry.position.index).or_insert_with(|| entry.clone());
                assert_eq!(known, entry, "two entries committed at one index");
            }
            let before = fresh.first().map_or(0, |entry| entry.position.index - 1);
            let voters = &memberships.range(..=before).next_back().expect("it was founded").1.voters;
            fresh.into_iter().map(|entry| (entry.position, voters.clone())).collect::<Vec<_>>()
        };
        for (position, voters) in quorum {
            self.what_is_committed_is_on_the_disks_of_a_quorum(position, &voters);
        }
        self.at_most_one_server_leads_a_term(id);
    }

    fn at_most_one_server_leads_a_term(&mut self, id: RaftId) {
        let status = self.status(id);
        if status.soft.role == Role::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(leader, id, "seed {}: two servers lead term {}", self.seed, status.term);
        }
    }

    fn what_is_committed_is_on_the_disks_of_a_quorum(&self, position: Position, voters: &BTreeSet<RaftId>) {
        let holders = voters.iter().filter(|id| self.members.get(id).is_some_and(|member| member.disk.holds(position)));
        let holders = holders.count();
        assert!(holders * 2 > voters.len(), "seed {}: {position:?} committed on {holders} disks", self.seed);
    }

    /// Every server that runs has applied every acknowledged command, each once.
    pub fn assert_nothing_acknowledged_is_lost(&self) {
        for id in self.ids().into_iter().filter(|id| self.is_up(*id)) {
            let applied = self.applied_commands(id);
            for command in self.acknowledged.keys() {
                let count = applied.iter().filter(|other| *other == command).count();
                assert_eq!(count, 1, "seed {}: server {id} applied {command:?} {count} times", self.seed);
            }
        }
    }
}

/// A message on one line, with what matters of its kind.
fn shown(message: &Message) -> String {
    use std::fmt::Write as _;
    let Message { from, to, term, index, log_term, commit, .. } = message;
    let mut line = format!("{from}→{to} {:?} term {term}", message.msg_type());
    for (name, value) in [("index", index), ("log_term", log_term), ("commit", commit)] {
        if *value != 0 {
            write!(line, " {name} {value}").unwrap();
        }
    }
    if !message.entries.is_empty() {
        write!(line, " entries {}", message.entries.len()).unwrap();
    }
    if message.reject {
        line.push_str(" reject");
    }
    line
}
