//! Many histories, on all cores.

use std::collections::BTreeMap;

use super::disk::Failed;
use super::facts::Overtaken;
use super::histories::live_through;
use super::members::Deed;
use super::misfortune::live;
use super::mutations::Mutation;
use super::world::World;

/// Histories lived through by default, all parts together.
const SEEDS: u64 = 1_200;

/// How often what has to happen happened.
#[derive(Default, Debug)]
struct Counts {
    acknowledged: u64,
    elections: u64,
    crashes: u64,
    failed: BTreeMap<Failed, u64>,
    jumps: u64,
    snapshots: u64,
    changes: u64,
    deeds: BTreeMap<Deed, u64>,
    reads: u64,
    superseded: u64,
    overtaken: Overtaken,
}

#[expect(clippy::disallowed_macros, reason = "a seed that failed is of no use where nobody sees it")]
fn part(part: u64) {
    let mut counts = Counts::default();
    let count = |world: World| {
        counts.acknowledged += world.facts.acknowledged.len() as u64;
        counts.elections += world.facts.elections;
        counts.crashes += world.facts.crashes;
        for (failed, count) in world.facts.failed {
            *counts.failed.entry(failed).or_default() += count;
        }
        counts.jumps += world.facts.jumps;
        counts.snapshots += world.facts.snapshots;
        counts.changes += world.facts.changes;
        for (deed, count) in world.facts.deeds {
            *counts.deeds.entry(deed).or_default() += count;
        }
        counts.reads += world.facts.reads;
        counts.superseded += world.facts.superseded;
        let Overtaken { elections, asked, crashes } = world.facts.overtaken;
        counts.overtaken.elections += elections;
        counts.overtaken.asked += asked;
        counts.overtaken.crashes += crashes;
    };
    let lived = live_through(part, SEEDS, |seed| live(seed, Mutation::None), count);
    let Some(seeds) = lived else { return };
    eprintln!("{seeds} histories: {counts:?}");
    let Counts { acknowledged, elections, crashes, jumps, snapshots, changes, reads, overtaken, .. } = counts;
    let each = [(acknowledged, 100), (elections, 3), (crashes, 3), (jumps, 4), (reads, 10)];
    assert!(each.iter().all(|(count, least)| count / seeds >= *least), "too little happened: {counts:?}");
    assert!(snapshots > seeds / 4 && changes > seeds / 2, "too little happened: {counts:?}");
    let [log, checkpoint, install] = [Failed::Log, Failed::Checkpoint, Failed::Install]
        .map(|failed| counts.failed.get(&failed).copied().unwrap_or_default());
    let enough = log >= seeds / 4 && checkpoint >= seeds / 2 && install >= seeds / 50;
    assert!(enough, "too little failed: {counts:?}");
    for deed in Deed::ALL {
        let count = counts.deeds.get(&deed).copied().unwrap_or_default();
        assert!(count >= seeds / 20, "too little {deed:?}: {counts:?}");
    }
    assert!(counts.superseded >= seeds / 40, "too few were superseded: {counts:?}");
    let lost = counts.failed.get(&Failed::LostLog).copied().unwrap_or_default();
    assert!(lost >= seeds / 20, "too few lost their log: {counts:?}");
    let Overtaken { elections, asked, crashes } = overtaken;
    let enough = elections >= seeds / 10 && asked >= seeds / 100 && crashes >= seeds / 10;
    assert!(enough, "too little happened: {counts:?}");
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
fn one_seed_is_one_history_message_by_message() {
    let traces = [11, 11, 12].map(|seed| live(seed, Mutation::None).trace);
    assert!(traces[0].len() > 100);
    assert_eq!(traces[0], traces[1]);
    assert_ne!(traces[0], traces[2]);
}
