//! Many histories, on all cores.

use super::facts::Facts;
use super::histories::live_through;
use super::misfortune::live;
use super::mutations::Mutation;

/// Histories lived through by default, all parts together.
const SEEDS: u64 = 100;

#[expect(clippy::disallowed_macros, reason = "a seed that failed is of no use where nobody sees it")]
fn part(part: u64) {
    let mut all = Facts::new(part);
    let lived = live_through(part, SEEDS, |seed| live(seed, Mutation::None), |world| all.add(&world.facts));
    let Some(seeds) = lived else { return };
    eprintln!("{seeds} histories: {all:?}");
    let Facts { starts, refused, stops, armed, fenced, .. } = all;
    let each = [(starts, 20), (refused, 10), (stops, 2), (armed, 10), (fenced, 1)];
    assert!(each.iter().all(|(count, least)| count / seeds >= *least), "too little happened: {all:?}");
    let some = [all.resets, all.hung, all.frozen, all.confirmed, all.emptied, all.stopped, all.recovered, all.restored];
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
