//! What was measured, and whether it is good enough.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::probe::Conditions;

/// What came of one round: numbers by what they are of.
#[derive(Clone, Default, Debug)]
pub struct Samples(BTreeMap<String, Vec<f64>>);

impl Samples {
    pub fn add(&mut self, what: impl Into<String>, number: f64) {
        self.0.entry(what.into()).or_default().push(number);
    }

    /// In the order in which they were added; nothing where it wasn't measured.
    pub fn of(&self, what: &str) -> Option<&Vec<f64>> {
        self.0.get(what)
    }
}

/// What must hold of a number, and what is aimed at.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtMost { gate: f64, goal: f64 },
    AtLeast { gate: f64, goal: f64 },
}

impl Target {
    /// Whether the gate holds, and what is said of it.
    pub fn verdict(self, number: f64) -> (bool, String) {
        let (sign, gate, goal, holds, reaches) = match self {
            Self::AtMost { gate, goal } => ("≤", gate, goal, number <= gate, number <= goal),
            Self::AtLeast { gate, goal } => ("≥", gate, goal, number >= gate, number >= goal),
        };
        let verdict = match (holds, reaches) {
            (false, _) => "MISSES THE GATE",
            (true, false) => "holds",
            (true, true) => "reaches the goal",
        };
        (holds, format!("   gate {sign} {gate:.2}, goal {sign} {goal:.2}: {verdict}"))
    }
}

/// Prints what these numbers come to.
pub fn print_numbers(shown: &str, numbers: &[f64]) {
    let (low, high) = bounds(numbers);
    println!("    {shown:<10} {:>10} [{} to {}] of {}", show(median(numbers)), show(low), show(high), numbers.len());
}

/// Prints under which conditions all of it was measured.
pub fn print_conditions<'a>(all: impl Iterator<Item = &'a Conditions> + Clone) {
    let fdatasync: Vec<_> = all.clone().map(|conditions| micros(conditions.fdatasync)).collect();
    let foreign = all.map(|conditions| conditions.foreign).fold(0.0, f64::max);
    println!(
        "fdatasync of 4 KiB {:.0} µs; at most {foreign:.2} processors busy with something else",
        median(&fdatasync)
    );
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    f64::midpoint(low, high)
}

pub fn bounds(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)))
}

/// With as many digits as mean something.
pub fn show(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
