//! Hosts, their fences and their units in virtual time: whatever goes wrong, no instance has two live units.
//!
//! The log is the real driver's, what is decided and done the real state's, leases', scheduler's and fences'. What is simulated
//! is what they meet: networks that delay, lose and repeat, clocks that differ, processes and hosts that pause, crash and
//! come back, copies of disks, and persons. `BLIXARD_SEEDS` is how many histories are lived through; `BLIXARD_SEED` is one to
//! look at again.

mod cluster;
mod facts;
#[path = "../support/histories.rs"]
mod histories;
mod host;
mod misfortune;
mod mutations;
#[path = "../support/random.rs"]
mod random;
mod rules;
mod seeds;
mod server;
mod world;
