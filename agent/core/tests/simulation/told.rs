//! What comes of a server's turns.

use blixard_core::driver::{Committed, Fate, Message, Position, Soft};
use blixard_core::types::{NodeId, RaftId};

use super::disk::State;
use super::world::Time;

/// What a server's turns ask of the world, and what happened in them.
#[derive(Default)]
pub struct Told {
    pub messages: Vec<Message>,
    pub log_takes: Option<Time>,
    pub store_takes: Option<Time>,
    pub committed: Vec<Committed>,
    pub acknowledged: Vec<(Vec<u8>, Position)>,
    pub fates: Vec<(Vec<u8>, Fate)>,
    /// The index at which a read was answered, and the last index that was acknowledged before it was asked.
    pub reads: Vec<(u64, u64)>,
    pub soft: Option<Soft>,
    pub installed: Option<State>,
    /// The nodes that are servers by now, where something has changed about the members.
    pub enlisted: Vec<(NodeId, RaftId)>,
}
