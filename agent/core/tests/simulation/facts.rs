//! What has to be so at every moment, each as a function that says it.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::driver::{Committed, Content, Membership, Message, Position, Role};
use blixard_core::types::RaftId;
use raft::eraftpb::{Entry, MessageType};

use super::cluster::Removal;
use super::disk::Failed;
use super::image::Image;
use super::members::Deed;
use super::server::Server;
use super::told::Told;

/// What was seen so far, and how often what had to happen did.
pub struct Facts {
    seed: u64,
    /// Who leads each term, and the log with which it began to.
    leaders: BTreeMap<u64, (RaftId, Image)>,
    /// Whom each server has told, in each term, that it votes for them.
    votes: BTreeMap<(RaftId, u64), u64>,
    /// The term on each disk when it was last looked at.
    terms: BTreeMap<u64, u64>,
    commits: BTreeMap<(RaftId, u64), u64>,
    entries: BTreeMap<(u64, u64), Entry>,
    committed: BTreeMap<u64, Committed>,
    /// The servers as of each index that changed them.
    memberships: BTreeMap<u64, Membership>,
    pub acknowledged: BTreeMap<Vec<u8>, Position>,
    pub crashes: u64,
    /// Writes that failed, and stopped their server.
    pub failed: BTreeMap<Failed, u64>,
    /// How often a clock ticked more than once at once.
    pub jumps: u64,
    pub elections: u64,
    pub snapshots: u64,
    pub changes: u64,
    pub deeds: BTreeMap<Deed, u64>,
    pub reads: u64,
    /// Processes that were told that another one speaks for their server.
    pub superseded: u64,
    pub overtaken: Overtaken,
    /// Which servers were asked for which snapshot before they could offer it.
    asked: BTreeSet<(RaftId, u64)>,
}

/// What happened to servers whose store a snapshot had overtaken: nothing could be read from it yet.
#[derive(Clone, Copy, Default, Debug)]
pub struct Overtaken {
    pub elections: u64,
    /// A follower needed a snapshot of one that led.
    pub asked: u64,
    pub crashes: u64,
}

impl Facts {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            terms: BTreeMap::new(),
            commits: BTreeMap::new(),
            entries: BTreeMap::new(),
            committed: BTreeMap::new(),
            memberships: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            crashes: 0,
            failed: BTreeMap::new(),
            jumps: 0,
            elections: 0,
            snapshots: 0,
            changes: 0,
            deeds: BTreeMap::new(),
            reads: 0,
            superseded: 0,
            overtaken: Overtaken::default(),
            asked: BTreeSet::new(),
        }
    }

    pub fn founded(&mut self, membership: &Membership) {
        self.memberships.insert(0, membership.clone());
    }

    pub fn count(&mut self, deed: Deed) {
        *self.deeds.entry(deed).or_default() += 1;
    }

    pub fn last_acknowledged(&self) -> u64 {
        self.acknowledged.values().map(|position| position.index).max().unwrap_or(0)
    }

    /// The last index that is known to be committed.
    pub fn last_committed(&self) -> u64 {
        self.committed.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// Everything, after something has happened on `server`.
    pub fn check(&mut self, server: &Server, told: &Told, servers: &[&Server]) {
        self.what_is_committed_is_on_the_disks_of_a_quorum(&told.committed, servers);
        self.all_servers_apply_the_same(server, told);
        self.what_is_acknowledged_is_committed(told);
        self.a_read_sees_what_was_acknowledged_before_it(told);
        self.nothing_is_promised_before_it_is_on_disk(server, &told.messages);
        self.no_server_votes_twice_in_a_term(server.id, &told.messages);
        self.logs_agree_wherever_they_have_the_same_term(server);
        self.check_disks(server);
        if server.is_up() {
            self.at_most_one_server_leads_a_term(server);
            self.terms_and_commits_never_go_back(server);
            self.each_index_has_its_servers(server);
            self.count_who_is_asked(server);
        }
    }

    /// What `server` has on its disks, after something has happened or was lost there.
    pub fn check_disks(&self, server: &Server) {
        self.a_log_has_no_gap_and_begins_where_the_store_is(server);
        self.no_store_is_ahead_of_its_log(server);
    }

    fn count_who_is_asked(&mut self, server: &Server) {
        let leads = server.status().soft.role == Role::Leader;
        if leads && server.store.installed && server.wants_checkpoint() {
            let is_new = self.asked.insert((server.id, server.store.checkpoint.position.index));
            self.overtaken.asked += u64::from(is_new);
        }
    }

    fn at_most_one_server_leads_a_term(&mut self, server: &Server) {
        let (status, image) = (server.status(), &server.log.durable);
        // Who votes alone leads before its term is on disk. Nobody has heard of that one, and a crash takes it back.
        if status.soft.role == Role::Leader && image.hard_state.term >= status.term {
            let (leader, _) = self.leaders.entry(status.term).or_insert_with(|| {
                self.elections += 1;
                self.overtaken.elections += u64::from(server.store.installed);
                (server.id, image.clone())
            });
            assert_eq!(*leader, server.id, "seed {}: two servers lead term {}", self.seed, status.term);
        }
    }

    fn terms_and_commits_never_go_back(&mut self, server: &Server) {
        let (seed, id, status) = (self.seed, server.id, server.status());
        let term = self.terms.entry(server.disk).or_default();
        // What it hasn't written, nobody has heard of.
        let written = server.log.durable.hard_state.term;
        assert!(written >= *term, "seed {seed}: server {id} was in term {term}, and now wrote {written}");
        *term = written;
        let commit = self.commits.entry((id, server.boot)).or_default();
        assert!(status.commit >= *commit, "seed {seed}: server {id} takes back its commit of {commit}");
        *commit = status.commit;
    }

    fn logs_agree_wherever_they_have_the_same_term(&mut self, server: &Server) {
        // What is older was looked at when it was new.
        for entry in server.log.live.entries.iter().rev().take(3) {
            let known = self.entries.entry((entry.index, entry.term)).or_insert_with(|| entry.clone());
            assert_eq!(known, entry, "seed {}: two entries {} of term {}", self.seed, entry.index, entry.term);
        }
    }

    fn a_log_has_no_gap_and_begins_where_the_store_is(&self, server: &Server) {
        let image = &server.log.live;
        let gap = (image.base.index + 1..).zip(&image.entries).find(|(index, entry)| entry.index != *index);
        assert!(gap.is_none(), "seed {}: the log of server {} has a gap: {gap:?}", self.seed, server.id);
        let (base, held) = (image.base.index, server.store.checkpoint.position.index);
        assert!(base <= held, "seed {}: server {} lacks what is between {held} and {base}", self.seed, server.id);
    }

    fn no_store_is_ahead_of_its_log(&self, server: &Server) {
        let (held, commit) = (server.store.checkpoint.position.index, server.log.durable.hard_state.commit);
        let fits = held <= commit || server.store.installed;
        assert!(fits, "seed {}: the store of server {} is at {held}, its log at {commit}", self.seed, server.id);
    }

    fn what_is_committed_is_on_the_disks_of_a_quorum(&mut self, committed: &[Committed], servers: &[&Server]) {
        for entry in committed {
            let Position { index, term } = entry.position;
            if self.committed.contains_key(&index) {
                continue;
            }
            let holds = |id: &&RaftId| {
                servers.iter().filter(|server| server.id == **id).any(|server| {
                    let is_stored = server.store.checkpoint.position.index >= index;
                    is_stored || server.log.durable.term_at(index) == Some(term)
                })
            };
            // A leader goes by the servers that it has applied; the last change may have been on its way with this entry.
            let voters: Vec<_> =
                self.memberships.range(..index).rev().take(2).map(|(_, membership)| &membership.voters).collect();
            let is_quorum = |voters: &&BTreeSet<RaftId>| voters.iter().filter(holds).count() * 2 > voters.len();
            let enough = voters.iter().any(is_quorum);
            assert!(enough, "seed {}: {index} committed on the disks of no quorum of {voters:?}", self.seed);
            if let Content::Membership { change, .. } = &entry.content {
                self.changes += 1;
                self.change(index, *change);
            }
        }
    }

    fn change(&mut self, index: u64, change: blixard_core::driver::MembershipChange) {
        use blixard_core::driver::MembershipChange as C;
        let mut next = self.memberships.last_key_value().expect("it was founded").1.clone();
        match change {
            C::AddLearner(id) => _ = next.learners.insert(id),
            C::Promote(id) => _ = (next.learners.remove(&id), next.voters.insert(id)),
            C::Remove(id) => _ = (next.learners.remove(&id), next.voters.remove(&id)),
        }
        self.memberships.insert(index, next);
    }

    /// One configuration comes out of one configuration, everywhere the same: so does one cluster, since quorums of
    /// neighbours have a server in common.
    fn each_index_has_its_servers(&self, server: &Server) {
        let Some((applied, membership)) = server.servers() else { return };
        let known = self.memberships.range(..=applied).next_back().map(|(_, membership)| membership);
        assert_eq!(Some(&membership), known, "seed {}: the servers as of {applied} on {}", self.seed, server.id);
    }

    /// A leader that removes a voter hears enough of the others for a quorum of them.
    pub fn no_removal_loses_the_quorum(&self, leader: RaftId, removal: &Removal) {
        let Removal { left, heard } = removal;
        let is_quorum = heard.len() * 2 > left.len();
        assert!(is_quorum, "seed {}: {leader} leaves {left:?}, of which it hears only {heard:?}", self.seed);
    }

    /// Whoever tells a server that it is none any more would know that after a crash without it.
    pub fn who_goes_is_needed_by_nobody(&self, teller: &Server, gone: RaftId) {
        let is_in = |servers: &Membership| servers.voters.contains(&gone) || servers.learners.contains(&gone);
        let since = self.memberships.iter().rev().take_while(|(_, servers)| !is_in(servers)).last();
        // One that never was in the group has nothing to leave.
        let Some((index, _)) = since.filter(|_| self.memberships.values().any(is_in)) else { return };
        let held = teller.log.durable.hard_state.commit.max(teller.store.checkpoint.position.index);
        assert!(held >= *index, "seed {}: {gone} is told to go, and would be needed once more", self.seed);
    }

    fn all_servers_apply_the_same(&mut self, server: &Server, told: &Told) {
        for entry in &told.committed {
            let known = self.committed.entry(entry.position.index).or_insert_with(|| entry.clone());
            assert_eq!(known, entry, "seed {}: two entries committed at one index", self.seed);
        }
        let Some(state) = &told.installed else { return };
        self.snapshots += 1;
        for (index, command) in &state.applied {
            let known = self.committed.get(index).map(|entry| &entry.content);
            let is_known = known == Some(&Content::Command(command.clone()));
            assert!(is_known, "seed {}: server {} got a snapshot of another history", self.seed, server.id);
        }
    }

    fn what_is_acknowledged_is_committed(&mut self, told: &Told) {
        for (command, position) in &told.acknowledged {
            let known = self.committed.get(&position.index).map(|entry| &entry.content);
            let is_known = known == Some(&Content::Command(command.clone()));
            assert!(is_known, "seed {}: acknowledged at {position:?}, where {known:?} stands", self.seed);
            self.acknowledged.insert(command.clone(), *position);
        }
    }

    fn a_read_sees_what_was_acknowledged_before_it(&mut self, told: &Told) {
        for (index, known) in &told.reads {
            assert!(index >= known, "seed {}: read at {index} what was acknowledged up to {known}", self.seed);
            self.reads += 1;
        }
    }

    fn nothing_is_promised_before_it_is_on_disk(&self, server: &Server, messages: &[Message]) {
        let image = &server.log.durable;
        for message in messages {
            let (term, vote) = (image.hard_state.term, image.hard_state.vote);
            let is_written = match message.msg_type() {
                MessageType::MsgRequestVote => term > message.term || (term == message.term && vote == message.from),
                MessageType::MsgRequestVoteResponse if !message.reject => {
                    term > message.term || (term == message.term && vote == message.to)
                }
                MessageType::MsgAppendResponse if !message.reject => self.is_answered_for(server, message),
                MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse => {
                    term >= message.term
                }
                _ => true,
            };
            let shown = super::world::shown(message);
            assert!(is_written, "seed {}: {shown} leaves before it is on disk: {:?}", self.seed, image.hard_state);
        }
    }

    /// Whether the log on disk agrees, up to where `answer` says so, with that of the leader whom it is for.
    ///
    /// One write may bring an entry, the answer to it, and what replaced it in a later term: then the log parts from that
    /// leader's before. Such an answer is no worse than one that was long under way: the entry was in the log, in memory,
    /// whenever this server has voted since. Who was elected without it proves that no quorum has acknowledged it.
    fn is_answered_for(&self, server: &Server, answer: &Message) -> bool {
        let (image, term) = (&server.log.durable, answer.term);
        if server.store.checkpoint.position.index >= answer.index {
            return true;
        }
        let Some((_, began)) = self.leaders.get(&term) else { return false };
        let last = image.last().min(answer.index);
        let of_leader = match (last > began.last(), began.term_at(last)) {
            (true, _) => Some(term),
            (false, None) => self.committed.get(&last).map(|entry| entry.position.term),
            (false, known) => known,
        };
        let is_replaced = image.hard_state.term > term;
        if image.term_at(last) == of_leader { last == answer.index } else { is_replaced }
    }

    fn no_server_votes_twice_in_a_term(&mut self, id: RaftId, messages: &[Message]) {
        for message in messages {
            let vote = match message.msg_type() {
                MessageType::MsgRequestVote => message.from,
                MessageType::MsgRequestVoteResponse if !message.reject => message.to,
                _ => continue,
            };
            let known = *self.votes.entry((id, message.term)).or_insert(vote);
            assert_eq!(known, vote, "seed {}: server {id} votes twice in term {}", self.seed, message.term);
        }
    }

    /// Every server has applied every acknowledged command, each once.
    pub fn nothing_acknowledged_is_lost(&self, server: &Server) {
        let commands = server.commands();
        for command in self.acknowledged.keys() {
            let count = commands.iter().filter(|other| *other == command).count();
            assert_eq!(count, 1, "seed {}: server {} applied {command:?} {count} times", self.seed, server.id);
        }
    }
}
