//! What has happened to instances, to nodes and to the cluster: a history that is as long as its limit, and no longer.
//!
//! `apply` adds to it what it does, so an event is in the same transaction as the rows that it tells of.

use std::collections::BTreeMap;
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::State;
use super::packed::Packed;
use crate::types::{InstanceId, NodeId, Timestamp};

mod happening;

pub use happening::{Happening, LostBecause, OfCluster, OfInstance, OfNode, PlacedBecause, StopBecause};

/// Most events that are kept; the oldest makes room.
pub const MAX_EVENTS: usize = 10_000;

/// One thing that has happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// The log entry that did it; 0 where none did, since the cluster began anew.
    pub index: u64,
    pub at: Timestamp,
    pub what: Happening,
}

/// The newest events, by their numbers, which grow by one from event to event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Events {
    kept: BTreeMap<u64, Packed<Event>>,
    /// The newest event with which each instance left where it was placed; follows from `kept`.
    departures: BTreeMap<InstanceId, u64>,
}

impl Events {
    /// These events, in any order.
    pub(super) fn of(rows: Vec<(u64, Packed<Event>)>) -> Self {
        let mut events = Self { kept: rows.into_iter().collect(), departures: BTreeMap::new() };
        for (number, event) in &events.kept {
            follow(&mut events.departures, *number, &event.value().what);
        }
        events
    }

    /// The row of an event; nothing once it has made room.
    pub(super) fn row(&self, number: u64) -> Option<&Packed<Event>> {
        self.kept.get(&number)
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.kept.keys().copied()
    }

    /// Adds one; which rows that touches.
    fn add(&mut self, event: &Event) -> impl Iterator<Item = u64> + use<> {
        let number = self.kept.last_key_value().map_or(0, |(last, _)| *last).saturating_add(1);
        follow(&mut self.departures, number, &event.what);
        self.kept.insert(number, Packed::of(event));
        let oldest = (self.kept.len() > MAX_EVENTS).then(|| self.kept.pop_first().expect("there are many"));
        let dropped = oldest.map(|(oldest, event)| {
            if let Happening::Instance { instance, .. } = event.value().what
                && self.departures.get(&instance) == Some(&oldest)
            {
                self.departures.remove(&instance);
            }
            oldest
        });
        dropped.into_iter().chain([number])
    }
}

fn follow(departures: &mut BTreeMap<InstanceId, u64>, number: u64, what: &Happening) {
    if let Happening::Instance { instance, what: OfInstance::Stopped | OfInstance::Lost(_), .. } = what {
        departures.insert(instance.clone(), number);
    }
}

impl State {
    /// The events behind the one of this number, oldest first, with their numbers.
    pub fn events_after(&self, number: u64) -> impl Iterator<Item = (u64, Event)> {
        let behind = (Bound::Excluded(number), Bound::Unbounded);
        self.events.kept.range::<u64, _>(behind).map(|(number, event)| (*number, event.value()))
    }

    /// The number of the oldest event that is kept.
    pub fn oldest_event(&self) -> Option<u64> {
        self.events.kept.keys().next().copied()
    }

    /// Why an instance that is nowhere is placed: by what it left where it was.
    pub(super) fn placed_because(&self, id: &InstanceId) -> PlacedBecause {
        let departure = self.events.departures.get(id).and_then(|number| self.events.row(*number));
        match departure.map(|event| event.value().what) {
            Some(Happening::Instance { node, what: OfInstance::Lost(_), .. }) => PlacedBecause::Lost { from: node },
            Some(Happening::Instance { node, .. }) => PlacedBecause::Stopped { on: node },
            _ => PlacedBecause::Waited,
        }
    }

    /// Of an instance, on the node where it is or was.
    pub(super) fn happened_to(&mut self, id: &InstanceId, node: NodeId, what: OfInstance) {
        let Some(member) = self.nodes.get(&node) else { return };
        let (instance, node) = (id.clone(), member.name.clone());
        self.dirty.happened.push(Happening::Instance { instance, node, what });
    }

    /// Of a node that is a member.
    pub(super) fn happened_on(&mut self, node: NodeId, what: OfNode) {
        let Some(member) = self.nodes.get(&node) else { return };
        self.dirty.happened.push(Happening::Node { node: member.name.clone(), what });
    }

    pub(super) fn happened(&mut self, what: OfCluster) {
        self.dirty.happened.push(Happening::Cluster(what));
    }

    /// Enters what has happened since the last time.
    pub(super) fn enter_events(&mut self, index: u64, at: Timestamp) {
        for what in std::mem::take(&mut self.dirty.happened) {
            let touched = self.events.add(&Event { index, at, what });
            self.dirty.events.extend(touched);
        }
    }
}

#[cfg(test)]
pub mod tests;
