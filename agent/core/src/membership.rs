//! (state, servers) → who is to be a server, and the next single change towards that; leader only.

use std::collections::BTreeSet;

use crate::driver::{Membership, MembershipChange, Peer, Status};
use crate::manifest::MAX_SERVERS;
use crate::state::{Node, State};
use crate::types::{NodeId, NodeRole, RaftId};

/// What a leader does next about the servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Change(MembershipChange),
    /// The leader itself is to go, and no leader removes itself.
    HandOver(RaftId),
    /// This node is to become a server, by a fresh raft id.
    Enlist(NodeId),
}

/// Who is to be a server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// They have the log; those that don't vote are spare.
    pub enlisted: BTreeSet<NodeId>,
    /// An odd number of them, but for two that are left of three: one alone would have the only copy.
    pub voting: BTreeSet<NodeId>,
}

/// Who is to be a server, given who votes now, and who is lost: silent for so long that another takes its place.
///
/// Who votes stays, as long as it isn't lost and there aren't too many; a lost one stays until there is another. Where one
/// learns already that was enlisted in its place, a leader before has waited for it, and it is lost for this one, too.
#[must_use]
pub fn wanted(state: &State, servers: &Membership, is_lost: impl Fn(NodeId) -> bool) -> Wanted {
    let wanted = choose(state, servers, &is_lost);
    let is_voter = |node: &Node| node.raft.is_some_and(|raft| servers.voters.contains(&raft));
    let (voters, learners): (Vec<_>, Vec<_>) = state.servers().partition(|(_, node)| is_voter(node));
    let spare = learners.iter().filter(|(id, _)| !wanted.enlisted.contains(id)).count();
    let silent_since = |id| state.worker_status(id).filter(|status| !status.alive).map(|status| (status.since, id));
    let mut silent: Vec<_> = voters.iter().filter_map(|(id, _)| silent_since(**id)).collect();
    silent.sort_unstable();
    let replaced: Vec<_> = silent.iter().take(spare).map(|(_, id)| *id).collect();
    if replaced.is_empty() { wanted } else { choose(state, servers, |id| is_lost(id) || replaced.contains(&id)) }
}

/// Who is to be a server, given who is lost.
fn choose(state: &State, servers: &Membership, is_lost: impl Fn(NodeId) -> bool) -> Wanted {
    let nodes =
        state.nodes().iter().filter(|(id, node)| node.role != NodeRole::Worker && !is_emptied(state, **id, node));
    let candidates = nodes.map(|(id, node)| Candidate::of(*id, node, state, servers, is_lost(*id)));
    // One that isn't there is made no server, but may be one still.
    let mut candidates: Vec<_> = candidates.filter(|of| !(of.is_poor && of.is_no_server)).collect();
    candidates.sort_unstable();

    let most = state.settings().servers;
    let is_spare = |of: &Candidate| !of.is_undeclared && !of.is_poor && of.is_no_voter;
    let ranked = candidates.iter().enumerate();
    let is_enlisted = |(at, of): &(usize, &Candidate)| *at < most || (*at < MAX_SERVERS && is_spare(of));
    let enlisted: Vec<_> = ranked.filter(is_enlisted).map(|(_, of)| of).collect();
    let odd = (enlisted.len().clamp(1, most) - 1) / 2 * 2 + 1;
    let voters = enlisted.iter().filter(|of| !of.is_no_voter).count();
    let voting = if odd == 1 && most > 1 { voters.clamp(1, 2) } else { odd };
    Wanted {
        voting: enlisted.iter().take(voting).map(|of| of.id).collect(),
        enlisted: enlisted.into_iter().map(|of| of.id).collect(),
    }
}

/// One that may be a server; the first in order are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(clippy::struct_excessive_bools, reason = "each is a step of the order")]
struct Candidate {
    /// It is lost or leaves; or it is no server yet, and is away.
    is_poor: bool,
    is_no_voter: bool,
    is_undeclared: bool,
    is_no_server: bool,
    id: NodeId,
}

impl Candidate {
    fn of(id: NodeId, node: &Node, state: &State, servers: &Membership, is_lost: bool) -> Self {
        let is_away = state.worker_status(id).is_none_or(|status| !status.alive);
        Self {
            is_poor: is_lost || node.leaving || (node.raft.is_none() && is_away),
            is_no_voter: node.raft.is_none_or(|raft| !servers.voters.contains(&raft)),
            is_undeclared: node.role != NodeRole::Server,
            is_no_server: node.raft.is_none(),
            id,
        }
    }
}

/// What is next on the way from the servers as they are to those that are wanted; one single change at a time.
///
/// Who is to vote is a learner until it has caught up, and votes only once all have that are to: so the number of voters
/// is even for no longer than a change takes. A voter that is to go stays until its place can be taken, and goes first
/// where it doesn't answer, last where it does; and only where those that are left, and answer, are a quorum.
#[must_use]
pub fn next_step(state: &State, own: RaftId, status: &Status, is_lost: impl Fn(NodeId) -> bool) -> Option<Step> {
    let servers = &status.membership;
    let wanted = wanted(state, servers, is_lost);
    let rafts = |nodes: &BTreeSet<NodeId>| -> BTreeSet<RaftId> {
        nodes.iter().filter_map(|id| state.nodes().get(id)?.raft).collect()
    };
    let (enlisted, voting) = (rafts(&wanted.enlisted), rafts(&wanted.voting));
    let is_in = |raft: &RaftId| servers.voters.contains(raft) || servers.learners.contains(raft);

    if let Some(learner) = servers.learners.difference(&enlisted).next() {
        return Some(Step::Change(MembershipChange::Remove(*learner)));
    }
    let mut missing = voting.difference(&servers.voters).peekable();
    let has_caught_up = |raft: &RaftId| status.peers.iter().any(|peer| peer.id == *raft && peer.caught_up);
    let is_ready = voting.len() == wanted.voting.len() && voting.difference(&servers.voters).all(has_caught_up);
    if is_ready {
        let going = || servers.voters.difference(&voting);
        let is_silent = |raft: &&RaftId| **raft != own && !answers(status, own, **raft);
        if let Some(step) = going().filter(is_silent).find_map(|raft| removal(*raft, own, &voting, status)) {
            return Some(step);
        }
        // Of several that are to go, one goes for each that comes.
        let is_full = servers.voters.len() > voting.len();
        if let Some(raft) = missing.peek().filter(|_| !is_full) {
            return Some(Step::Change(MembershipChange::Promote(**raft)));
        }
        if let Some(step) = going().find_map(|raft| removal(*raft, own, &voting, status)) {
            return Some(step);
        }
    }
    // Also where it isn't wanted any more: only who is in the group can be removed from it, and so hears that it is none.
    let mut named =
        state.servers().filter(|(id, node)| !is_emptied(state, **id, node)).filter_map(|(_, node)| node.raft);
    if let Some(raft) = named.find(|raft| !is_in(raft)) {
        return Some(Step::Change(MembershipChange::AddLearner(raft)));
    }
    let lacks_id = |id: &&NodeId| state.nodes()[*id].raft.is_none();
    wanted.enlisted.iter().find(lacks_id).map(|node| Step::Enlist(*node))
}

/// Whether it is to go, and runs nothing any more.
fn is_emptied(state: &State, id: NodeId, node: &Node) -> bool {
    node.leaving && state.is_empty(id)
}

fn answers(status: &Status, own: RaftId, raft: RaftId) -> bool {
    raft == own || status.peers.iter().any(|peer| peer.id == raft && peer.recently_active)
}

fn removal(id: RaftId, own: RaftId, staying: &BTreeSet<RaftId>, status: &Status) -> Option<Step> {
    let voters = &status.membership.voters;
    if id == own {
        let heirs = status.peers.iter().filter(|peer| voters.contains(&peer.id) && staying.contains(&peer.id));
        return successor(heirs).map(Step::HandOver);
    }
    let left = || voters.iter().filter(|voter| **voter != id);
    let is_safe = left().filter(|voter| answers(status, own, **voter)).count() > left().count() / 2;
    is_safe.then_some(Step::Change(MembershipChange::Remove(id)))
}

/// To whom a leader hands over: the one that answers and lacks least of the log.
pub fn successor<'a>(voters: impl Iterator<Item = &'a Peer>) -> Option<RaftId> {
    voters.filter(|peer| peer.recently_active).max_by_key(|peer| peer.matched).map(|peer| peer.id)
}

/// To whom a leader hands over at a person's word: to this node, or to the voter that lacks least of the log.
///
/// # Errors
/// Why it can't, for the person to read.
pub fn heir(state: &State, to: Option<NodeId>, status: &Status) -> Result<RaftId, String> {
    let voters = || status.peers.iter().filter(|peer| status.membership.voters.contains(&peer.id));
    let Some(node) = to else {
        return successor(voters()).ok_or_else(|| "no other server that votes answers: none can lead".to_owned());
    };
    let member = state.nodes().get(&node).ok_or_else(|| format!("node {node} is not a member of this cluster"))?;
    let name = &member.name;
    let raft = member.raft.filter(|raft| status.membership.voters.contains(raft));
    let raft =
        raft.ok_or_else(|| format!("{name} has no vote, so it can't lead: see `blixard node ls` for who has one"))?;
    match voters().find(|peer| peer.id == raft) {
        Some(peer) if peer.recently_active => Ok(raft),
        Some(_) => Err(format!("{name} does not answer, so it can't lead")),
        None => Err(format!("{name} leads already")),
    }
}

/// Why this node can't be removed now: those that are left, and answer, would be no quorum.
#[must_use]
pub fn objection(
    state: &State,
    node: NodeId,
    voters: &BTreeSet<RaftId>,
    answers: impl Fn(NodeId) -> bool,
) -> Option<String> {
    let is_voter = |node: &Node| node.raft.is_some_and(|raft| voters.contains(&raft));
    let name = &state.nodes().get(&node).filter(|member| is_voter(member))?.name;
    let left = state.nodes().iter().filter(|(id, other)| **id != node && is_voter(other));
    let (heard, silent): (Vec<_>, Vec<_>) = left.partition(|(id, _)| answers(**id));
    let all = voters.len() - 1;
    if all == 0 {
        let mut others = state.nodes().iter().filter(|(id, other)| **id != node && other.role != NodeRole::Worker);
        let why = format!("{name} is the only server, and there is no other host that answers and may be one: add one");
        return others.all(|(id, _)| !answers(*id)).then_some(why);
    }
    let silent: Vec<_> = silent.into_iter().map(|(_, other)| other.name.as_str()).collect();
    (heard.len() <= all / 2).then(|| {
        format!(
            "without {name} only {} of {all} servers would answer, which is no quorum: see to {} first",
            heard.len(),
            silent.join(", ")
        )
    })
}

/// The nodes that are to go, run nothing any more, and are no servers.
pub fn gone<'a>(state: &'a State, servers: &'a Membership) -> impl Iterator<Item = NodeId> + 'a {
    let is_server = |raft: &RaftId| servers.voters.contains(raft) || servers.learners.contains(raft);
    state.emptied_nodes().filter(move |id| state.nodes()[id].raft.is_none_or(|raft| !is_server(&raft)))
}

#[cfg(test)]
mod tests;
