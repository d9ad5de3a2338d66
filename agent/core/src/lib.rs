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
