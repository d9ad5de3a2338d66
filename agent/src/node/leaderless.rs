//! What a person is told where there has been no leader for long: which servers answer, and the way out.

use std::collections::BTreeMap;
use std::time::Duration;

use blixard_core::state::State;
use blixard_core::types::{NodeId, RaftId};

use super::followers::is_leaderless;
use super::{Handle, Input, Standing};

/// An election takes far less.
const LONG: Duration = Duration::from_secs(10);

impl Handle {
    /// Asks the configured servers, where there has been no leader for long, whether this node is a server by this id still:
    /// while it was off, all that it knew may have been replaced, and the servers of now don't call it. Goes on for ever.
    pub(super) async fn doubt(&self, raft: RaftId) {
        loop {
            is_leaderless(self.leaders.clone(), LONG).await;
            if self.transport.beat_configured().await.is_some_and(|beat| beat.servers.is_spent(raft)) {
                tracing::info!(%raft, "this node is no server any more, says one of the configured servers");
                // It asks again.
                let _ = self.send(Input::Dismissed);
            }
            tokio::time::sleep(LONG).await;
        }
    }

    /// Which servers answer and which don't, where there has been no leader for long and those that answer are no
    /// majority; otherwise nothing.
    pub fn way_out(&self) -> Option<String> {
        let faults = self.faults();
        let told = self.read(|state, standing| {
            let is_long = standing.leaderless_since.is_some_and(|since| since.elapsed() >= LONG);
            way_out(state, standing, &faults).filter(|_| is_long)
        });
        told.ok().flatten()
    }
}

/// `faults`: why this node can't reach a member, where it can't.
fn way_out(state: &State, standing: &Standing, faults: &BTreeMap<NodeId, String>) -> Option<String> {
    // Who is no server calls one of them, and knows nothing of the others.
    standing.raft?;
    let servers: Vec<_> = standing.voters.iter().filter_map(|raft| state.node_of_raft(*raft)).collect();
    if servers.is_empty() {
        // A new server that has heard nothing yet has nothing that a cluster could begin anew from.
        return None;
    }
    let reason = |node: NodeId| faults.get(&node).filter(|_| node != standing.node);
    let (answer, lost): (Vec<_>, Vec<_>) = servers.iter().partition(|(node, _)| reason(*node).is_none());
    if answer.len() > standing.voters.len() / 2 {
        return None;
    }
    let names: Vec<_> = answer.iter().map(|(_, member)| member.name.as_str()).collect();
    let lost: Vec<_> = lost
        .iter()
        .map(|(node, member)| format!("{} ({})", member.name, reason(*node).map_or("unknown", String::as_str)))
        .collect();
    Some(format!(
        "of {} servers {} answers, and these don't: {}; if they are lost for good, stop the agent of one that isn't and run \
         `blixard cluster recover` there",
        standing.voters.len(),
        if names.is_empty() { "none".to_owned() } else { names.join(", ") },
        lost.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use blixard_core::command::{Command, Entry, NewNode};
    use blixard_core::types::{ClusterId, Hash, Level, NodeRole, Term, Timestamp};

    use super::*;

    fn three() -> (State, Standing) {
        let host = |name: &str| NewNode {
            name: name.parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            key: Hash::of(name.as_bytes()),
            understands: Level::NEWEST,
            role: NodeRole::Auto,
        };
        let (cluster, first) = (ClusterId::from_bytes([7; 16]), host("alpha"));
        let found =
            Command::Found { cluster, ca_certificate: vec![1], sealed_ca_key: vec![2], first, listed_servers: 1 };
        let mut state = State::default();
        let commands =
            [(Some(Term(1)), found), (None, Command::Admit(host("beta"))), (None, Command::Admit(host("gamma")))];
        for (index, (decided_in, command)) in (1..).zip(commands) {
            let entry = Entry { at: Timestamp(0), decided_in, request: None, command };
            state.apply(index, Term(1), &entry);
        }
        let standing = Standing {
            node: NodeId(2),
            raft: Some(RaftId(2)),
            leader: None,
            leaderless_since: None,
            term: Term(1),
            voters: BTreeSet::from([1, 2, 3].map(RaftId)),
            learners: BTreeSet::new(),
            applied: 3,
        };
        (state, standing)
    }

    #[test]
    fn who_answers_and_who_does_not_is_named_with_the_reason() {
        let (state, standing) = three();
        let lost = BTreeMap::from([1, 3].map(|node| (NodeId(node), format!("refused {node}"))));
        let told = way_out(&state, &standing, &lost).unwrap();
        assert!(told.contains("of 3 servers beta answers"), "{told}");
        assert!(told.contains("alpha (refused 1), gamma (refused 3); if they are lost for good"), "{told}");
        assert!(told.contains("blixard cluster recover"), "{told}");
    }

    #[test]
    fn a_server_that_has_heard_nothing_yet_names_nobody_and_is_no_way_out() {
        let (_, standing) = three();
        let blank =
            Standing { node: NodeId(4), raft: Some(RaftId(4)), voters: BTreeSet::from([RaftId(1)]), ..standing };
        let lost = BTreeMap::from([(NodeId(1), "refused".to_owned())]);
        assert_eq!(way_out(&State::default(), &blank, &lost), None);
    }

    #[test]
    fn nobody_is_given_up_while_a_majority_answers() {
        let (state, standing) = three();
        let lost = BTreeMap::from([(NodeId(3), "refused".to_owned())]);
        assert_eq!(way_out(&state, &standing, &lost), None);
    }
}
