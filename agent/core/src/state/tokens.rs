//! Join tokens: each lets one host in, once, until it expires. The state holds a hash of the secret in it.

use serde::{Deserialize, Serialize};

use super::{Refusal, State, refuse};
use crate::command::{NewNode, Reply};
use crate::types::{ClusterEpoch, Hash, NodeId, NodeRole, Timestamp, TokenId};

/// Most tokens that are remembered.
pub const MAX_TOKENS: usize = 100;
/// How long a token may be good for: a minute at least, and thirty days at most.
pub const MIN_TTL_MS: u64 = 60 * 1000;
pub const MAX_TTL_MS: u64 = 30 * 24 * 3600 * 1000;

/// A token, remembered until it expires.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Token {
    /// SHA-256.
    pub secret: Hash,
    pub created_at: Timestamp,
    pub expires: Timestamp,
    pub used: TokenUse,
    /// What a host that joins with it is, whatever its configuration says.
    pub role: Option<NodeRole>,
}

/// What has become of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TokenUse {
    Unused,
    /// This node has joined with it.
    By(NodeId),
    Revoked,
}

impl State {
    pub(super) fn create_token(
        &mut self,
        id: TokenId,
        secret: Hash,
        (ttl_ms, role): (u64, Option<NodeRole>),
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        if !(MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl_ms) {
            return refuse("a token is good for a minute at least, and for 30 days at most: choose another --ttl");
        }
        let is_kept = |token: &Token| at < token.expires;
        if self.tokens.get(&id).is_some_and(is_kept) {
            return refuse(format!("there is a token {id} already"));
        }
        let is_over = |(id, token): (&TokenId, &Token)| (!is_kept(token)).then_some(*id);
        let mut forgotten: Vec<TokenId> = self.tokens.iter().filter_map(is_over).collect();
        if self.tokens.len() - forgotten.len() >= MAX_TOKENS {
            let spent = self.tokens.iter().filter(|(_, token)| is_kept(token) && token.used != TokenUse::Unused);
            let Some((first, _)) = spent.min_by_key(|(_, token)| token.expires) else {
                return refuse(format!(
                    "there are {MAX_TOKENS} unused tokens, which is the most: revoke one with `blixard token revoke ID`"
                ));
            };
            forgotten.push(*first);
        }
        for id in forgotten {
            self.tokens.remove(&id);
            self.dirty.tokens.insert(id);
        }
        let expires = Timestamp(at.0.saturating_add(ttl_ms));
        self.tokens.insert(id, Token { secret, created_at: at, expires, used: TokenUse::Unused, role });
        self.dirty.tokens.insert(id);
        Ok(Reply::Token { expires })
    }

    pub(super) fn revoke_token(&mut self, id: TokenId, at: Timestamp) -> Result<Reply, Refusal> {
        let Some(token) = self.tokens.get(&id).filter(|token| at < token.expires) else {
            return refuse(format!("there is no token {id} (any more): see `blixard token ls`"));
        };
        if let TokenUse::By(node) = token.used {
            return refuse(format!(
                "the token {id} was used: {} has joined with it; to take that out, see `blixard node remove`",
                self.name_of(node)
            ));
        }
        self.use_token(id, TokenUse::Revoked);
        Ok(Reply::Done)
    }

    pub(super) fn redeem(
        &mut self,
        id: TokenId,
        (secret, expires): (Hash, Timestamp),
        (host, was_in): (&NewNode, Option<ClusterEpoch>),
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        let token = self.find_token(id, &secret, expires, at).map_err(Refusal)?;
        let role = token.role;
        let host = &NewNode { role: role.unwrap_or(host.role), ..host.clone() };
        let enter = |state: &mut Self| {
            state.check_undeclared(&host.name)?;
            let reply = match was_in {
                Some(was_in) => state.rejoin(host, was_in, |_| role)?,
                None => state.admit(host, at)?,
            };
            if let Reply::Admitted { node, .. } = reply {
                state.node_mut(node)?.bound = role;
            }
            Ok(reply)
        };
        match token.used {
            // Its answer was lost.
            TokenUse::By(node) if self.nodes.get(&node).is_some_and(|member| is_same(member, host)) => {
                return enter(self);
            }
            TokenUse::By(node) => {
                let by = self.name_of(node);
                return refuse(format!(
                    "the token {id} was used already, by {by}, and each is good for once: {ANOTHER}"
                ));
            }
            TokenUse::Revoked => return refuse(format!("the token {id} was revoked: {ANOTHER}")),
            TokenUse::Unused if token.expires <= at => return refuse(has_expired(id)),
            TokenUse::Unused => {}
        }
        let reply = enter(self)?;
        if let Reply::Admitted { node, .. } = reply {
            self.use_token(id, TokenUse::By(node));
        }
        Ok(reply)
    }

    /// The token with this secret, whatever has become of it.
    ///
    /// # Errors
    /// Why nobody joins with it.
    pub fn find_token(&self, id: TokenId, secret: &Hash, expires: Timestamp, at: Timestamp) -> Result<&Token, String> {
        match self.tokens.get(&id) {
            Some(token) if token.secret.equals_secretly(secret) => Ok(token),
            Some(_) => Err(format!("the secret in the token {id} is not the one that it was made with: {ANOTHER}")),
            // Only what the token says of itself is left to go by.
            None if expires <= at => Err(has_expired(id)),
            None => Err(format!("this cluster knows no token {id}: {ANOTHER}")),
        }
    }

    fn use_token(&mut self, id: TokenId, used: TokenUse) {
        self.tokens.get_mut(&id).expect("it was there just now").used = used;
        self.dirty.tokens.insert(id);
    }
}

/// What to do with a token that is no good.
const ANOTHER: &str = "make another with `blixard token create`, and put it into cluster.token_file";

fn has_expired(id: TokenId) -> String {
    format!("the token {id} has expired: {ANOTHER}")
}

fn is_same(member: &super::Node, host: &NewNode) -> bool {
    member.key == host.key && member.name == host.name
}

#[cfg(test)]
mod tests {
    use super::super::Beginner;
    use super::super::tests::{Fixture, TAG, joiner};
    use super::*;
    use crate::command::Command;
    use crate::types::RaftId;

    const ID: TokenId = TokenId(7);
    const HOUR: u64 = 3600 * 1000;

    fn create(fixture: &mut Fixture, id: TokenId, ttl_ms: u64) -> Reply {
        fixture.say(Command::CreateToken { token: id, secret: Hash::of(&id.0.to_be_bytes()), ttl_ms, role: None })
    }

    fn redeem(fixture: &mut Fixture, id: TokenId, node: NewNode) -> Reply {
        let secret = Hash::of(&id.0.to_be_bytes());
        let expires = fixture.state.tokens().get(&id).map_or(Timestamp(u64::MAX), |token| token.expires);
        fixture.say(Command::Redeem { token: id, secret, expires, host: node, was_in: None })
    }

    fn refused(reply: Reply, about: &str) {
        let Reply::Refused(why) = reply else { panic!("it was done: {reply:?}") };
        assert!(why.contains(about), "{why}");
    }

    #[test]
    fn a_token_lets_one_host_in_and_the_same_host_gets_the_same_answer_again() {
        let mut fixture = Fixture::of_nodes(1);
        create(&mut fixture, ID, HOUR);
        let admitted = Reply::Admitted { node: NodeId(2), raft: Some(RaftId(2)) };
        assert_eq!(redeem(&mut fixture, ID, joiner(2)), admitted);
        assert_eq!(redeem(&mut fixture, ID, joiner(2)), admitted, "its answer was lost");
        for other in
            [joiner(3), NewNode { key: joiner(3).key, ..joiner(2) }, NewNode { key: joiner(2).key, ..joiner(3) }]
        {
            refused(redeem(&mut fixture, ID, other), "was used already, by node2");
        }
        assert_eq!(fixture.state.nodes().len(), 2);
        refused(fixture.say(Command::RevokeToken { token: ID }), "node2 has joined with it");
    }

    #[test]
    fn a_used_token_brings_no_removed_node_back() {
        let mut fixture = Fixture::of_nodes(1);
        create(&mut fixture, ID, HOUR);
        redeem(&mut fixture, ID, joiner(2));
        fixture.decide(Command::SetWorkerAlive { node: NodeId(2), alive: false });
        fixture.say(Command::RemoveNode { node: NodeId(2), dead: true, abandon_volumes: false });
        assert!(!fixture.state.nodes().contains_key(&NodeId(2)));
        refused(redeem(&mut fixture, ID, joiner(2)), "was used already, by node 2");
    }

    #[test]
    fn a_host_that_is_refused_has_not_used_its_token_up() {
        let mut fixture = Fixture::of_nodes(2);
        create(&mut fixture, ID, HOUR);
        refused(redeem(&mut fixture, ID, NewNode { key: joiner(3).key, ..joiner(2) }), "node2 is taken");
        assert_eq!(redeem(&mut fixture, ID, joiner(3)), Reply::Admitted { node: NodeId(3), raft: Some(RaftId(3)) });
    }

    #[test]
    fn a_member_of_an_earlier_epoch_rejoins_with_a_token() {
        let mut fixture = Fixture::of_nodes(2);
        fixture.begin_epoch(Beginner::Survivor(NodeId(1))).unwrap();
        create(&mut fixture, ID, HOUR);
        let secret = Hash::of(&ID.0.to_be_bytes());
        let rejoin = |was_in| {
            let was_in = Some(was_in);
            Command::Redeem { token: ID, secret, expires: Timestamp(0), host: joiner(2), was_in }
        };
        refused(fixture.say(rejoin(ClusterEpoch::FIRST.next(TAG))), "this very epoch");
        let was_in = ClusterEpoch::FIRST;
        let Reply::Admitted { node: NodeId(2), raft } = fixture.say(rejoin(was_in)) else { panic!("it was refused") };
        assert!(raft > Some(RaftId(2)));
        assert_eq!(fixture.state.tokens()[&ID].used, TokenUse::By(NodeId(2)));
    }

    #[test]
    fn what_is_wrong_with_a_token_is_said() {
        let mut fixture = Fixture::of_nodes(1);
        // The fixture's clock makes a second an entry.
        create(&mut fixture, ID, MIN_TTL_MS);
        let (secret, expires) = (Hash::of(b"guessed"), Timestamp(u64::MAX));
        let guess = Command::Redeem { token: ID, secret, expires, host: joiner(2), was_in: None };
        refused(fixture.say(guess), "is not the one that it was made with");
        refused(redeem(&mut fixture, TokenId(8), joiner(2)), "knows no token 0000000000000008");
        create(&mut fixture, TokenId(9), HOUR);
        assert_eq!(fixture.say(Command::RevokeToken { token: TokenId(9) }), Reply::Done);
        refused(redeem(&mut fixture, TokenId(9), joiner(2)), "was revoked");
        fixture.index += MIN_TTL_MS / 1000;
        refused(redeem(&mut fixture, ID, joiner(2)), "has expired");
        let expires = fixture.state.tokens()[&ID].expires;
        create(&mut fixture, TokenId(10), HOUR);
        assert_eq!(fixture.state.tokens().len(), 2, "what has expired is forgotten");
        refused(
            fixture.say(Command::Redeem { token: ID, secret, expires, host: joiner(2), was_in: None }),
            "has expired",
        );
        refused(fixture.say(Command::RevokeToken { token: ID }), "no token");
        assert_eq!(fixture.state.nodes().len(), 1);
    }

    #[test]
    fn tokens_are_bounded_in_number_and_time() {
        let mut fixture = Fixture::of_nodes(1);
        for ttl_ms in [0, MIN_TTL_MS - 1, MAX_TTL_MS + 1, u64::MAX] {
            refused(create(&mut fixture, ID, ttl_ms), "a minute at least");
        }
        for id in 0..MAX_TOKENS as u64 {
            assert!(matches!(create(&mut fixture, TokenId(id), MAX_TTL_MS), Reply::Token { .. }));
        }
        refused(create(&mut fixture, ID, HOUR), "there is a token");
        refused(create(&mut fixture, TokenId(1000), HOUR), "100 unused tokens");
        fixture.say(Command::RevokeToken { token: TokenId(50) });
        assert!(matches!(create(&mut fixture, TokenId(1000), HOUR), Reply::Token { .. }));
        assert_eq!(fixture.state.tokens().len(), MAX_TOKENS);
        refused(redeem(&mut fixture, TokenId(50), joiner(2)), "knows no token");
    }

    #[test]
    fn a_host_is_what_its_token_says_whatever_it_is_configured_as() {
        let mut fixture = Fixture::of_nodes(1);
        let secret = Hash::of(&ID.0.to_be_bytes());
        fixture.say(Command::CreateToken { token: ID, secret, ttl_ms: HOUR, role: Some(NodeRole::Worker) });
        let declared = NewNode { role: NodeRole::Server, ..joiner(2) };
        let admitted = Reply::Admitted { node: NodeId(2), raft: None };
        assert_eq!(redeem(&mut fixture, ID, declared.clone()), admitted);
        assert_eq!(redeem(&mut fixture, ID, declared), admitted, "its answer was lost");
        fixture.register(2, NodeRole::Server);
        assert_eq!(fixture.state.nodes()[&NodeId(2)].role, NodeRole::Worker);
        create(&mut fixture, TokenId(8), HOUR);
        redeem(&mut fixture, TokenId(8), NewNode { role: NodeRole::Worker, ..joiner(3) });
        fixture.register(3, NodeRole::Server);
        assert_eq!(fixture.state.nodes()[&NodeId(3)].role, NodeRole::Server, "a token that says nothing binds nobody");
    }
}
