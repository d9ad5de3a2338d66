//! What a node does next so that its fence is armed and its lease renewed.

use crate::fence::{Stage, Status};
use crate::state::Lease;
use crate::types::{LeaseTerms, NodeEpoch, Nonce};

/// One step towards a lease that is renewed; each may be taken twice, and get lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The fence acts, or lacks something, or its epoch is over and its deadline yet to come.
    Wait,
    /// Ask the cluster for the epoch after the `expected` one, by [`crate::command::Command::Arm`].
    Arm { expected: NodeEpoch, nonce: Nonce },
    /// The cluster has raised the epoch for this fence, which is to hear of it.
    TellFence { nonce: Nonce, epoch: NodeEpoch, terms: LeaseTerms },
    /// Ask the leader for a renewal, and note before that when; as often as the terms say.
    Renew { epoch: NodeEpoch, terms: LeaseTerms },
}

/// The next step, given what the cluster says of the node, which may be old, and what its fence says of itself.
#[must_use]
pub fn next_step(lease: &Lease, fence: &Status) -> Step {
    match (&fence.stage, lease.arming()) {
        (Stage::Clearing | Stage::Unable(_), _) => Step::Wait,
        (Stage::Idle { nonce }, Some(arming)) if arming.nonce == *nonce => {
            Step::TellFence { nonce: *nonce, epoch: lease.epoch, terms: arming.terms }
        }
        (Stage::Idle { nonce }, _) => Step::Arm { expected: lease.epoch, nonce: *nonce },
        (Stage::Armed { epoch, terms, .. }, arming) => {
            let has_ended = lease.epoch > *epoch || (lease.epoch == *epoch && arming.is_none());
            if has_ended { Step::Wait } else { Step::Renew { epoch: *epoch, terms: *terms } }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::state::{Arming, Standing};

    const OWN: Nonce = Nonce([1; 16]);
    const OTHER: Nonce = Nonce([2; 16]);

    fn armed(epoch: u64, nonce: Nonce) -> Lease {
        let arming = Arming { nonce, machine: None, terms: LeaseTerms::FAST };
        Lease { epoch: NodeEpoch(epoch), standing: Standing::Armed(arming) }
    }

    fn ended(epoch: u64) -> Lease {
        Lease { epoch: NodeEpoch(epoch), standing: Standing::Fenced }
    }

    fn step(lease: &Lease, stage: Stage) -> Step {
        next_step(lease, &Status { stage, allowed: BTreeMap::new() })
    }

    #[test]
    fn a_fence_that_has_seen_that_nothing_runs_asks_for_the_next_epoch() {
        let idle = || Stage::Idle { nonce: OWN };
        for lease in [Lease::default(), ended(0), armed(0, OTHER)] {
            assert_eq!(step(&lease, idle()), Step::Arm { expected: NodeEpoch(0), nonce: OWN });
        }
        let told = Step::TellFence { nonce: OWN, epoch: NodeEpoch(3), terms: LeaseTerms::FAST };
        assert_eq!(step(&armed(3, OWN), idle()), told);
    }

    #[test]
    fn a_fence_that_clears_is_waited_for() {
        assert_eq!(step(&armed(3, OWN), Stage::Clearing), Step::Wait);
    }

    #[test]
    fn a_lease_is_renewed_until_its_epoch_is_known_to_be_over() {
        let stage = || Stage::Armed { epoch: NodeEpoch(3), terms: LeaseTerms::FAST, deadline: None };
        let renew = Step::Renew { epoch: NodeEpoch(3), terms: LeaseTerms::FAST };
        assert_eq!(step(&armed(3, OWN), stage()), renew);
        assert_eq!(step(&ended(2), stage()), renew, "what it knows of the cluster is old");
        assert_eq!(step(&ended(3), stage()), Step::Wait);
        assert_eq!(step(&armed(4, OTHER), stage()), Step::Wait);
    }
}
