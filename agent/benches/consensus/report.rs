//! What was measured, side by side, and whether it is good enough.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::load::Sample;

/// One system, under so many clients, on one kind of disk, in one round.
#[derive(Clone, Debug)]
pub struct Phase {
    pub sample: Sample,
    /// Of all members, a write.
    pub cpu: Duration,
    /// The faster of the probes before and after.
    pub fdatasync: Duration,
    /// Processors that something else kept busy.
    pub foreign: f64,
}

/// Both systems in the same round.
#[derive(Clone, Debug)]
pub struct Pair {
    pub blixard: Phase,
    pub etcd: Phase,
}

/// By whether the disk is slowed, and the number of clients; one pair a round.
pub type Results = BTreeMap<(bool, usize), Vec<Pair>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Measure {
    PerSecond,
    P50,
    P99,
    Cpu,
}

impl Measure {
    const ALL: [Self; 4] = [Self::PerSecond, Self::P50, Self::P99, Self::Cpu];

    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "writes/s",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::Cpu => "CPU µs/write",
        }
    }

    fn of(self, phase: &Phase) -> f64 {
        match self {
            Self::PerSecond => phase.sample.per_second,
            Self::P50 => micros(phase.sample.p50),
            Self::P99 => micros(phase.sample.p99),
            Self::Cpu => micros(phase.cpu),
        }
    }

    /// Whether a ratio is at least as good as another.
    fn reaches(self, ratio: f64, target: f64) -> bool {
        if self == Self::PerSecond { ratio >= target } else { ratio <= target }
    }

    fn sign(self) -> &'static str {
        if self == Self::PerSecond { "≥" } else { "≤" }
    }
}

/// What must hold, and what is aimed at, as multiples of etcd.
struct Target {
    slowed: bool,
    clients: usize,
    measure: Measure,
    gate: f64,
    goal: f64,
}

const fn target(slowed: bool, clients: usize, measure: Measure, gate: f64, goal: f64) -> Target {
    Target { slowed, clients, measure, gate, goal }
}

const TARGETS: [Target; 9] = [
    target(false, 1, Measure::P50, 0.80, 0.50),
    target(false, 1, Measure::P99, 0.80, 0.45),
    target(false, 64, Measure::PerSecond, 1.7, 2.5),
    target(false, 64, Measure::P99, 0.5, 0.25),
    target(false, 64, Measure::Cpu, 0.5, 0.28),
    target(false, 256, Measure::PerSecond, 1.7, 2.5),
    target(true, 64, Measure::P50, 0.75, 0.60),
    target(true, 64, Measure::PerSecond, 1.4, 1.8),
    target(true, 256, Measure::PerSecond, 1.7, 2.2),
];

/// Prints everything; whether each gate holds that was measured.
pub fn print(results: &Results, delay: Duration) -> bool {
    for ((slowed, clients), pairs) in results {
        let disk = if *slowed { format!("every fsync {delay:?} slower") } else { "the disk as it is".to_owned() };
        println!("\n{clients} clients, {disk}");
        for measure in Measure::ALL {
            let of = |pick: fn(&Pair) -> &Phase| median(pairs.iter().map(|pair| measure.of(pick(pair))).collect());
            let (blixard, etcd) = (of(|pair| &pair.blixard), of(|pair| &pair.etcd));
            let (low, high) = ratios(pairs, measure);
            let ratio = ratio(pairs, measure);
            println!(
                "  {:<13} blixard {blixard:>8.0}   etcd {etcd:>8.0}   ratio {ratio:>5.2}  [{low:.2} to {high:.2}]",
                measure.name()
            );
        }
        let phases = || pairs.iter().flat_map(|pair| [&pair.blixard, &pair.etcd]);
        let fdatasync = median(phases().map(|phase| micros(phase.fdatasync)).collect());
        let foreign = phases().map(|phase| phase.foreign).fold(0.0, f64::max);
        println!("  fdatasync of 4 KiB {fdatasync:.0} µs; at most {foreign:.2} processors busy with something else");
    }
    println!();
    let mut holds = true;
    for target in TARGETS {
        let Some(pairs) = results.get(&(target.slowed, target.clients)) else { continue };
        let (measure, ratio) = (target.measure, ratio(pairs, target.measure));
        let verdict = match (measure.reaches(ratio, target.gate), measure.reaches(ratio, target.goal)) {
            (false, _) => "MISSES THE GATE",
            (true, false) => "holds",
            (true, true) => "reaches the goal",
        };
        holds &= measure.reaches(ratio, target.gate);
        println!(
            "{:<13} {:>3} clients{}  {ratio:>5.2}  gate {sign} {:.2}, goal {sign} {:.2}: {verdict}",
            measure.name(),
            target.clients,
            if target.slowed { ", slowed" } else { "        " },
            target.gate,
            target.goal,
            sign = measure.sign(),
        );
    }
    holds
}

/// The median over the rounds of what each round's pair comes to.
fn ratio(pairs: &[Pair], measure: Measure) -> f64 {
    median(pairs.iter().map(|pair| measure.of(&pair.blixard) / measure.of(&pair.etcd)).collect())
}

fn ratios(pairs: &[Pair], measure: Measure) -> (f64, f64) {
    let ratios = pairs.iter().map(|pair| measure.of(&pair.blixard) / measure.of(&pair.etcd));
    ratios.fold((f64::INFINITY, 0.0), |(low, high), ratio| (low.min(ratio), high.max(ratio)))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    f64::midpoint(low, high)
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
