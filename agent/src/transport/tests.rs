//! Real endpoints on the loopback, over real TLS.

mod copies;
mod declared;
mod joining;
mod limits;
mod members;
mod renewals;
pub(crate) mod rig;
mod snapshots;
mod tokens;
