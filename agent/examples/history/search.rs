//! The published checker, porcupine: it searches for an order, knows nothing of log entries, and takes one register at a
//! time. A history is linearizable if, and only if, each of its registers is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation as Event, check_operations_timeout};

use crate::record::{Ask, Cell, Operation, Seen};
use crate::replay::Violation;

/// How long a register is searched before it is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most operations that are shown with what is wrong.
const MAX_SHOWN: usize = 12;

#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    /// Registers that were searched, each over its whole life.
    pub windows: usize,
    /// Those of them that took too long.
    pub unknown: usize,
}

#[derive(Clone)]
struct Register;

impl Model for Register {
    type State = Cell;
    type Op = Seen;
    type Metadata = ();

    fn init() -> Cell {
        None
    }

    fn step(cell: &Cell, seen: &Seen) -> (bool, Cell) {
        match seen {
            Seen::Changed(change) => change.carry_out(*cell).map_or((false, *cell), |after| (true, after)),
            Seen::Refused(change) => (change.carry_out(*cell).is_none(), *cell),
            // What was never carried out has its place at the end, where nobody looks any more.
            Seen::Perhaps(change) => (true, change.carry_out(*cell).unwrap_or(*cell)),
            Seen::Held(held) => (held == cell, *cell),
        }
    }
}

/// Checks a history that is sorted by when its operations were called.
pub fn check(operations: &[Operation]) -> Verdict {
    let mut by_register: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        for register in operation.registers().iter().collect::<BTreeSet<_>>() {
            by_register.entry(register).or_default().push(operation);
        }
    }
    let mut verdict = Verdict { windows: by_register.len(), ..Verdict::default() };
    for (register, operations) in by_register {
        match search(register, &operations, u64::MAX) {
            CheckResult::Ok => {}
            CheckResult::Unknown => verdict.unknown += 1,
            CheckResult::Illegal => verdict.violations.push(explain(register, &operations)),
        }
    }
    verdict
}

/// Searches what is known of a register by time `end`: what was answered later has no answer yet.
fn search(register: &str, operations: &[&Operation], end: u64) -> CheckResult {
    let events: Vec<_> = operations.iter().filter_map(|operation| event(register, operation, end)).collect();
    check_operations_timeout::<Register>(&events, PATIENCE)
}

fn event(register: &str, operation: &Operation, end: u64) -> Option<Event<Register>> {
    let returned = operation.returned.filter(|returned| *returned <= end);
    let seen = operation.in_register(register)?;
    let op = match (seen, &operation.ask) {
        _ if operation.called > end => return None,
        (Seen::Held(_), _) if returned.is_none() => return None,
        (_, Ask::Change { change, .. }) if returned.is_none() => Seen::Perhaps(*change),
        (seen, _) => seen,
    };
    let time = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
    let return_time = returned.map_or(i64::MAX, time);
    Some(Event { client_id: None, call_time: time(operation.called), return_time, op, metadata: None })
}

/// The answer with which it can't be in order any more, and what came before.
fn explain(register: &str, operations: &[&Operation]) -> Violation {
    let mut ends: Vec<_> = operations.iter().filter_map(|operation| operation.returned).collect();
    ends.sort_unstable();
    let first = ends.partition_point(|end| search(register, operations, *end) != CheckResult::Illegal);
    let end = ends.get(first).copied().unwrap_or(u64::MAX);
    let tells = |operation: &&&Operation| operation.called <= end && operation.in_register(register).is_some();
    let mut shown: Vec<_> = operations.iter().filter(tells).copied().collect();
    shown.sort_by_key(|operation| operation.returned.filter(|returned| *returned <= end).unwrap_or(0));
    let shown = shown.iter().rev().take(MAX_SHOWN).rev().map(|operation| operation.narrowed(register));
    Violation { what: format!("{register}: no order of these explains the last answer"), operations: shown.collect() }
}
