//! What is printed of each kind of number, whose targets are absolute.

use crate::probe::Conditions;
use crate::report::{Samples, Target, bounds, median, print_conditions, print_numbers, show};

/// What came of one cluster.
pub struct Round {
    pub samples: Samples,
    pub conditions: Conditions,
}

/// What of all numbers is to hold the gate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Judged {
    Median,
    Most,
    Least,
}

/// One kind of number.
pub struct Row {
    what: &'static str,
    unit: &'static str,
    targets: Vec<(Judged, Target)>,
}

impl Row {
    pub fn new(what: &'static str, unit: &'static str) -> Self {
        Self { what, unit, targets: Vec::new() }
    }

    /// The median over all rounds.
    pub fn median_at_most(self, gate: f64, goal: f64) -> Self {
        self.with(Judged::Median, Target::AtMost { gate, goal })
    }

    pub fn each_at_most(self, gate: f64, goal: f64) -> Self {
        self.with(Judged::Most, Target::AtMost { gate, goal })
    }

    pub fn each_at_least(self, gate: f64, goal: f64) -> Self {
        self.with(Judged::Least, Target::AtLeast { gate, goal })
    }

    fn with(mut self, judged: Judged, target: Target) -> Self {
        self.targets.push((judged, target));
        self
    }

    /// Prints it, if it was measured; whether its gates hold.
    fn print(&self, rounds: &[Round]) -> bool {
        let numbers: Vec<_> =
            rounds.iter().filter_map(|round| round.samples.of(self.what)).flatten().copied().collect();
        if numbers.is_empty() {
            return true;
        }
        println!("{}, {}", self.what, self.unit);
        print_numbers("all", &numbers);
        let mut all_hold = true;
        for (judged, target) in &self.targets {
            let (shown, number) = match judged {
                Judged::Median => ("median", median(&numbers)),
                Judged::Most => ("most", bounds(&numbers).1),
                Judged::Least => ("least", bounds(&numbers).0),
            };
            let (holds, verdict) = target.verdict(number);
            println!("    {shown:<10} {:>10}{verdict}", show(number));
            all_hold &= holds;
        }
        all_hold
    }
}

/// Prints everything; whether each gate holds that was measured.
pub fn print(title: &str, rows: &[Row], rounds: &[Round]) -> bool {
    println!("\n{title}");
    let holds = rows.iter().filter(|row| !row.print(rounds)).count() == 0;
    print_conditions(rounds.iter().map(|round| &round.conditions));
    holds
}
