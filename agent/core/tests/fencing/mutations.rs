//! What somebody does wrong: the simulation has to see it.

use blixard_core::command::{Command, Entry, Reply};
use blixard_core::driver::Position;
use blixard_core::lease::keep::Step;
use blixard_core::reconcile::{UnitAction, UnitChange};
use blixard_core::state::{Cluster, Instance, Lease, State, Table};
use blixard_core::types::{Availability, Failover, InstanceId, NodeId, Term};
use blixard_core::unit::Observed;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the world does wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mutation {
    #[default]
    None,
    /// A deadline is counted from when the renewal was heard of.
    CountsFromReceipt,
    /// A leader goes by what it granted in an earlier term.
    KeepsGrants,
    /// A leader waits for as long as a lease, and not for its end on a slow clock and for the fence.
    WaitsForTheLeaseOnly,
    /// A leader grants by its own word.
    GrantsWithoutQuorum,
    /// A leader grants what it is about to end.
    GrantsAfterItsMark,
    /// A leader grants before it has applied what its predecessors decided.
    GrantsBeforeItKnowsAll,
    /// A leader doesn't look which epoch is to be renewed.
    GrantsAnyEpoch,
    /// An arming is applied whatever epoch it expects.
    TakesAnyArming,
    /// Another machine arms without a wait.
    LetsClonesArm,
    /// What a leader has decided is forwarded to its successor.
    ForwardsDecisions,
    /// A fence doesn't remember what was stopped.
    ForgetsTombstones,
    /// A fence lets something start until the last moment.
    StartsAtTheEnd,
    /// A gate doesn't ask.
    StartsUnasked,
    /// A fence takes its slice for empty.
    ArmsBeforeItIsEmpty,
    /// What a fence's end frees is what is declared as automatic now.
    FreesByDeclaration,
    /// An arming frees what is manual, too.
    FreesManualOnArm,
    /// That a host has booted frees what was placed there.
    FreesAtBoot,
    /// A leader waits for no end of what a node had before its host booted.
    SparesWhoHasBooted,
    /// An instance is said to have stopped before it has.
    AcknowledgesTooEarly,
    /// A node is dead as soon as a person says so.
    ConfirmsWhoIsGranted,
    /// An agent acts before it knows what was acknowledged before it started.
    ActsOnWhatIsOld,
    /// An agent acts before the cluster knows that its host has booted.
    ActsUnregistered,
    /// An agent speaks for what belongs to an epoch that isn't its fence's.
    SpeaksUnarmed,
    /// Nothing resets a host whose fence gives no sign of life.
    LacksItsDevice,
    /// An agent arms its host's fence with the epoch that its node has, whichever fence that was raised for.
    ResumesEpochs,
    /// What a fence leaves running is stopped neither by systemd nor by the next one.
    SparesWhatRuns,
    /// A fence that is told to end ends before what it stops has.
    EndsBeforeItIsEmpty,
    /// An instance is placed as what it is declared as, however few servers there are.
    PlacesAsDeclared,
    /// A host sleeps without ending its fence before.
    SleepsAsItIs,
    /// A cluster that begins anew forgets that others may run something.
    ForgetsTheAbsent,
    /// A cluster that begins anew goes by the leases of before.
    ArmsNobodyAnew,
    /// What a host runs that is to go down is free as soon as that is said.
    FreesWhatIsToGoDown,
    /// A server whose log lacks what it has acknowledged is started again from it.
    ForgetsThatItsLogIsLost,
    /// An agent lets what isn't placed on its node run on.
    SparesStrays,
    /// An agent takes what runs as manual for what is placed as automatic, and the other way.
    TakesEitherTemplate,
}

impl Mutation {
    /// With what a cluster begins anew, in the place of what it has to.
    pub fn begins(self, before: &State, begun: State) -> State {
        let standing = |node| before.nodes().get(&node).map(|member| member.lease.standing).unwrap_or_default();
        match self {
            Self::ArmsNobodyAnew => edited(&begun, Table::Leases, |key, lease: &mut Lease| {
                lease.standing = standing(NodeId(u64::from_be_bytes(key.try_into().expect("it is a node's"))));
            }),
            Self::ForgetsTheAbsent => edited(&begun, Table::Cluster, |_, cluster: &mut Cluster| cluster.absent.clear()),
            _ => begun,
        }
    }

    /// What an agent does in the place of these changes to the units of its node.
    pub fn actions(self, mut actions: Vec<UnitAction>, node: NodeId, state: &State) -> Vec<UnitAction> {
        if self == Self::SparesStrays {
            let is_placed = |id: &InstanceId| state.placed_on(node).any(|placed| placed == id);
            actions.retain(|action| !matches!(&action.change, UnitChange::StopVm(id) if !is_placed(id)));
        }
        actions
    }

    /// What an agent does in the place of its next step towards a lease.
    pub fn step(self, step: Step, lease: Option<&Lease>) -> Step {
        match (self, step, lease.and_then(|lease| Some((lease.epoch, lease.arming()?.terms)))) {
            (Self::ResumesEpochs, Step::Arm { nonce, .. }, Some((epoch, terms))) => {
                Step::TellFence { nonce, epoch, terms }
            }
            _ => step,
        }
    }

    /// What an agent sees in the place of what there is.
    pub fn observed(self, mut observed: Observed, node: NodeId, state: &State) -> Observed {
        match self {
            Self::SpeaksUnarmed => observed.armed = state.nodes().get(&node).map(|member| member.lease.epoch),
            Self::TakesEitherTemplate => {
                let placed = |id| state.instances().get(id).and_then(|instance| instance.placement.as_ref());
                for (id, vm) in &mut observed.vms {
                    if let (Some(unit), Some(placement)) = (&mut vm.installed, placed(id)) {
                        unit.failover = placement.unit.failover;
                    }
                }
            }
            _ => {}
        }
        observed
    }

    /// Applies what is applied in the place of an entry; the reply to the last of it.
    pub fn apply(self, state: &mut State, Position { index, term }: Position, entry: &Entry) -> Reply {
        let mut entries = self.entries(state, Term(term), entry.clone());
        let last = entries.pop().expect("there is one at least");
        for entry in entries {
            state.apply(index, Term(term), &entry);
        }
        let reply = state.apply(index, Term(term), &last).answer.reply;
        if let (Command::Place { instance, .. }, Self::PlacesAsDeclared) = (&entry.command, self) {
            let declared = state.declared(instance).map(|vm| vm.spec.failover).unwrap_or_default();
            *state = edited(state, Table::Placements, |key, of: &mut Instance| {
                if let Some(placement) = of.placement.as_mut().filter(|_| key == instance.to_string().as_bytes()) {
                    placement.unit.failover = declared;
                }
            });
        }
        reply
    }

    fn entries(self, state: &State, term: Term, entry: Entry) -> Vec<Entry> {
        let mut entries = Vec::new();
        match (&entry.command, self) {
            (Command::Arm { node, .. }, Self::FreesManualOnArm)
            | (
                Command::SetAvailability { node, availability: Availability::Rebooting, .. },
                Self::FreesWhatIsToGoDown,
            ) => entries = free(*node, term, &entry),
            (Command::RegisterWorker { node, boot, .. }, Self::FreesAtBoot)
                if state.nodes().get(node).is_some_and(|member| member.boot != Some(*boot)) =>
            {
                entries = free(*node, term, &entry);
            }
            (Command::Fence { node, .. }, Self::FreesByDeclaration) if has_flipped(state, *node) => {
                entries = free(*node, term, &entry);
            }
            (Command::Arm { node, nonce, machine, .. }, Self::TakesAnyArming) => {
                if let Some(member) = state.nodes().get(node) {
                    let (node, nonce, machine) = (*node, *nonce, *machine);
                    let command = Command::Arm { node, expected: member.lease.epoch, nonce, machine };
                    return vec![Entry { command, ..entry }];
                }
            }
            (Command::Fence { .. }, Self::ForwardsDecisions) => {
                return vec![Entry { decided_in: Some(term), ..entry }];
            }
            _ => {}
        }
        entries.push(entry);
        entries
    }
}

/// The state with other rows in a table.
fn edited<T: Serialize + DeserializeOwned>(state: &State, table: Table, edit: impl Fn(&[u8], &mut T)) -> State {
    let rows = state.all_rows().into_iter().map(|row| {
        let value = row.value.expect("all rows have one");
        if row.table != table {
            return (row.table, row.key, value.to_vec());
        }
        let mut edited = postcard::from_bytes(&value).expect("it is a row");
        edit(&row.key, &mut edited);
        (row.table, row.key, postcard::to_stdvec(&edited).expect("it was a row"))
    });
    State::from_rows(rows).expect("they are rows")
}

/// Frees all that is placed on a node.
fn free(node: NodeId, term: Term, entry: &Entry) -> Vec<Entry> {
    let silent = Command::SetWorkerAlive { node, alive: false };
    let silent = Entry { decided_in: Some(term), command: silent, ..entry.clone() };
    let dead =
        Entry { command: Command::ConfirmDead { node, abandon_volumes: false }, decided_in: None, ..entry.clone() };
    let back = Entry { command: Command::SetWorkerAlive { node, alive: true }, ..silent.clone() };
    vec![silent, dead, back]
}

/// Whether something is placed there as manual that is declared as automatic now.
fn has_flipped(state: &State, node: NodeId) -> bool {
    state.placed_on(node).any(|id| {
        let placement = state.instances().get(id).and_then(|instance| instance.placement.as_ref());
        let is_manual = placement.is_some_and(|placement| placement.unit.failover == Failover::Manual);
        is_manual && state.declared(id).is_some_and(|vm| vm.spec.failover == Failover::Automatic)
    })
}
