//! What was measured, side by side, and whether it is good enough.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::probe::Conditions;

/// What one system came to in one round: numbers by what they are of.
#[derive(Clone, Default, Debug)]
pub struct Samples(BTreeMap<String, Vec<f64>>);

impl Samples {
    pub fn add(&mut self, what: impl Into<String>, number: f64) {
        self.0.entry(what.into()).or_default().push(number);
    }
}

/// Both systems in the same round.
pub struct Round {
    pub blixard: (Samples, Conditions),
    pub etcd: (Samples, Conditions),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum System {
    Blixard,
    Etcd,
}

/// What must hold of a ratio, and what is aimed at.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtMost { gate: f64, goal: f64 },
    AtLeast { gate: f64, goal: f64 },
}

/// Two kinds of numbers that are compared.
pub struct Row {
    what: String,
    unit: &'static str,
    sides: [Side; 2],
    target: Option<Target>,
    worst: Option<f64>,
}

struct Side {
    shown: &'static str,
    system: System,
    what: String,
}

impl Row {
    /// The same of both systems.
    pub fn beside_etcd(what: impl Into<String>, unit: &'static str) -> Self {
        let what = what.into();
        let sides = [("blixard", System::Blixard), ("etcd", System::Etcd)];
        let sides = sides.map(|(shown, system)| Side { shown, system, what: what.clone() });
        Self { what, unit, sides, target: None, worst: None }
    }

    /// Two things of one system.
    pub fn within(what: &str, unit: &'static str, system: System, sides: [(&'static str, &str); 2]) -> Self {
        let sides = sides.map(|(shown, what)| Side { shown, system, what: what.to_owned() });
        let system = if system == System::Blixard { "blixard" } else { "etcd" };
        Self { what: format!("{what} ({system})"), unit, sides, target: None, worst: None }
    }

    pub fn at_most(self, gate: f64, goal: f64) -> Self {
        Self { target: Some(Target::AtMost { gate, goal }), ..self }
    }

    pub fn at_least(self, gate: f64, goal: f64) -> Self {
        Self { target: Some(Target::AtLeast { gate, goal }), ..self }
    }

    /// The first side's largest number is not to be larger, as a goal.
    pub fn worst(self, worst: f64) -> Self {
        Self { worst: Some(worst), ..self }
    }

    /// Prints it, if it was measured; whether its gate holds.
    fn print(&self, rounds: &[Round]) -> bool {
        let [first, second] = self.sides.each_ref().map(|side| side.rounds(rounds));
        if first.is_empty() || second.is_empty() {
            return true;
        }
        let ratios: Vec<_> = first.iter().zip(&second).map(|(a, b)| ratio(median(a), median(b))).collect();
        let ratio = median(&ratios);
        let [one, other] = [(&self.sides[0], first.concat()), (&self.sides[1], second.concat())];
        println!("{}, {}", self.what, self.unit);
        for (side, all) in [&one, &other] {
            let (low, high) = bounds(all);
            println!(
                "    {:<10} {:>10} [{} to {}] of {}",
                side.shown,
                show(median(all)),
                show(low),
                show(high),
                all.len()
            );
        }
        let (low, high) = bounds(&ratios);
        let verdict = self.target.map(|target| target.verdict(ratio));
        let verdict = verdict.as_ref().map_or("", |(_, text)| text);
        println!("    {:<10} {ratio:>10.2} [{low:.2} to {high:.2}]{verdict}", "ratio");
        if let Some(limit) = self.worst {
            let worst = bounds(&one.1).1;
            let verdict = if worst <= limit { "reaches the goal" } else { "misses the goal" };
            println!("    {:<10} {:>10}   goal ≤ {limit}: {verdict}", "worst", show(worst));
        }
        self.target.is_none_or(|target| target.verdict(ratio).0)
    }
}

impl Side {
    /// Its numbers, by rounds.
    fn rounds(&self, rounds: &[Round]) -> Vec<Vec<f64>> {
        let samples = rounds.iter().map(|round| match self.system {
            System::Blixard => &round.blixard.0,
            System::Etcd => &round.etcd.0,
        });
        samples.filter_map(|samples| samples.0.get(&self.what).cloned()).collect()
    }
}

impl Target {
    /// Whether the gate holds, and what is said of it.
    fn verdict(self, ratio: f64) -> (bool, String) {
        let (sign, gate, goal, holds, reaches) = match self {
            Self::AtMost { gate, goal } => ("≤", gate, goal, ratio <= gate, ratio <= goal),
            Self::AtLeast { gate, goal } => ("≥", gate, goal, ratio >= gate, ratio >= goal),
        };
        let verdict = match (holds, reaches) {
            (false, _) => "MISSES THE GATE",
            (true, false) => "holds",
            (true, true) => "reaches the goal",
        };
        (holds, format!("   gate {sign} {gate:.2}, goal {sign} {goal:.2}: {verdict}"))
    }
}

/// Prints everything; whether each gate holds that was measured.
pub fn print(title: &str, rows: &[Row], rounds: &[Round]) -> bool {
    println!("\n{title}");
    let holds = rows.iter().filter(|row| !row.print(rounds)).count() == 0;
    let conditions = || rounds.iter().flat_map(|round| [&round.blixard.1, &round.etcd.1]);
    let fdatasync: Vec<_> = conditions().map(|conditions| micros(conditions.fdatasync)).collect();
    let foreign = conditions().map(|conditions| conditions.foreign).fold(0.0, f64::max);
    println!(
        "fdatasync of 4 KiB {:.0} µs; at most {foreign:.2} processors busy with something else",
        median(&fdatasync)
    );
    holds
}

/// Nothing beside nothing is as good as nothing beside something.
fn ratio(one: f64, other: f64) -> f64 {
    if one == 0.0 { 0.0 } else { one / other }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    f64::midpoint(low, high)
}

fn bounds(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)))
}

/// With as many digits as mean something.
fn show(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
