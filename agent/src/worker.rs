//! The worker in every node: it says what the host has, makes the units what the placements say, and reports on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard_core::command::{Command, Reply};
use blixard_core::reconcile;
use blixard_core::unit::{Observed, UnitPhase};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::node::{Handle, ProposeError};
use crate::units::Units;

mod attempts;
pub mod lease;
pub mod offer;

use attempts::{Attempts, Outcome};
use lease::Held;

/// Units that are changed at the same time; systemd works them off one after another anyway.
const MOST_CHANGES: usize = 16;
/// Without any news, everything is looked at again this often.
const RESYNC: Duration = Duration::from_secs(30);
/// How long a proposal that failed waits before the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells the cluster what this host has to give, by this [`Command::RegisterWorker`], until it has heard it.
pub async fn register(handle: &Handle, command: Command) {
    loop {
        match handle.propose(command.clone()).await.map(|answer| answer.reply) {
            Ok(Reply::Refused(why)) => tracing::warn!(error = why, "this host could not register as a worker"),
            Ok(_) => return tracing::info!(node = %handle.node(), "registered as a worker"),
            Err(error) => tracing::warn!(error = crate::error_chain(&error), "this host has not registered yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Makes this host's units what its placements say, for as long as the agent runs.
///
/// It changes nothing before this node has applied everything that was acknowledged before the agent started: an older
/// state doesn't know all that rightly runs here.
pub async fn work<U: Units>(handle: Handle, units: Arc<U>, held: watch::Receiver<Held>) {
    loop {
        match handle.barrier().await {
            Ok(()) => break,
            Err(ProposeError::Stopped) => return,
            Err(error) => {
                let error = crate::error_chain(&error);
                tracing::warn!(error, "units are left as they are until the cluster answers");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tracing::info!("this node is up to date: its units follow its placements from now on");
    let mut worker = Worker {
        changes: handle.assignments(),
        news: units.changes(),
        held,
        handle,
        units,
        attempts: Attempts::default(),
    };
    worker.run().await;
}

struct Worker<U> {
    handle: Handle,
    units: Arc<U>,
    /// Revisions of what is placed here.
    changes: watch::Receiver<u64>,
    /// The units'.
    news: watch::Receiver<u64>,
    /// What this node has of a lease.
    held: watch::Receiver<Held>,
    attempts: Attempts,
}

impl<U: Units> Worker<U> {
    async fn run(&mut self) {
        let permits = Arc::new(Semaphore::new(MOST_CHANGES));
        let mut changing = JoinSet::new();
        let mut reporting: JoinSet<()> = JoinSet::new();
        let mut is_first = true;
        loop {
            self.changes.mark_unchanged();
            self.news.mark_unchanged();
            let armed = self.held.borrow_and_update().epoch;
            let again = match self.units.observe().await.map(|observed| Observed { armed, ..observed }) {
                Ok(observed) => {
                    self.step(&observed, &permits, &mut changing, &mut reporting);
                    if std::mem::take(&mut is_first) {
                        let running = observed.vms.values().filter(|vm| vm.phase == UnitPhase::Running).count();
                        tracing::info!(running, "the units of this host are known");
                    }
                    RESYNC
                }
                Err(error) => {
                    tracing::warn!(error = crate::error_chain(&error), "units are left as they are for now");
                    PAUSE
                }
            };
            let resync = Instant::now() + again;
            let wake = self.attempts.next_retry().map_or(resync, |retry| retry.min(resync));
            tokio::select! {
                Some(tried) = changing.join_next() => self.attempts.note(tried.expect("a change doesn't panic")),
                Some(_) = reporting.join_next() => {}
                changed = self.changes.changed() => if changed.is_err() { return },
                changed = self.news.changed() => if changed.is_err() { return },
                changed = self.held.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    fn step(
        &mut self,
        observed: &Observed,
        permits: &Arc<Semaphore>,
        changing: &mut JoinSet<(String, Outcome)>,
        reporting: &mut JoinSet<()>,
    ) {
        let node = self.handle.node();
        let known = self.attempts.known();
        let read = self.handle.read(|state, _| {
            let actions = reconcile::reconcile(node, state, observed, &known);
            let returns = reconcile::returns(node, state, &actions);
            (actions, reconcile::report(node, state, observed, &known), returns)
        });
        // The agent is about to end.
        let Ok((actions, (vms, tasks), returns)) = read else { return };
        for attempt in self.attempts.choose(actions, |unit| self.units.is_prepared(unit)) {
            let (units, permits) = (Arc::clone(&self.units), Arc::clone(permits));
            changing.spawn(async move { attempt.make(units.as_ref(), &permits).await });
        }
        if !reporting.is_empty() {
            return;
        }
        let news = if returns {
            Command::ReturnNode { node }
        } else if !(vms.is_empty() && tasks.is_empty()) {
            self.attempts.report(&tasks);
            Command::Report { node, vms, tasks }
        } else {
            return;
        };
        let handle = self.handle.clone();
        reporting.spawn(async move {
            if let Err(error) = handle.propose(news).await {
                tracing::warn!(error = crate::error_chain(&error), "the cluster has not heard this host's report");
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
}
