//! Raft groups in virtual time, on disks, networks and clocks that do what a seed says.
//!
//! `BLIXARD_SEEDS` is how many histories are lived through; `BLIXARD_SEED` is one to look at again.

mod changes;
mod cluster;
mod disk;
mod facts;
#[path = "../support/histories.rs"]
mod histories;
#[path = "../support/image.rs"]
mod image;
mod members;
mod misfortune;
mod mutations;
#[path = "../support/random.rs"]
mod random;
mod scripts;
mod seeds;
mod server;
mod speakers;
mod told;
mod world;
