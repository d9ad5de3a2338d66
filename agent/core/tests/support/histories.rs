//! Histories by their seeds, in as many parts as there are tests that live through them at the same time.

use std::panic::AssertUnwindSafe;

/// Tests among which the seeds are divided.
const PARTS: u64 = 4;

#[expect(clippy::disallowed_methods, reason = "how long a test takes is for whoever runs it to say")]
fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("it is a number"))
}

/// Lives through one part of the histories, and counts each: `default` says how many there are in all parts together. How many
/// that were; nothing where only one seed was asked for, which then proves nothing of how much happens.
#[expect(clippy::disallowed_macros, reason = "a seed that failed is of no use where nobody sees it")]
pub fn live_through<W>(part: u64, default: u64, live: impl Fn(u64) -> W, mut count: impl FnMut(W)) -> Option<u64> {
    if let Some(seed) = number_in("BLIXARD_SEED") {
        if part == 0 {
            live(seed);
        }
        return None;
    }
    let seeds = number_in("BLIXARD_SEEDS").unwrap_or(default) / PARTS;
    for seed in (0..seeds).map(|number| number * PARTS + part) {
        let lived = std::panic::catch_unwind(AssertUnwindSafe(|| live(seed)));
        count(lived.unwrap_or_else(|cause| {
            eprintln!("BLIXARD_SEED={seed} lives through it again");
            std::panic::resume_unwind(cause)
        }));
    }
    Some(seeds)
}
