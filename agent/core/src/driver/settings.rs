//! What a driver is made with.

use crate::types::RaftId;

/// Ticks that a follower waits for its leader by default, and up to [`SPREAD_TICKS`] more, before it stands for election.
pub const ELECTION_TICKS: u16 = 20;
/// Over how many ticks election timeouts are spread, or over half of a long one: it takes a vote's time to keep two servers
/// from standing at once, and that grows less than a timeout.
const SPREAD_TICKS: u16 = 20;
/// Ticks between two heartbeats of a leader by default.
pub const HEARTBEAT_TICKS: u16 = 5;

/// What a driver is made with; counts are ticks of 10 ms in the agent.
#[derive(Clone, Debug)]
pub struct Settings {
    pub id: RaftId,
    /// Draws the election timeouts, and tells this run's reads from those of an earlier one: a fresh number each boot.
    pub seed: u64,
    /// A follower that hears nothing for this long, and up to [`SPREAD_TICKS`] or half as long more, stands for election.
    pub election_ticks: u16,
    pub heartbeat_ticks: u16,
    /// Longest command that [`Driver::propose`] takes.
    pub max_command_bytes: usize,
    /// Most bytes of entries in one message; a single entry may be longer.
    pub max_message_bytes: u64,
    pub max_inflight_messages: usize,
    /// The leader refuses proposals while more than this waits for a quorum.
    pub max_uncommitted_bytes: u64,
    /// Most bytes of committed entries that one turn hands out.
    pub max_committed_bytes: u64,
    /// Newest entries that stay after a checkpoint, in bytes, and as many as a follower that answers may make it.
    pub keep_bytes: u64,
    pub keep_for_laggards_bytes: u64,
}

impl Settings {
    /// Heartbeats every 50 ms and elections after 200 to 400 ms at 10 ms a tick.
    pub fn new(id: RaftId, seed: u64) -> Self {
        Self {
            id,
            seed,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
            max_command_bytes: crate::command::MAX_BYTES,
            max_message_bytes: 512 << 10,
            max_inflight_messages: 256,
            max_uncommitted_bytes: 16 << 20,
            max_committed_bytes: 4 << 20,
            keep_bytes: 4 << 20,
            keep_for_laggards_bytes: 32 << 20,
        }
    }

    pub(super) fn raft_config(&self, applied: u64) -> raft::Config {
        raft::Config {
            id: self.id.0,
            election_tick: self.election_ticks.into(),
            heartbeat_tick: self.heartbeat_ticks.into(),
            applied,
            max_size_per_msg: self.max_message_bytes,
            max_inflight_msgs: self.max_inflight_messages,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: self.max_uncommitted_bytes,
            max_committed_size_per_ready: self.max_committed_bytes,
            ..raft::Config::default()
        }
    }

    /// How many ticks of its first election timeout a server has behind it when it starts.
    ///
    /// It has followed nobody: a leader that reaches it is heard within a heartbeat. Where none does, it may stand before
    /// its links are up; it asks for pre-votes first, which raise no term, and which those who hear a leader refuse.
    pub(super) fn head_start(&self) -> usize {
        usize::from(self.election_ticks - self.heartbeat_ticks)
    }

    /// The election timeout of one node in one term, in ticks; raft would draw it from a thread's generator.
    pub(super) fn election_timeout(&self, term: u64) -> usize {
        let mixed = mix(mix(self.seed ^ mix(self.id.0)) ^ term);
        let spread = u64::from((self.election_ticks / 2).max(SPREAD_TICKS).min(self.election_ticks));
        usize::from(self.election_ticks) + usize::try_from(mixed % spread).expect("less than a u16")
    }
}

/// The finalizer of `SplitMix64`: every bit of the input moves about half of the output's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::MessageType;

    use super::super::{Driver, Membership, Message, Recovered, Role};
    use super::*;

    /// One of three voters, just started.
    fn started(seed: u64) -> Driver {
        let membership = Membership { voters: [1, 2, 3].map(RaftId).into(), ..Membership::default() };
        let recovered = Recovered { membership, ..Recovered::blank(RaftId(1)) };
        Driver::new(Settings::new(RaftId(1), seed), recovered).unwrap()
    }

    /// After how many ticks it stands for election.
    fn waits(driver: &mut Driver) -> u16 {
        let ticks = (1..1000).find(|_| {
            driver.tick();
            driver.soft().role == Role::Candidate
        });
        ticks.expect("it hears nobody")
    }

    #[test]
    fn who_starts_gives_a_leader_one_heartbeat_and_then_stands_within_one_timeout() {
        let Settings { election_ticks, heartbeat_ticks, .. } = Settings::new(RaftId(1), 0);
        let waited: Vec<u16> = (0..1000).map(|seed| waits(&mut started(seed))).collect();
        assert_eq!(waited.iter().min(), Some(&heartbeat_ticks));
        assert_eq!(waited.iter().max(), Some(&(heartbeat_ticks + election_ticks - 1)));
        assert_eq!(waited[7], waits(&mut started(7)), "a seed is one history");
    }

    #[test]
    fn a_long_timeout_is_spread_over_half_of_it_and_a_short_one_over_all_of_it() {
        let spread = |election_ticks| {
            let settings = Settings { election_ticks, ..Settings::new(RaftId(1), 0) };
            let timeouts: Vec<usize> = (0..2000).map(|term| settings.election_timeout(term)).collect();
            (timeouts.iter().min().copied(), timeouts.iter().max().copied())
        };
        assert_eq!(spread(100), (Some(100), Some(149)));
        assert_eq!(spread(ELECTION_TICKS), (Some(20), Some(39)));
        assert_eq!(spread(5), (Some(5), Some(9)));
    }

    #[test]
    fn who_has_heard_a_leader_waits_one_timeout_at_least_and_two_at_most() {
        let waited: Vec<u16> = (0..1000)
            .map(|seed| {
                let mut driver = started(seed);
                let heartbeat = Message {
                    msg_type: MessageType::MsgHeartbeat.into(),
                    from: 2,
                    to: 1,
                    term: 1,
                    ..Message::default()
                };
                driver.step(heartbeat).unwrap();
                waits(&mut driver)
            })
            .collect();
        assert_eq!(waited.iter().min(), Some(&ELECTION_TICKS));
        assert_eq!(waited.iter().max(), Some(&(2 * ELECTION_TICKS - 1)));
    }
}
