//! Which process speaks for each member: where two do, one of them runs from a copy of the other's disk.
//!
//! ```text
//!  process A ── hello A ──▶ A speaks for the node, and a token is drawn
//!  process B ── hello B ──▶ B is asked for the token ── hello B, token ──▶ B speaks, A is superseded, another is drawn
//!  process A ── hello A ──▶ A is asked for the token ── hello A, token ──▶ A is refused
//! ```
//! Who says the token has lived after it was drawn; what comes late of a process that is gone can't. So B lived after A had
//! come, and A after B had: they ran at once. A restart draws another incarnation, and never goes back to an earlier one.

use std::collections::{BTreeMap, VecDeque};

use blixard_core::types::NodeId;
use tokio::sync::watch;

use crate::identity;

/// Most superseded incarnations of one node that are remembered. One that is forgotten is taken for a restart, and
/// supersedes the other in turn.
const MAX_SUPERSEDED: usize = 32;

/// A number that nobody else draws; 0 is none.
pub fn draw() -> u64 {
    u64::from_be_bytes(identity::random()).max(1)
}

/// What a process says when it begins a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    pub incarnation: u64,
    /// What it was asked for last, or 0.
    pub token: u64,
}

/// What there is to say to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It speaks for its node.
    Speaks,
    /// Another one does; it is to come again and say this.
    Prove(u64),
    /// Another one has begun to speak for its node since it did, and both run.
    Superseded,
}

/// Who speaks for each member, as this process has heard since it started.
#[derive(Default)]
pub struct Incarnations(watch::Sender<BTreeMap<NodeId, Known>>);

struct Known {
    speaks: u64,
    /// Drawn when that one came.
    token: u64,
    superseded: VecDeque<u64>,
}

impl Incarnations {
    /// Judges who begins a stream for `node`. What isn't a member by then is forgotten.
    pub fn judge(&self, node: NodeId, hello: Hello, is_member: impl Fn(NodeId) -> bool) -> Verdict {
        let mut verdict = Verdict::Speaks;
        self.0.send_if_modified(|nodes| {
            let Some(known) = nodes.get_mut(&node) else {
                nodes.retain(|node, _| is_member(*node));
                nodes.insert(node, Known { speaks: hello.incarnation, token: draw(), superseded: VecDeque::new() });
                return false;
            };
            verdict = known.judge(hello);
            let succeeds = verdict == Verdict::Speaks && known.speaks != hello.incarnation;
            if succeeds {
                known.succeed(hello.incarnation);
            }
            succeeds
        });
        verdict
    }

    /// Returns once another process speaks for this node, with what is to be asked of this one.
    pub async fn succession(&self, node: NodeId, incarnation: u64) -> Verdict {
        let mut nodes = self.0.subscribe();
        let successor = nodes.wait_for(|nodes| nodes.get(&node).is_some_and(|known| known.speaks != incarnation)).await;
        Verdict::Prove(successor.expect("its sender is this")[&node].token)
    }
}

impl Known {
    fn judge(&self, hello: Hello) -> Verdict {
        if hello.incarnation == self.speaks {
            Verdict::Speaks
        } else if hello.token != self.token {
            Verdict::Prove(self.token)
        } else if self.superseded.contains(&hello.incarnation) {
            Verdict::Superseded
        } else {
            Verdict::Speaks
        }
    }

    fn succeed(&mut self, incarnation: u64) {
        self.superseded.truncate(MAX_SUPERSEDED - 1);
        self.superseded.push_front(self.speaks);
        (self.speaks, self.token) = (incarnation, draw());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(1);

    /// Comes until it isn't asked for anything any more.
    fn come(incarnations: &Incarnations, incarnation: u64) -> Verdict {
        let judge = |token| incarnations.judge(NODE, Hello { incarnation, token }, |_| true);
        match judge(0) {
            Verdict::Prove(token) => judge(token),
            verdict => verdict,
        }
    }

    #[test]
    fn who_restarts_speaks_and_who_goes_on_beside_its_successor_is_refused() {
        let incarnations = Incarnations::default();
        for incarnation in [1, 1, 2, 2, 3] {
            assert_eq!(come(&incarnations, incarnation), Verdict::Speaks, "{incarnation}");
        }
        for incarnation in [1, 2] {
            assert_eq!(come(&incarnations, incarnation), Verdict::Superseded, "{incarnation}");
        }
        assert_eq!(come(&incarnations, 3), Verdict::Speaks, "it is as it was");
    }

    #[test]
    fn what_comes_late_of_a_process_that_is_gone_changes_nothing() {
        let incarnations = Incarnations::default();
        let late = |incarnation, token| incarnations.judge(NODE, Hello { incarnation, token }, |_| true);
        assert_eq!(come(&incarnations, 1), Verdict::Speaks);
        let Verdict::Prove(token) = late(2, 0) else { panic!("it is to prove that it lives") };
        assert_eq!(come(&incarnations, 2), Verdict::Speaks);
        // Of one that was known before, and of one that this process has never heard.
        for (incarnation, token) in [(1, 0), (1, token), (9, 0), (9, token)] {
            assert!(matches!(late(incarnation, token), Verdict::Prove(_)), "{incarnation} {token}");
        }
        assert_eq!(come(&incarnations, 2), Verdict::Speaks);
    }

    #[tokio::test]
    async fn an_open_stream_ends_when_another_process_speaks() {
        let incarnations = Incarnations::default();
        come(&incarnations, 1);
        let (ended, ()) = tokio::join!(incarnations.succession(NODE, 1), async {
            come(&incarnations, 2);
        });
        let Verdict::Prove(token) = ended else { panic!("{ended:?}") };
        let again = incarnations.judge(NODE, Hello { incarnation: 1, token }, |_| true);
        assert_eq!(again, Verdict::Superseded, "it heard what was asked of it, so it lives");
    }

    #[test]
    fn no_more_is_remembered_than_there_are_members_and_a_few_restarts_of_each() {
        let incarnations = Incarnations::default();
        for incarnation in 1..=1000 {
            come(&incarnations, incarnation);
        }
        assert_eq!(incarnations.0.borrow()[&NODE].superseded.len(), MAX_SUPERSEDED);
        incarnations.judge(NodeId(2), Hello { incarnation: 1, token: 0 }, |node| node != NODE);
        assert_eq!(incarnations.0.borrow().keys().collect::<Vec<_>>(), [&NodeId(2)]);
    }
}
