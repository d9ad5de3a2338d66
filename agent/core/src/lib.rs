//! The deterministic half of Blixard: values in, values out. No clock, no randomness, no IO.

pub mod command;
pub mod driver;
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
pub const ANEW: &str = "remove this node with `blixard node remove NAME --dead` on another host, move the data directory away, \
                        and start the agent: it joins as a new node";
