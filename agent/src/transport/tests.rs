//! Real endpoints on the loopback, over real TLS.

mod joining;
mod limits;
mod members;
mod rig;
mod snapshots;
