//! What a fence answers, and when it stops everything: the last word on whether an instance may run on its host.
//!
//! ```text
//!   start ─▶ Clearing ── nothing runs, seen twice ──▶ Idle{nonce} ── Arm{nonce, epoch} ──▶ Armed{epoch, D}
//!               ▲                     │  ▲                                                    │
//!               │       what it needs ▼  │ is there                                           │
//!               │                    Unable                                                   │
//!               └─────────────────────────── D has passed, or it is told to end ──────────────┘
//! ```
//!
//! A start is allowed only while it is armed, and only to a process that is in the control group that will be killed: so
//! whatever runs was let in under the current epoch, and is reached when that is over.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{BootTime, Generation, InstanceId, LeaseTerms, NodeEpoch, Nonce};

#[cfg(test)]
mod tests;

/// Most instances that are allowed at a time: a status has to fit into one packet.
pub const MAX_ALLOWED: usize = 1024;
/// Most instances that a fence remembers in its life, allowed or stopped.
pub const MAX_INSTANCES: usize = 16_384;

/// What has to be left of a lease for a start.
const START_MARGIN: Duration = Duration::from_secs(1);
/// How often it looks whether what it has killed is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How often a fence that was never armed gives a sign of life: often enough for whatever an earlier one has set.
const PERIOD_UNARMED: Duration = Duration::from_millis(200);

/// What is asked of a fence; its socket is root's.
///
/// A fence outlives upgrades of those that ask it, so what is here never changes, and what is new comes at the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    Status,
    /// The cluster has raised the node's epoch for this nonce.
    Arm {
        nonce: Nonce,
        epoch: NodeEpoch,
        terms: LeaseTerms,
    },
    /// The leader has granted a renewal that was sent then.
    Renewed {
        epoch: NodeEpoch,
        sent: BootTime,
    },
    /// The instance is placed on this node.
    Allow {
        epoch: NodeEpoch,
        instance: InstanceId,
        generation: Generation,
    },
    /// Asked by the gate, from within the instance's unit, before it becomes the instance.
    Start {
        instance: InstanceId,
        generation: Generation,
    },
    /// The instance is to stop for good: it never starts again, and once nothing of it runs the cluster may be told.
    Stop {
        instance: InstanceId,
        generation: Generation,
    },
    /// Stop everything, close the watchdog device, and end.
    End,
}

/// What a fence answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Status(Status),
    Refused(Refusal),
}

/// Why a fence refuses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("this host's fence isn't armed: the node has no lease; `blixard status` says why")]
    NotArmed,
    #[error("that isn't the nonce which this host's fence has drawn last: arm it with the one that its status shows")]
    Nonce,
    #[error("this host's fence is armed with epoch {armed}, not {asked}")]
    Epoch { armed: NodeEpoch, asked: NodeEpoch },
    #[error("the renewal was sent so long ago that its lease is over")]
    Late,
    #[error("the renewal was sent in the future: it is another boot's")]
    Future,
    #[error("the node's lease ends within a second: it is started once that is renewed")]
    Ending,
    #[error("generation {asked} isn't what is placed on this node{}", now_allowed(*allowed))]
    NotAllowed { asked: Generation, allowed: Option<Generation> },
    #[error("generation {stopped} was stopped for good: it may run elsewhere")]
    IsStopped { stopped: Generation },
    #[error("only its unit may start it: `systemctl start blixard-auto@NAME`")]
    Outside,
    #[error("something of it still runs")]
    Runs,
    #[error(
        "this host's fence remembers as many instances as it can: drain the node, and restart blixard-fence.service"
    )]
    Full,
    #[error("this host's fence doesn't know that request: it is older than the agent; drain the node, and reboot it")]
    Unknown,
    #[error(transparent)]
    Unable(#[from] Unable),
}

fn now_allowed(allowed: Option<Generation>) -> String {
    allowed.map_or_else(String::new, |generation| format!(": that is {generation}"))
}

/// What a fence lacks to be armed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Unable {
    #[error(
        "this host is a virtual machine ({hypervisor}), which can be paused without its clock showing it; set \
         fence.allow_virtual_hosts if that can't happen"
    )]
    Virtual { hypervisor: String },
    #[error("cannot use the watchdog device {device} ({reason}); set fence.watchdog to another one, or to \"none\"")]
    Watchdog { device: String, reason: String },
    #[error("cannot kill by control group ({reason}): it needs cgroup v2, with Linux 5.14 or newer")]
    ControlGroups { reason: String },
}

/// What a fence says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub stage: Stage,
    /// Of each instance that may be started, the one generation that may.
    pub allowed: BTreeMap<InstanceId, Generation>,
}

/// How far a fence is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Stage {
    /// It kills what there is in its slice.
    Clearing,
    /// Nothing runs, and it can't be armed.
    Unable(Unable),
    /// Nothing runs, nor will before it is armed, with this nonce.
    Idle { nonce: Nonce },
    /// Until `deadline`, which the first renewal sets, instances may run. Without one for as long as a lease, it clears anew.
    Armed { epoch: NodeEpoch, terms: LeaseTerms, deadline: Option<BootTime> },
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clearing => f.write_str("kills what is left"),
            Self::Unable(unable) => write!(f, "can't be armed: {unable}"),
            Self::Idle { .. } => f.write_str("isn't armed"),
            Self::Armed { epoch, terms, .. } => write!(f, "is armed with epoch {epoch} ({terms})"),
        }
    }
}

/// What is in the control group of an instance's unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    Empty,
    /// Something, and not who asks.
    Populated,
    /// Who asks, at least.
    Asking,
}

/// What whoever runs a fence does now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    pub action: Action,
    /// Whether the watchdog device gets its sign of life. If not, something runs that should be dead by now, and only a
    /// reset of the host will end it in time.
    pub pet: bool,
    /// When to look again, at the latest.
    pub wake: BootTime,
}

/// See [`Turn`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Wait,
    /// Kill all that is in the slice.
    Kill,
    /// Nothing runs: draw a nonce, and say so by [`Fence::ready`].
    Draw,
    /// Nothing runs, nor ever will: close the watchdog device and end.
    End,
}

/// A fence's life, from its process's start to its end. Time comes from outside, and never goes back.
#[derive(Debug, Default)]
pub struct Fence {
    phase: Phase,
    /// Of each instance, the highest generation that was stopped for good.
    stopped: BTreeMap<InstanceId, Generation>,
    /// Those that it was armed with last: its watchdogs still count by them.
    terms: Option<LeaseTerms>,
    is_ending: bool,
}

#[derive(Debug)]
enum Phase {
    Clearing { seen_empty: bool, pet_until: BootTime },
    Unable(Unable),
    Idle { nonce: Nonce },
    Armed(Armed),
}

#[derive(Debug)]
struct Armed {
    epoch: NodeEpoch,
    terms: LeaseTerms,
    since: BootTime,
    deadline: Option<BootTime>,
    allowed: BTreeMap<InstanceId, Generation>,
}

impl Armed {
    /// When its lease ends, or when its first one would have to have come: nobody may renew its epoch any more, by then.
    fn end(&self) -> BootTime {
        self.deadline.unwrap_or_else(|| self.since.after(self.terms.lease()))
    }
}

/// A fence that begins knows of no device that it would have to keep from biting: an earlier one may have left it.
impl Default for Phase {
    fn default() -> Self {
        Self::Clearing { seen_empty: false, pet_until: BootTime(0) }
    }
}

impl Fence {
    /// Answer one request; `group` looks at what is in the control group of the instance that it is about.
    pub fn handle(&mut self, now: BootTime, request: &Request, group: impl FnOnce(&InstanceId) -> Group) -> Reply {
        self.expire(now);
        let done = match request {
            Request::Status => return Reply::Status(self.status()),
            Request::Arm { nonce, epoch, terms } => self.arm(now, *nonce, *epoch, *terms),
            Request::Renewed { epoch, sent } => self.renew(now, *epoch, *sent),
            Request::Allow { epoch, instance, generation } => self.allow(*epoch, instance, *generation),
            Request::Start { instance, generation } => self.may_start(now, instance, *generation, group(instance)),
            Request::Stop { instance, generation } => self.stop(instance, *generation, group(instance)),
            Request::End => {
                self.end(now);
                Ok(())
            }
        };
        done.map_or_else(Reply::Refused, |()| Reply::Done)
    }

    /// What is to be done; called after each request, and at the time that the last turn named.
    ///
    /// `is_empty` says whether nothing at all is in the slice.
    pub fn tick(&mut self, now: BootTime, is_empty: bool) -> Turn {
        self.expire(now);
        let period = now.after(self.period());
        match &mut self.phase {
            Phase::Clearing { seen_empty, pet_until } => {
                let action = match (is_empty, *seen_empty) {
                    (false, _) => Action::Kill,
                    (true, false) => Action::Wait,
                    (true, true) if self.is_ending => Action::End,
                    (true, true) => Action::Draw,
                };
                *seen_empty = is_empty;
                let pet = now < *pet_until || matches!(action, Action::Draw | Action::End);
                Turn { action, pet, wake: now.after(LOOK_AGAIN) }
            }
            Phase::Unable(_) if is_empty => Turn { action: Action::Draw, pet: true, wake: period },
            Phase::Armed(armed) => Turn { action: Action::Wait, pet: true, wake: period.min(armed.end()) },
            Phase::Unable(_) | Phase::Idle { .. } => Turn { action: Action::Wait, pet: true, wake: period },
        }
    }

    /// The nonce that was drawn, or what it lacks to be armed: after [`Action::Draw`], or when its watchdogs don't take the
    /// terms that it was armed with.
    pub fn ready(&mut self, drawn: Result<Nonce, Unable>) {
        let has_run = matches!(&self.phase, Phase::Armed(armed) if armed.deadline.is_some());
        assert!(!has_run, "a fence that may have let something start clears first");
        self.phase = match drawn {
            Ok(nonce) => Phase::Idle { nonce },
            Err(unable) => Phase::Unable(unable),
        };
    }

    pub fn status(&self) -> Status {
        let allowed = match &self.phase {
            Phase::Armed(armed) => armed.allowed.clone(),
            Phase::Clearing { .. } | Phase::Unable(_) | Phase::Idle { .. } => BTreeMap::new(),
        };
        Status { stage: self.stage(), allowed }
    }

    pub fn stage(&self) -> Stage {
        match &self.phase {
            Phase::Clearing { .. } => Stage::Clearing,
            Phase::Unable(unable) => Stage::Unable(unable.clone()),
            Phase::Idle { nonce } => Stage::Idle { nonce: *nonce },
            Phase::Armed(Armed { epoch, terms, deadline, .. }) => {
                Stage::Armed { epoch: *epoch, terms: *terms, deadline: *deadline }
            }
        }
    }

    fn armed(&mut self) -> Result<&mut Armed, Refusal> {
        match &mut self.phase {
            Phase::Armed(armed) => Ok(armed),
            Phase::Unable(unable) => Err(unable.clone().into()),
            Phase::Clearing { .. } | Phase::Idle { .. } => Err(Refusal::NotArmed),
        }
    }

    fn armed_with(&mut self, epoch: NodeEpoch) -> Result<&mut Armed, Refusal> {
        let armed = self.armed()?;
        if armed.epoch == epoch { Ok(armed) } else { Err(Refusal::Epoch { armed: armed.epoch, asked: epoch }) }
    }

    fn arm(&mut self, now: BootTime, nonce: Nonce, epoch: NodeEpoch, terms: LeaseTerms) -> Result<(), Refusal> {
        match &self.phase {
            Phase::Idle { nonce: drawn } if *drawn == nonce => {
                let allowed = BTreeMap::new();
                self.phase = Phase::Armed(Armed { epoch, terms, since: now, deadline: None, allowed });
                self.terms = Some(terms);
                Ok(())
            }
            Phase::Unable(unable) => Err(unable.clone().into()),
            Phase::Clearing { .. } | Phase::Idle { .. } | Phase::Armed(_) => Err(Refusal::Nonce),
        }
    }

    fn renew(&mut self, now: BootTime, epoch: NodeEpoch, sent: BootTime) -> Result<(), Refusal> {
        let armed = self.armed_with(epoch)?;
        if sent > now {
            return Err(Refusal::Future);
        }
        let deadline = sent.after(armed.terms.lease());
        if deadline <= now {
            return Err(Refusal::Late);
        }
        armed.deadline = armed.deadline.max(Some(deadline));
        Ok(())
    }

    fn allow(&mut self, epoch: NodeEpoch, instance: &InstanceId, generation: Generation) -> Result<(), Refusal> {
        let tombstone = self.stopped.get(instance).copied();
        let remembered = self.remembered();
        let armed = self.armed_with(epoch)?;
        if let Some(stopped) = tombstone.filter(|stopped| generation <= *stopped) {
            return Err(Refusal::IsStopped { stopped });
        }
        let allowed = armed.allowed.get(instance).copied();
        if allowed.is_some_and(|allowed| generation < allowed) {
            return Err(Refusal::NotAllowed { asked: generation, allowed });
        }
        // Nothing starts whose end couldn't be remembered.
        let has_room = tombstone.is_some() || remembered < MAX_INSTANCES;
        if allowed.is_none() && !(has_room && armed.allowed.len() < MAX_ALLOWED) {
            return Err(Refusal::Full);
        }
        armed.allowed.insert(instance.clone(), generation);
        Ok(())
    }

    fn may_start(
        &mut self,
        now: BootTime,
        instance: &InstanceId,
        generation: Generation,
        group: Group,
    ) -> Result<(), Refusal> {
        let tombstone = self.stopped.get(instance).copied();
        let armed = self.armed()?;
        if let Some(stopped) = tombstone.filter(|stopped| generation <= *stopped) {
            return Err(Refusal::IsStopped { stopped });
        }
        let allowed = armed.allowed.get(instance).copied();
        if allowed != Some(generation) {
            return Err(Refusal::NotAllowed { asked: generation, allowed });
        }
        if armed.deadline.is_none_or(|deadline| deadline <= now.after(START_MARGIN)) {
            return Err(Refusal::Ending);
        }
        if group != Group::Asking {
            return Err(Refusal::Outside);
        }
        Ok(())
    }

    fn stop(&mut self, instance: &InstanceId, generation: Generation, group: Group) -> Result<(), Refusal> {
        if let Phase::Armed(Armed { allowed, .. }) = &mut self.phase {
            allowed.retain(|other, allowed| other != instance || *allowed > generation);
        }
        let remembered = self.remembered();
        match self.stopped.get_mut(instance) {
            Some(stopped) => *stopped = generation.max(*stopped),
            None if remembered >= MAX_INSTANCES => return Err(Refusal::Full),
            None => _ = self.stopped.insert(instance.clone(), generation),
        }
        if group == Group::Empty { Ok(()) } else { Err(Refusal::Runs) }
    }

    /// How many instances have, or will need, a tombstone.
    fn remembered(&self) -> usize {
        let allowed = match &self.phase {
            Phase::Armed(armed) => armed.allowed.keys().filter(|allowed| !self.stopped.contains_key(allowed)).count(),
            Phase::Clearing { .. } | Phase::Unable(_) | Phase::Idle { .. } => 0,
        };
        self.stopped.len() + allowed
    }

    fn end(&mut self, now: BootTime) {
        self.is_ending = true;
        if !matches!(self.phase, Phase::Clearing { .. }) {
            self.clear(now);
        }
    }

    /// At its end the epoch is over: only another one helps.
    fn expire(&mut self, now: BootTime) {
        if let Phase::Armed(armed) = &self.phase
            && armed.end() <= now
        {
            self.clear(armed.end());
        }
    }

    /// Kill, in the time that there is since `since`: half of what the watchdog device leaves of it, so that the host is reset
    /// in time if something doesn't die.
    fn clear(&mut self, since: BootTime) {
        let patience = self.terms.map_or(Duration::ZERO, |terms| {
            let device = Duration::from_secs(terms.device_timeout_seconds().into());
            terms.kill().saturating_sub(device) / 2
        });
        self.phase = Phase::Clearing { seen_empty: false, pet_until: since.after(patience) };
    }

    /// Three signs of life in the time after which it counts as dead.
    fn period(&self) -> Duration {
        self.terms.map_or(PERIOD_UNARMED, |terms| terms.fence_watchdog() / 3)
    }
}
