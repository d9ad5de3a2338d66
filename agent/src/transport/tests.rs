//! Real endpoints on the loopback, over real TLS.

mod joining;
mod limits;
mod members;
mod raft_traffic;
mod rig;
mod snapshots;
