//! What is being done to each instance and task, what failed, and when it is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use blixard_core::command::{TaskPhase, TaskReport};
use blixard_core::reconcile::{self, UnitAction, UnitChange};
use blixard_core::types::{NodeEpoch, StorePath, TaskId};
use blixard_core::unit::VmUnit;
use tokio::sync::{Semaphore, oneshot};

use crate::units::Units;

/// A change that failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(10);

/// By the name of an instance or task: one attempt at a time.
#[derive(Default)]
pub struct Attempts {
    under_way: BTreeMap<String, UnderWay>,
    /// Runners that were brought into the store, and whose.
    prepared: BTreeMap<String, StorePath>,
    failed: BTreeMap<String, Failure>,
    /// Tasks that were reported as running, and so may be started.
    claimed: BTreeSet<TaskId>,
}

enum UnderWay {
    /// Units are changed: that is waited for.
    Change,
    /// A runner is brought into the store. Dropping this gives it up, which leaves nothing half-done.
    Preparation { runner: StorePath, _wanted: oneshot::Sender<()> },
}

struct Failure {
    /// What was tried: another change needn't wait.
    change: UnitChange,
    message: String,
    at: Instant,
}

/// What is to be done to one instance or task.
pub struct Attempt {
    name: String,
    work: Work,
}

enum Work {
    /// Changes in order: a stop comes before a start.
    Change(Vec<UnitAction>),
    /// Ends early when the other end is dropped.
    Prepare(VmUnit, NodeEpoch, oneshot::Receiver<()>),
}

/// What came of an attempt.
pub enum Outcome {
    Changed,
    Prepared(StorePath),
    GivenUp,
    Failed(UnitChange, String),
}

impl Attempts {
    /// What the cluster's report has to know of them.
    pub fn known(&self) -> reconcile::Attempts {
        let message = |(name, failure): (&String, &Failure)| (name.clone(), failure.message.clone());
        reconcile::Attempts {
            under_way: self.under_way.keys().cloned().collect(),
            failures: self.failed.iter().map(message).collect(),
            claimed: self.claimed.clone(),
        }
    }

    /// Takes note of what the cluster is told of tasks.
    pub fn report(&mut self, reports: &[TaskReport]) {
        for report in reports {
            match report.phase {
                TaskPhase::Running => self.claimed.insert(report.task),
                TaskPhase::Ended(_) => self.claimed.remove(&report.task),
            };
        }
    }

    /// What is to be tried now: nothing of what is under way or failed just now.
    ///
    /// A start waits until its runner is in the store, and nothing is stopped for it before.
    pub fn choose(&mut self, actions: Vec<UnitAction>, is_prepared: impl Fn(&VmUnit) -> bool) -> Vec<Attempt> {
        let mut grouped: BTreeMap<String, Vec<UnitAction>> = BTreeMap::new();
        for action in actions {
            grouped.entry(name_of(&action.change)).or_default().push(action);
        }
        let wanted: BTreeSet<&String> = grouped.keys().collect();
        self.failed.retain(|name, _| wanted.contains(name));
        self.prepared.retain(|name, _| wanted.contains(name));
        self.under_way.retain(|name, under_way| match under_way {
            UnderWay::Change => true,
            UnderWay::Preparation { runner, .. } => {
                let actions = grouped.get(name).map(Vec::as_slice).unwrap_or_default();
                started(actions).is_some_and(|(unit, _)| unit.runner == *runner)
            }
        });
        let now = Instant::now();
        grouped.into_iter().filter_map(|(name, actions)| self.begin(name, actions, &is_prepared, now)).collect()
    }

    fn begin(
        &mut self,
        name: String,
        actions: Vec<UnitAction>,
        is_prepared: impl Fn(&VmUnit) -> bool,
        now: Instant,
    ) -> Option<Attempt> {
        let too_soon = self.failed.get(&name).is_some_and(|failure| {
            now < failure.at + RETRY && actions.iter().any(|action| action.change == failure.change)
        });
        if too_soon || self.under_way.contains_key(&name) {
            return None;
        }
        let unprepared =
            started(&actions).filter(|(unit, _)| self.prepared.get(&name) != Some(&unit.runner) && !is_prepared(unit));
        let (under_way, work) = match unprepared {
            Some((unit, epoch)) => {
                let (wanted, dropped) = oneshot::channel();
                let runner = unit.runner.clone();
                (UnderWay::Preparation { runner, _wanted: wanted }, Work::Prepare(unit.clone(), epoch, dropped))
            }
            None => (UnderWay::Change, Work::Change(actions)),
        };
        self.under_way.insert(name.clone(), under_way);
        Some(Attempt { name, work })
    }

    /// Takes note of what came of one.
    pub fn note(&mut self, (name, outcome): (String, Outcome)) {
        match outcome {
            // Whatever is under way under that name now is another attempt.
            Outcome::GivenUp => return,
            Outcome::Changed => {
                self.failed.remove(&name);
                self.prepared.remove(&name);
            }
            Outcome::Prepared(runner) => {
                self.prepared.insert(name.clone(), runner);
            }
            Outcome::Failed(change, message) => {
                self.prepared.remove(&name);
                self.failed.insert(name.clone(), Failure { change, message, at: Instant::now() });
            }
        }
        self.under_way.remove(&name);
    }

    /// When the next one that failed, and isn't being tried, is due.
    pub fn next_retry(&self) -> Option<Instant> {
        let idle = self.failed.iter().filter(|(name, _)| !self.under_way.contains_key(*name));
        idle.map(|(_, failure)| failure.at + RETRY).min()
    }
}

impl Attempt {
    /// Does it. A permit is held only while units are changed: a download may take long, and stops mustn't wait for it.
    pub async fn make<U: Units>(self, units: &U, permits: &Semaphore) -> (String, Outcome) {
        let Self { name, work } = self;
        let outcome = match work {
            Work::Prepare(unit, epoch, dropped) => tokio::select! {
                prepared = units.prepare(&unit) => match prepared {
                    Ok(()) => Outcome::Prepared(unit.runner),
                    Err(error) => failed(&name, UnitChange::StartVm(unit, epoch), &error),
                },
                _ = dropped => Outcome::GivenUp,
            },
            Work::Change(actions) => {
                let _permit = permits.acquire().await.expect("nobody closes it");
                perform(&name, actions, units).await
            }
        };
        (name, outcome)
    }
}

async fn perform<U: Units>(name: &str, actions: Vec<UnitAction>, units: &U) -> Outcome {
    for UnitAction { change, reason } in actions {
        tracing::info!(unit = name, change = change.verb(), ?reason, "a unit is changed");
        if let Err(error) = units.perform(&change).await {
            return failed(name, change, &error);
        }
    }
    Outcome::Changed
}

fn failed(name: &str, change: UnitChange, error: &crate::units::UnitsError) -> Outcome {
    let message = crate::error_chain(error);
    tracing::error!(unit = name, change = change.verb(), error = message, "a unit could not be changed");
    Outcome::Failed(change, message)
}

/// The VM that these actions start, and in which epoch of the node.
fn started(actions: &[UnitAction]) -> Option<(&VmUnit, NodeEpoch)> {
    actions.iter().find_map(|action| match &action.change {
        UnitChange::StartVm(unit, epoch) => Some((unit, *epoch)),
        _ => None,
    })
}

fn name_of(change: &UnitChange) -> String {
    match change {
        UnitChange::StopVm(instance) => instance.to_string(),
        UnitChange::StartVm(unit, _) | UnitChange::UpdateVm(unit, _) => unit.instance.to_string(),
        UnitChange::StopTask(task) => task.to_string(),
        UnitChange::StartTask(unit) => unit.task.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blixard_core::reconcile::Reason;

    fn stop(instance: &str) -> UnitAction {
        UnitAction { change: UnitChange::StopVm(instance.parse().unwrap()), reason: Reason::NotPlacedHere }
    }

    /// While no runner is in the store.
    fn choose(attempts: &mut Attempts, actions: Vec<UnitAction>) -> Vec<Attempt> {
        attempts.choose(actions, |_| false)
    }

    #[test]
    fn one_instance_is_changed_by_one_attempt_at_a_time() {
        let mut attempts = Attempts::default();
        assert_eq!(choose(&mut attempts, vec![stop("web-0"), stop("db-0"), stop("web-0")]).len(), 2);
        assert_eq!(choose(&mut attempts, vec![stop("web-0"), stop("mail-0")]).len(), 1);
    }

    #[test]
    fn what_failed_just_now_is_not_tried_again_at_once_but_another_change_is() {
        let mut attempts = Attempts::default();
        let failure = Failure { change: stop("web-0").change, message: "no".to_owned(), at: Instant::now() };
        attempts.failed.insert("web-0".to_owned(), failure);
        assert_eq!(choose(&mut attempts, vec![stop("web-0")]).len(), 0);
        assert_eq!(attempts.known().failures.len(), 1);
        attempts.failed.get_mut("web-0").unwrap().change = stop("db-0").change;
        assert_eq!(choose(&mut attempts, vec![stop("web-0")]).len(), 1);
    }

    #[test]
    fn a_failure_is_forgotten_once_nothing_is_wanted_any_more() {
        let mut attempts = Attempts::default();
        let failure = Failure { change: stop("web-0").change, message: "no".to_owned(), at: Instant::now() };
        attempts.failed.insert("web-0".to_owned(), failure);
        choose(&mut attempts, vec![]);
        assert!(attempts.known().failures.is_empty());
    }

    fn start(runner: &str) -> UnitAction {
        let unit = VmUnit {
            instance: "web-0".parse().unwrap(),
            generation: blixard_core::types::Generation(1),
            runner: format!("/nix/store/{}-{runner}", "a".repeat(32)).parse().unwrap(),
            restart: blixard_core::types::RestartPolicy::Always,
            failover: blixard_core::types::Failover::Manual,
            notifies: false,
            cpus: 1,
            memory_max_mib: 1,
        };
        UnitAction { change: UnitChange::StartVm(unit, NodeEpoch(1)), reason: Reason::PlacedHere }
    }

    #[test]
    fn nothing_is_stopped_for_a_runner_that_is_not_in_the_store() {
        let mut attempts = Attempts::default();
        let chosen = choose(&mut attempts, vec![stop("web-0"), start("new")]);
        let [Attempt { work: Work::Prepare(unit, ..), .. }] = &chosen[..] else { panic!("it is to be prepared first") };
        attempts.note(("web-0".to_owned(), Outcome::Prepared(unit.runner.clone())));
        let chosen = choose(&mut attempts, vec![stop("web-0"), start("new")]);
        assert!(matches!(&chosen[..], [Attempt { work: Work::Change(actions), .. }] if actions.len() == 2));
    }

    #[test]
    fn what_is_in_the_store_is_started_at_once() {
        let is_there = |unit: &VmUnit| unit.runner.as_str().ends_with("there");
        for (runner, at_once) in [("there", true), ("away", false)] {
            let chosen = Attempts::default().choose(vec![stop("web-0"), start(runner)], is_there);
            let [Attempt { work, .. }] = &chosen[..] else { panic!("one attempt is to be made") };
            assert_eq!(matches!(work, Work::Change(actions) if actions.len() == 2), at_once, "{runner}");
        }
    }

    #[test]
    fn a_download_that_is_not_wanted_any_more_is_dropped() {
        let mut attempts = Attempts::default();
        let mut chosen = choose(&mut attempts, vec![start("old")]);
        let Work::Prepare(.., mut dropped) = chosen.remove(0).work else { panic!("it is to be prepared first") };
        assert!(dropped.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        assert_eq!(choose(&mut attempts, vec![start("new")]).len(), 1);
        assert!(dropped.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        attempts.note(("web-0".to_owned(), Outcome::GivenUp));
        assert!(attempts.known().under_way.contains("web-0"), "the other one goes on");
    }

    #[test]
    fn what_is_being_tried_is_not_due() {
        let mut attempts = Attempts::default();
        let failure = Failure { change: stop("web-0").change, message: "no".to_owned(), at: Instant::now() };
        attempts.failed.insert("web-0".to_owned(), failure);
        assert!(attempts.next_retry().is_some());
        attempts.under_way.insert("web-0".to_owned(), UnderWay::Change);
        assert_eq!(attempts.next_retry(), None);
    }
}
