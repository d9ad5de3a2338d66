//! Many histories, on all cores.

use std::panic::AssertUnwindSafe;

use super::facts::Facts;
use super::misfortune::live;
use super::mutations::Mutation;

/// Histories lived through by default, all parts together.
const SEEDS: u64 = 100;
const PARTS: u64 = 4;

#[expect(clippy::disallowed_methods, reason = "how long a test takes is for whoever runs it to say")]
fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("it is a number"))
}

#[expect(clippy::disallowed_macros, reason = "a seed that failed is of no use where nobody sees it")]
fn part(part: u64) {
    if let Some(seed) = number_in("BLIXARD_SEED") {
        if part == 0 {
            live(seed, Mutation::None);
        }
        return;
    }
    let seeds = number_in("BLIXARD_SEEDS").unwrap_or(SEEDS) / PARTS;
    let mut all = Facts::new(part);
    for seed in (0..seeds).map(|number| number * PARTS + part) {
        let lived = std::panic::catch_unwind(AssertUnwindSafe(|| live(seed, Mutation::None)));
        let world = lived.unwrap_or_else(|cause| {
            eprintln!("BLIXARD_SEED={seed} lives through it again");
            std::panic::resume_unwind(cause)
        });
        all.add(&world.facts);
    }
    eprintln!("{seeds} histories: {all:?}");
    let Facts { starts, refused, stops, armed, fenced, .. } = all;
    let each = [(starts, 20), (refused, 10), (stops, 2), (armed, 10), (fenced, 1)];
    assert!(each.iter().all(|(count, least)| count / seeds >= *least), "too little happened: {all:?}");
    let some = [all.resets, all.hung, all.frozen, all.confirmed];
    assert!(some.iter().all(|count| *count >= seeds / 5), "too little happened: {all:?}");
}

#[test]
fn every_history_of_the_first_part_is_as_it_has_to_be() {
    part(0);
}

#[test]
fn every_history_of_the_second_part_is_as_it_has_to_be() {
    part(1);
}

#[test]
fn every_history_of_the_third_part_is_as_it_has_to_be() {
    part(2);
}

#[test]
fn every_history_of_the_fourth_part_is_as_it_has_to_be() {
    part(3);
}

#[test]
fn one_seed_is_one_history_event_by_event() {
    let traces = [11, 11, 12].map(|seed| live(seed, Mutation::None).trace);
    assert!(traces[0].len() > 100);
    assert_eq!(traces[0], traces[1]);
    assert_ne!(traces[0], traces[2]);
}
