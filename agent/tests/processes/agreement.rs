//! Servers that all show the same.

use std::collections::BTreeSet;
use std::time::Instant;

use blixard::api::proto::StatusReply;

use crate::member::{MAX_WAIT, Member, POLL};
use crate::writer::names;

/// What all servers show, once they show the same, at the same entry; it must be these VMs.
pub async fn agree(members: &[Member], expected: &BTreeSet<String>) -> StatusReply {
    let (begun, mut polls) = (Instant::now(), tokio::time::interval(POLL));
    loop {
        polls.tick().await;
        let mut shown = Vec::new();
        for member in members {
            shown.push(member.status().await.map(|mut status| {
                if let Some(cluster) = &mut status.cluster {
                    // What is the answering one's own.
                    cluster.answered_by.clear();
                    cluster.certificate_expires = 0;
                }
                status
            }));
        }
        let is_well = |status: &StatusReply| status.problems.is_empty() && status.nodes.len() == members.len();
        if shown[0].as_ref().is_ok_and(is_well) && shown.iter().all(|other| *other == shown[0]) {
            let status = shown.swap_remove(0).expect("it was looked at just now");
            let found: BTreeSet<_> = names(&status).map(str::to_owned).collect();
            assert_eq!(found, *expected, "what all servers have isn't what was acknowledged");
            return status;
        }
        assert!(begun.elapsed() < MAX_WAIT, "the servers don't agree; last seen: {shown:#?}");
    }
}
