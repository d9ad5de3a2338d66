//! The whole picture of what this node knows.

use std::time::{Duration, Instant};

use blixard_core::state::State;
use blixard_core::types::InstanceId;
use tonic::Status;

use super::{identities, proto, to_status, view};
use crate::node::Handle;

/// How long nothing may be applied since somebody looks at the state, unless they look at no more instances than this.
const LOOK: Duration = Duration::from_millis(2);
const AT_ONCE: usize = 200;

/// The whole picture. Nothing is applied while somebody looks, so whoever looks at many instances lets the loop have its
/// turn: the further ones are then newer than the index in the reply says.
pub(super) async fn status(handle: &Handle) -> Result<proto::StatusReply, Status> {
    let page_after = |state: &State, after: Option<&InstanceId>| {
        let until = Instant::now() + LOOK;
        view::page(state, after, |count| count < AT_ONCE || Instant::now() < until)
    };
    let first = handle.read(|state, standing| (view::overview(state, standing), page_after(state, None)));
    let (mut reply, mut page) = first.map_err(|error| to_status(&error))?;
    if reply.cluster.as_ref().is_some_and(|cluster| !cluster.quorum) {
        reply.problems.extend(handle.way_out());
    }
    if let Some(certificate) = handle.certificate() {
        identities::show_certificate(&mut reply, certificate);
    }
    loop {
        reply.instances.extend(page.instances);
        reply.problems.extend(page.problems);
        let Some(last) = page.last else { return Ok(reply) };
        tokio::task::yield_now().await;
        let next = handle.read(|state, _| page_after(state, Some(&last)));
        page = next.map_err(|error| to_status(&error))?;
    }
}
