//! The deterministic half of Blixard: values in, values out. No clock, no randomness, no IO.

pub mod command;
pub mod driver;
pub mod fence;
pub mod lease;
pub mod manifest;
pub mod membership;
pub mod plan;
pub mod reconcile;
pub mod schedule;
pub mod state;
pub mod types;
pub mod unit;

/// What a person does where what a server has kept can't be used any more: an old copy in its place would have forgotten
/// what this host promised the others.
pub const ANEW: &str = "move the data directory away, start the agent, and give it the old one's place with `blixard node replace \
                        NAME` on another host: it joins as a new node";
