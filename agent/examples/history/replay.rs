//! Our own checker: it replays a history in the order of the log entries that its answers name.
//!
//! So it need not search for an order, and takes all of a long history. It asks for more than linearizability: answers
//! have to name entries in the order in which they were given. Only changes of unknown outcome leave a choice, and those
//! are few: it follows every way in which they may have gone. What names no entry (a refusal, an explanation) has to fit
//! what its register can have held at the time.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{Answer, Ask, Cell, Change, Operation, Seen, Shown};

/// Most ways that are followed for one register.
const MAX_WAYS: usize = 2000;
/// Most operations that are shown with what is wrong.
const MAX_SHOWN: usize = 12;

/// Why a history isn't linearizable.
#[derive(Debug)]
pub struct Violation {
    pub what: String,
    /// Enough of the history to see it, as it was called.
    pub operations: Vec<Operation>,
}

#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    pub registers: usize,
    /// Registers with so many changes of unknown outcome that they weren't followed to the end.
    pub given_up: usize,
}

/// Checks a history that is sorted by when its operations were called.
pub fn check(operations: &[Operation]) -> Verdict {
    let times = Times::of(operations);
    let mut verdict = Verdict::default();
    verdict.violations.extend(answered_in_two_ways(operations));
    verdict.violations.extend(entries_named_twice(operations));
    verdict.violations.extend(times.out_of_order(operations));
    let mut lives = BTreeMap::new();
    for (name, register) in registers(operations, &times) {
        verdict.registers += 1;
        match register.replay() {
            Ok(Some(life)) => _ = lives.insert(name, life),
            Ok(None) => verdict.given_up += 1,
            Err(violation) => verdict.violations.push(violation),
        }
    }
    verdict.violations.extend(unfitting(operations, &times, &lives));
    verdict
}

fn answered_in_two_ways(operations: &[Operation]) -> impl Iterator<Item = Violation> {
    let differ = |operation: &&Operation| operation.answers.windows(2).any(|two| two[0] != two[1]);
    operations.iter().filter(differ).map(|operation| Violation {
        what: format!("a request that was sent again was answered otherwise: {:?}", operation.answers),
        operations: vec![operation.clone()],
    })
}

fn entries_named_twice(operations: &[Operation]) -> Vec<Violation> {
    let mut named: BTreeMap<u64, &Operation> = BTreeMap::new();
    let changes = operations.iter().filter(|operation| matches!(operation.ask, Ask::Change { .. }));
    let twice = changes.filter_map(|operation| {
        let index = operation.index()?;
        let other = named.insert(index, operation)?;
        let what = format!("two changes were answered to be entry {index}");
        Some(Violation { what, operations: vec![other.clone(), operation.clone()] })
    });
    twice.collect()
}

/// What the clock says of the entries: an answer is newer than those that were there before its question.
struct Times {
    /// For each operation, the highest entry that an answer had named before it was called, and the position of whoever
    /// had that answer.
    before: Vec<(u64, Option<usize>)>,
    /// For each operation, the highest entry after which it can have been carried out, by what was called later.
    latest: Vec<u64>,
    /// Calls and answers, by time: whether it is an answer, and the operation's position.
    events: Vec<(bool, usize)>,
}

impl Times {
    fn of(operations: &[Operation]) -> Self {
        let calls = operations.iter().enumerate().map(|(at, operation)| (operation.called, false, at));
        let answers = operations.iter().enumerate();
        let answers = answers.filter_map(|(at, operation)| Some((operation.returned?, true, at)));
        let mut events: Vec<_> = calls.chain(answers).collect();
        events.sort_unstable();
        let (mut before, mut highest) = (vec![(0, None); operations.len()], (0, None));
        for (_, is_answer, at) in &events {
            match operations[*at].index().filter(|_| *is_answer) {
                Some(index) if index > highest.0 => highest = (index, Some(*at)),
                None if !is_answer => before[*at] = highest,
                _ => {}
            }
        }
        let (mut latest, mut lowest) = (vec![u64::MAX; operations.len()], u64::MAX);
        for (_, is_answer, at) in events.iter().rev() {
            match operations[*at].index().filter(|_| !is_answer) {
                Some(index) => lowest = lowest.min(index - u64::from(is_change(&operations[*at]))),
                None if *is_answer => latest[*at] = lowest,
                None => {}
            }
        }
        Self { before, latest, events: events.into_iter().map(|(_, is_answer, at)| (is_answer, at)).collect() }
    }

    fn out_of_order<'a>(&'a self, operations: &'a [Operation]) -> impl Iterator<Item = Violation> + 'a {
        self.before.iter().zip(operations).filter_map(move |((highest, by), operation)| {
            let (index, other) = (operation.index()?, &operations[(*by)?]);
            // A change is an entry of its own; what is read may be as it was.
            if index >= highest + u64::from(is_change(operation)) {
                return None;
            }
            let what = format!("entry {index} is answered, and entry {highest} had been before this was asked");
            let register = &other.registers()[0];
            Some(Violation { what, operations: vec![other.narrowed(register), operation.narrowed(register)] })
        })
    }
}

fn is_change(operation: &Operation) -> bool {
    matches!(operation.ask, Ask::Change { .. })
}

/// All that is known of one register.
struct Register<'a> {
    name: &'a str,
    /// What names an entry, in the order of those; a change comes before who read it.
    facts: Vec<(u64, Seen, &'a Operation)>,
    /// Changes of unknown outcome, each with the highest entry that it must come after.
    perhaps: Vec<(u64, Change, &'a Operation)>,
}

fn registers<'a>(operations: &'a [Operation], times: &Times) -> BTreeMap<&'a str, Register<'a>> {
    let mut registers: BTreeMap<&str, Register> = BTreeMap::new();
    for (operation, (before, _)) in operations.iter().zip(&times.before) {
        for name in operation.registers() {
            let register = registers.entry(name).or_insert(Register { name, facts: Vec::new(), perhaps: Vec::new() });
            match (operation.in_register(name), operation.index()) {
                (Some(Seen::Perhaps(change)), _) => register.perhaps.push((*before, change, operation)),
                (Some(seen), Some(index)) => register.facts.push((index, seen, operation)),
                _ => {}
            }
        }
    }
    for register in registers.values_mut() {
        register.facts.sort_by_key(|(index, seen, _)| (*index, matches!(seen, Seen::Held(_))));
    }
    registers
}

/// One way in which it may have gone: what a register holds, and which changes of unknown outcome that took.
#[derive(Clone)]
struct Way {
    cell: Cell,
    taken: BTreeSet<usize>,
}

/// What a register can have held after each of these entries.
struct Stretch {
    from: u64,
    to: u64,
    cells: BTreeSet<Cell>,
}

impl Register<'_> {
    /// What it can have held at each time; nothing if there are too many ways.
    fn replay(&self) -> Result<Option<Vec<Stretch>>, Violation> {
        let mut ways = vec![Way { cell: None, taken: BTreeSet::new() }];
        let (mut life, mut from) = (Vec::new(), 0);
        for (at, (index, seen, _)) in self.facts.iter().enumerate() {
            let to = if matches!(seen, Seen::Held(_)) { *index } else { index - 1 };
            if !self.spread(&mut ways, to) {
                return Ok(None);
            }
            life.push(Stretch::of(from, to, &ways));
            let after = ways.iter().filter_map(|way| Some(Way { cell: settle(*seen, way.cell)?, ..way.clone() }));
            let after = fewest(after.collect());
            if after.is_empty() {
                return Err(self.violation(at, &ways));
            }
            (ways, from) = (after, *index);
        }
        if !self.spread(&mut ways, u64::MAX) {
            return Ok(None);
        }
        life.push(Stretch::of(from, u64::MAX, &ways));
        Ok(Some(life))
    }

    /// Adds the ways on which changes of unknown outcome were carried out by entry `to`; whether that could be done.
    fn spread(&self, ways: &mut Vec<Way>, to: u64) -> bool {
        let mut at = 0;
        while at < ways.len() {
            for (number, (after, change, _)) in self.perhaps.iter().enumerate() {
                let way = &ways[at];
                if *after >= to || way.taken.contains(&number) {
                    continue;
                }
                if let Some(cell) = change.carry_out(way.cell).filter(|cell| *cell != way.cell) {
                    let mut taken = way.taken.clone();
                    taken.insert(number);
                    add(ways, Way { cell, taken });
                }
            }
            at += 1;
            if ways.len() > MAX_WAYS {
                return false;
            }
        }
        true
    }

    fn violation(&self, at: usize, ways: &[Way]) -> Violation {
        let cells: BTreeSet<_> = ways.iter().map(|way| Shown(way.cell).to_string()).collect();
        let cells: Vec<_> = cells.into_iter().collect();
        let what = format!("{} can hold nothing but this before the last of these: {}", self.name, cells.join(", or "));
        let known = self.facts[..=at].iter().map(|(_, _, operation)| *operation);
        let perhaps = self.perhaps.iter().map(|(_, _, operation)| *operation);
        let (known, perhaps) = (known.rev().take(MAX_SHOWN / 2), perhaps.rev().take(MAX_SHOWN / 2));
        let mut operations: Vec<_> = known.chain(perhaps).map(|operation| operation.narrowed(self.name)).collect();
        operations.reverse();
        Violation { what, operations }
    }
}

/// What a register holds after what was seen; nothing if that can't have been seen.
fn settle(seen: Seen, cell: Cell) -> Option<Cell> {
    match seen {
        Seen::Changed(change) => change.carry_out(cell),
        Seen::Refused(change) => change.carry_out(cell).is_none().then_some(cell),
        Seen::Held(held) => (held == cell).then_some(cell),
        Seen::Perhaps(_) => Some(cell),
    }
}

/// A way is only worth following if none leads to the same with fewer of the changes: what wasn't taken may come yet.
fn add(ways: &mut Vec<Way>, way: Way) {
    if !ways.iter().any(|other| other.cell == way.cell && other.taken.is_subset(&way.taken)) {
        ways.push(way);
    }
}

fn fewest(mut ways: Vec<Way>) -> Vec<Way> {
    ways.sort_by_key(|way| way.taken.len());
    let mut kept = Vec::new();
    for way in ways {
        add(&mut kept, way);
    }
    kept
}

impl Stretch {
    fn of(from: u64, to: u64, ways: &[Way]) -> Self {
        Self { from, to, cells: ways.iter().map(|way| way.cell).collect() }
    }

    fn fits(&self, seen: Seen) -> bool {
        self.cells.iter().any(|cell| settle(seen, *cell).is_some())
    }
}

/// Operations whose answers name no entry and that fit nowhere.
///
/// Each is given the earliest place that it fits in: no other choice leaves more room to those that come later.
fn unfitting(operations: &[Operation], times: &Times, lives: &BTreeMap<&str, Vec<Stretch>>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let (mut placed, mut earliest) = (vec![0; operations.len()], 0);
    for (is_answer, at) in &times.events {
        let operation = &operations[*at];
        if *is_answer {
            earliest = earliest.max(operation.index().unwrap_or(placed[*at]));
            continue;
        }
        let latest = times.latest[*at];
        let [register] = operation.registers() else { continue };
        let Some(seen) = operation.in_register(register).filter(|_| operation.index().is_none()) else { continue };
        let Some(life) = lives.get(register.as_str()).filter(|_| !matches!(seen, Seen::Perhaps(_))) else { continue };
        let from = life.partition_point(|stretch| stretch.to < earliest);
        let place = life[from..].iter().find(|stretch| stretch.fits(seen)).map(|stretch| stretch.from.max(earliest));
        match place.filter(|place| *place <= latest) {
            Some(place) => placed[*at] = place,
            None => violations.push(misfit(operations, operation, earliest, latest)),
        }
    }
    violations
}

fn misfit(operations: &[Operation], operation: &Operation, earliest: u64, latest: u64) -> Violation {
    let register = &operation.registers()[0];
    let upper = if latest == u64::MAX { "the end".to_owned() } else { format!("entry {latest}") };
    let what = format!("{register} holds nothing from entry {earliest} to {upper} that fits the last of these");
    let of_register = operations.iter().filter(|other| other.registers().contains(register));
    let before =
        of_register.filter(|other| other.called < operation.called && other.answer() != Some(&Answer::Nothing));
    let before: Vec<_> = before.collect();
    let mut shown: Vec<_> = before.iter().rev().take(MAX_SHOWN).rev().map(|other| other.narrowed(register)).collect();
    shown.push(operation.clone());
    Violation { what, operations: shown }
}
