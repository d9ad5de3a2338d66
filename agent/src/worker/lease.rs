//! Keeps this node's lease: has the cluster raise its epoch for the fence, and the leader renew what the fence goes by.
//!
//! It looks at both, takes the step that the core says, and looks again. Nothing is kept in between, so an agent that starts
//! goes on where another one has ended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use blixard_core::command::{Command, Reply};
use blixard_core::fence::{self, Request, Stage, Status};
use blixard_core::lease::keep::{Step, next_step};
use blixard_core::types::{BootTime, Hash, LeaseTerms, NodeEpoch};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::boot_time;
use crate::fence::AskError;
use crate::node::Handle;
use crate::units::ask_fence;

/// How long after a step that came to nothing the next is taken.
const PAUSE: Duration = Duration::from_millis(250);
/// How often a fence is looked at that can't be armed, or isn't there.
const LOOK: Duration = Duration::from_secs(2);

/// What is known of this host's fence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// Why it can't be armed, or isn't there; nothing where it can.
    pub no_fence: Option<String>,
    /// The epoch that it is armed at, if it has a lease.
    pub epoch: Option<NodeEpoch>,
}

/// Begins to keep a node's lease, as one of these tasks; how that stands. `machine` is a hash of what this machine says it
/// is, if it does. The fence is armed once the cluster knows of this boot of the host: that would end what it has armed with.
pub async fn keep(
    handle: Handle,
    run_dir: &Path,
    machine: Option<Hash>,
    is_registered: watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> watch::Receiver<Held> {
    let run_dir = run_dir.to_owned();
    let known = status(&run_dir).await.map_or_else(|error| none(&error), |status| held(&status, boot_time::now()));
    let (held, holds) = watch::channel(known);
    tasks.spawn(Keeper { handle, run_dir, machine, is_registered, held }.run());
    holds
}

struct Keeper {
    handle: Handle,
    run_dir: PathBuf,
    machine: Option<Hash>,
    is_registered: watch::Receiver<bool>,
    /// Whoever starts instances looks here.
    held: watch::Sender<Held>,
}

impl Keeper {
    async fn run(self) {
        let mut complaints = Complaints::default();
        loop {
            let pause = match self.step().await {
                Ok(pause) => {
                    complaints.end();
                    pause
                }
                Err(error) => {
                    complaints.about(&crate::error_chain(&error));
                    if matches!(error, StepError::Ask(_) | StepError::Unable(_)) { LOOK } else { PAUSE }
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One step; how long until the next.
    async fn step(&self) -> Result<Duration, StepError> {
        let status = match status(&self.run_dir).await {
            Ok(status) => status,
            Err(error) => {
                self.hold(none(&error));
                return Err(error);
            }
        };
        self.hold(held(&status, boot_time::now()));
        if let Stage::Unable(unable) = status.stage {
            return Err(StepError::Unable(unable));
        }
        let own = self.handle.node();
        let lease = self.handle.read(|state, _| state.nodes().get(&own).map(|node| node.lease));
        let lease = lease.map_err(|_| StepError::Stopped)?;
        // Before this node is told of itself nothing can be said of its epoch; what is armed goes on.
        if lease.is_none() && !matches!(status.stage, Stage::Armed { .. }) {
            return Ok(PAUSE);
        }
        match next_step(&lease.unwrap_or_default(), &status) {
            Step::Wait => Ok(PAUSE),
            Step::Arm { .. } if !*self.is_registered.borrow() => Ok(PAUSE),
            Step::Arm { expected, nonce } => {
                let mut changes = self.handle.changes();
                changes.mark_unchanged();
                let arm = Command::Arm { node: own, expected, nonce, machine: self.machine };
                let answer = self.handle.propose(arm).await;
                let reply = answer.map_err(|error| StepError::Arm(crate::error_chain(&error)))?.reply;
                if let Reply::Refused(why) = reply {
                    return Err(StepError::Arm(why));
                }
                // What is done may be answered before this node is told of it.
                let _ = tokio::time::timeout(PAUSE, changes.changed()).await;
                Ok(Duration::ZERO)
            }
            Step::TellFence { nonce, epoch, terms } => {
                self.tell(Request::Arm { nonce, epoch, terms }).await?;
                tracing::info!(%epoch, "this node's fence is armed");
                Ok(Duration::ZERO)
            }
            Step::Renew { epoch, terms } => self.renew(epoch, terms).await,
        }
    }

    async fn renew(&self, epoch: NodeEpoch, terms: LeaseTerms) -> Result<Duration, StepError> {
        // The lease counts from here: the leader may have confirmed it any time after.
        let sent = boot_time::now();
        self.handle.renew_lease(epoch).await.map_err(|error| StepError::Renew(error.to_string()))?;
        self.tell(Request::Renewed { epoch, sent }).await?;
        self.hold(Held { no_fence: None, epoch: Some(epoch) });
        Ok(terms.renew().saturating_sub(sent.until(boot_time::now())))
    }

    async fn tell(&self, request: Request) -> Result<(), StepError> {
        match ask_fence(&self.run_dir, request).await.map_err(StepError::Ask)? {
            fence::Reply::Refused(refusal) => Err(StepError::Refused(refusal)),
            _ => Ok(()),
        }
    }

    fn hold(&self, held: Held) {
        self.held.send_if_modified(|before| {
            *before != held && {
                *before = held;
                true
            }
        });
    }
}

/// Why a step came to nothing.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("cannot keep this node's lease")]
    Ask(#[source] AskError),
    #[error("this host's fence can't be armed")]
    Unable(#[source] fence::Unable),
    #[error("this host's fence refuses what the cluster has granted")]
    Refused(#[source] fence::Refusal),
    #[error("the cluster does not begin this node's next epoch: {0}")]
    Arm(String),
    #[error("this node's lease isn't renewed: {0}")]
    Renew(String),
    #[error("this agent is about to end")]
    Stopped,
}

/// What keeps the lease from being kept, said once.
#[derive(Default)]
struct Complaints(Option<String>);

impl Complaints {
    fn about(&mut self, error: &str) {
        if self.0.as_deref() != Some(error) {
            tracing::warn!(error, "nothing automatic can be started on this node for now");
            self.0 = Some(error.to_owned());
        }
    }

    fn end(&mut self) {
        self.0 = None;
    }
}

async fn status(run_dir: &Path) -> Result<Status, StepError> {
    match ask_fence(run_dir, Request::Status).await.map_err(StepError::Ask)? {
        fence::Reply::Status(status) => Ok(status),
        fence::Reply::Refused(refusal) => Err(StepError::Refused(refusal)),
        fence::Reply::Done => unreachable!("a fence that is asked for its status says it, or refuses"),
    }
}

/// A lease is held while it lasts for as long still as until its next renewal, which is due well before that.
fn held(status: &Status, now: BootTime) -> Held {
    let epoch = match &status.stage {
        Stage::Armed { epoch, terms, deadline: Some(deadline) } if now.after(terms.renew()) < *deadline => Some(*epoch),
        _ => None,
    };
    let no_fence = if let Stage::Unable(unable) = &status.stage { Some(unable.to_string()) } else { None };
    Held { no_fence, epoch }
}

/// A fence that doesn't say how it is.
fn none(error: &StepError) -> Held {
    let why = match error {
        StepError::Ask(source) => crate::error_chain(source),
        error => crate::error_chain(error),
    };
    Held { no_fence: Some(why), epoch: None }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_lease_that_is_renewed_in_time_is_held_however_short_it_is() {
        let shortest = LeaseTerms::new(1003, 1, 2000, 3024).expect("they fit");
        let longest_renewal = LeaseTerms::new(4000, 1000, 2000, 7000).expect("they fit");
        for terms in [shortest, longest_renewal, LeaseTerms::FAST, LeaseTerms::DEFAULT, LeaseTerms::RELAXED] {
            let sent = BootTime(9_000_000_000);
            let armed = |deadline| Stage::Armed { epoch: NodeEpoch(3), terms, deadline };
            let epoch = |deadline, now| held(&Status { stage: armed(deadline), allowed: BTreeMap::new() }, now).epoch;
            let (deadline, late) = (sent.after(terms.lease()), terms.lease().saturating_sub(terms.renew()));
            assert_eq!(
                epoch(Some(deadline), sent.after(terms.renew() * 2)),
                Some(NodeEpoch(3)),
                "{terms}: one was late"
            );
            assert_eq!(epoch(Some(deadline), sent.after(late)), None, "{terms}: it is about to end");
            assert_eq!(epoch(None, sent), None, "{terms}: it was never renewed");
        }
    }
}
