//! What both checkers say of histories, in numbers and for people.

use std::fmt;
use std::path::Path;

use crate::record::{Answer, Ask, Operation};
use crate::replay::{self, Violation};
use crate::search;

/// How many of a history's violations are shown.
const MAX_VIOLATIONS: usize = 3;

#[derive(Default)]
pub struct Report {
    operations: usize,
    /// Changes that were carried out, and reads.
    pub answered: usize,
    refused: usize,
    not_done: usize,
    unknown: usize,
    unread: usize,
    again: usize,
    replay: replay::Verdict,
    search: search::Verdict,
}

impl Report {
    /// Checks a history.
    pub fn of(operations: &[Operation]) -> Self {
        let mut report = Self { operations: operations.len(), ..Self::default() };
        for operation in operations {
            let counter = match (operation.answer(), &operation.ask) {
                (Some(Answer::Done { .. } | Answer::Cells { .. }), _) => &mut report.answered,
                (Some(Answer::Refused { .. }), _) => &mut report.refused,
                (Some(Answer::Nothing), _) => &mut report.not_done,
                (None, Ask::Change { .. }) => &mut report.unknown,
                (None, Ask::Read { .. }) => &mut report.unread,
            };
            *counter += 1;
            report.again += operation.answers.len().saturating_sub(1);
        }
        report.replay = replay::check(operations);
        report.search = search::check(operations);
        report
    }

    pub fn violations(&self) -> usize {
        self.replay.violations.len() + self.search.violations.len()
    }

    /// Whether more than one in a hundred has no verdict, of registers or of windows.
    pub fn is_undecided(&self) -> bool {
        let is_many = |without: usize, all: usize| without * 100 > all;
        is_many(self.replay.given_up, self.replay.registers) || is_many(self.search.unknown, self.search.windows)
    }

    pub fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.answered += other.answered;
        self.refused += other.refused;
        self.not_done += other.not_done;
        self.unknown += other.unknown;
        self.unread += other.unread;
        self.again += other.again;
        self.replay.violations.extend(other.replay.violations);
        self.replay.registers += other.replay.registers;
        self.replay.given_up += other.replay.given_up;
        self.search.violations.extend(other.search.violations);
        self.search.windows += other.search.windows;
        self.search.unknown += other.search.unknown;
    }

    pub fn print_violations(&self, history: &Path) {
        for (checker, violations) in [("replay", &self.replay.violations), ("porcupine", &self.search.violations)] {
            for Violation { what, operations } in violations.iter().take(MAX_VIOLATIONS) {
                println!("{}: {checker}: {what}", history.display());
                for operation in operations {
                    println!("    {operation}");
                }
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, answered, refused, not_done, unknown, unread, again, replay, search } = self;
        write!(
            f,
            "{operations} operations: {answered} ok, {refused} refused, {not_done} not done, {unknown} of unknown \
             outcome, {unread} reads without an answer; {again} asked again\n\
             replay: {} registers, {} given up, {} violations; porcupine: {} windows, {} unknown, {} violations",
            replay.registers,
            replay.given_up,
            replay.violations.len(),
            search.windows,
            search.unknown,
            search.violations.len(),
        )
    }
}
