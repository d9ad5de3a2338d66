//! What was measured, side by side.

use crate::probe::Conditions;
use crate::report::{Samples, Target, bounds, median, print_conditions, print_numbers, show};

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
            print_numbers(side.shown, all);
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
        samples.filter_map(|samples| samples.of(&self.what).cloned()).collect()
    }
}

/// Prints everything; whether each gate holds that was measured.
pub fn print(title: &str, rows: &[Row], rounds: &[Round]) -> bool {
    println!("\n{title}");
    let holds = rows.iter().filter(|row| !row.print(rounds)).count() == 0;
    print_conditions(rounds.iter().flat_map(|round| [&round.blixard.1, &round.etcd.1]));
    holds
}

/// Nothing beside nothing is as good as nothing beside something.
fn ratio(one: f64, other: f64) -> f64 {
    if one == 0.0 { 0.0 } else { one / other }
}
