//! Who a node is: its certificate from the cluster's CA, the CA itself, and the secret that admits strangers.

mod authority;
mod clock;
mod host_key;
mod secret;
mod secrets;
mod tls;
mod token;
mod verify;

use std::fmt;

use blixard_core::types::{ClusterEpoch, ClusterId, NodeId, Timestamp};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

pub use authority::{Authority, AuthorityError, anchor_of};
pub use clock::Clock;
pub use host_key::{HostKey, HostKeyError, verify_signature};
pub use secret::{ClusterSecret, MIN_SECRET, SecretError};
pub use secrets::Secrets;
pub use tls::{
    Expected, PeerError, ServerSide, TlsError, joining_client, key_of, member_client, member_server, peer_of, refusal,
    renewing_client, stranger_client, stranger_server,
};
pub use token::{JoinToken, TokenError, TokenSecret};

/// Why a node's identity could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot make a key for this node")]
    MakeKey(#[source] rcgen::Error),
    #[error("cannot read this node's key: its data directory is damaged")]
    ReadKey(#[source] rcgen::Error),
    #[error("the certificate that the cluster issued was not accepted: join again")]
    Issued(#[source] PeerError),
    #[error("the cluster issued a certificate for another key than this node's: join again")]
    ForeignKey,
}

/// A fresh id for a cluster that is about to be founded.
pub fn draw_cluster_id() -> ClusterId {
    ClusterId::from_bytes(random())
}

/// `N` bytes of the system's random source.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    secret::fill_random(&mut bytes);
    bytes
}

/// A node's key pair before anybody vouched for it; it never leaves the node.
pub struct NodeKey(KeyPair);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(…)")
    }
}

impl NodeKey {
    /// A fresh ECDSA P-256 key.
    ///
    /// # Errors
    /// `MakeKey`.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate().map(Self).map_err(IdentityError::MakeKey)
    }

    /// The bytes to keep.
    pub fn encode(&self) -> Vec<u8> {
        self.0.serialize_der()
    }

    /// What [`Self::encode`] was called on.
    ///
    /// # Errors
    /// `ReadKey`.
    pub fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        KeyPair::try_from(bytes).map(Self).map_err(IdentityError::ReadKey)
    }

    /// The public key as a signed request (PKCS#10, DER): proof that its sender holds the private one.
    ///
    /// # Errors
    /// `MakeKey`.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let request = CertificateParams::default().serialize_request(&self.0).map_err(IdentityError::MakeKey)?;
        Ok(request.der().to_vec())
    }

    /// The identity that this key and what the cluster issued for it make.
    ///
    /// # Errors
    /// `Issued` if the certificate isn't one of this epoch of `cluster` for `node` by the first of the authorities;
    /// `ForeignKey` if it is for another key.
    pub fn identify(
        &self,
        cluster: ClusterId,
        epoch: ClusterEpoch,
        node: NodeId,
        issued: Issued,
    ) -> Result<NodeIdentity, IdentityError> {
        let identity = NodeIdentity { cluster, epoch, node, issued, key: self.0.serialize_der() };
        identity.check(self, Clock::default())?;
        Ok(identity)
    }
}

/// What a cluster gives to a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The certificates, DER, of the authorities that members trust: first that of the one that issues.
    pub authorities: Vec<Vec<u8>>,
    /// The member's certificate, DER.
    pub certificate: Vec<u8>,
}

/// Who a member is, and what proves it; kept in the data directory, which only root reads.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    pub cluster: ClusterId,
    pub epoch: ClusterEpoch,
    pub node: NodeId,
    pub issued: Issued,
    /// This node's private key, PKCS#8 DER.
    key: Vec<u8>,
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").field("cluster", &self.cluster).field("node", &self.node).finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// The key that it is about.
    ///
    /// # Errors
    /// `ReadKey`.
    pub fn key(&self) -> Result<NodeKey, IdentityError> {
        NodeKey::decode(&self.key)
    }

    /// With the authority's that has issued it, by whose key a host that holds a token knows the cluster.
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        let issuer = self.issued.authorities.first();
        [&self.issued.certificate].into_iter().chain(issuer).map(|der| CertificateDer::from(der.clone())).collect()
    }

    /// Whether both are of one node, with one key, in one epoch of its cluster.
    pub fn is_same_node(&self, other: &Self) -> bool {
        let of = |identity: &Self| (identity.cluster, identity.epoch, identity.node);
        of(self) == of(other) && self.key == other.key
    }

    /// What it asks with for the certificate that follows its own.
    ///
    /// # Errors
    /// `ReadKey`, `MakeKey`.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        self.key()?.request()
    }

    /// Until when its certificate holds; nothing where nobody can tell.
    pub fn expires(&self) -> Option<Timestamp> {
        let (_, until) = tls::validity(&self.issued.certificate).ok()?;
        Some(Timestamp(u64::try_from(until.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Whether two thirds of the time are over for which its certificate holds, or nobody can tell.
    pub fn is_due(&self, clock: Clock) -> bool {
        let due =
            tls::validity(&self.issued.certificate).map(|(from, until)| from + (until.saturating_sub(from)) / 3 * 2);
        due.map_or(true, |due| due <= clock.unix())
    }

    /// This one with the certificate (DER) that one of the authorities which it trusts has issued to it.
    ///
    /// # Errors
    /// As [`NodeKey::identify`].
    pub fn renewed(&self, certificate: Vec<u8>, clock: Clock) -> Result<Self, IdentityError> {
        let mut authorities = self.issued.authorities.clone();
        // That it is by none of them is seen to below.
        authorities.sort_by_key(|authority| !tls::is_issued_by([authority], &certificate));
        self.reissued(Issued { authorities, certificate }, clock)
    }

    /// This one with what the cluster has issued to it.
    ///
    /// # Errors
    /// As [`NodeKey::identify`].
    pub fn reissued(&self, issued: Issued, clock: Clock) -> Result<Self, IdentityError> {
        let renewed = Self { issued, ..self.clone() };
        renewed.check(&self.key()?, clock)?;
        Ok(renewed)
    }

    /// Whether one of the authorities that it trusts has issued this certificate, expired or not.
    pub fn vouches_for(&self, certificate: &[u8]) -> bool {
        tls::is_issued_by(&self.issued.authorities, certificate)
    }

    fn check(&self, key: &NodeKey, clock: Clock) -> Result<(), IdentityError> {
        tls::check_own(self, clock).map_err(IdentityError::Issued)?;
        let certified = tls::public_key_of(&self.issued.certificate).map_err(IdentityError::Issued)?;
        if certified == key.0.subject_public_key_info() { Ok(()) } else { Err(IdentityError::ForeignKey) }
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_shows_no_key() {
        let cluster = draw_cluster_id();
        let authority = Authority::create(cluster).unwrap();
        let identity = authority.identify(NodeId(3)).unwrap();
        assert!(!format!("{identity:?}").contains("key"));
    }

    #[test]
    fn a_certificate_for_another_key_node_epoch_or_cluster_makes_no_identity() {
        let (cluster, epoch) = (draw_cluster_id(), ClusterEpoch::FIRST.next(7));
        let authority = Authority::create(cluster).unwrap();
        let (mine, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let issued = authority.issue_alone(&other.request().unwrap(), epoch, NodeId(1)).unwrap();
        let made = mine.identify(cluster, epoch, NodeId(1), issued.clone());
        assert!(matches!(made, Err(IdentityError::ForeignKey)), "{made:?}");
        let stranger = Authority::create(cluster).unwrap().certificate().to_vec();
        let of_stranger = |authorities| Issued { authorities, ..issued.clone() };
        let made = |cluster, epoch, node, issued| other.identify(cluster, epoch, node, issued);
        made(cluster, epoch, NodeId(1), issued.clone()).unwrap();
        for made in [
            made(cluster, epoch, NodeId(2), issued.clone()),
            made(cluster, epoch, NodeId(1), of_stranger(vec![stranger.clone()])),
            made(cluster, epoch, NodeId(1), of_stranger(vec![stranger, authority.certificate().to_vec()])),
            made(cluster, epoch, NodeId(1), of_stranger(vec![])),
            made(cluster, ClusterEpoch::FIRST, NodeId(1), issued.clone()),
            made(draw_cluster_id(), epoch, NodeId(1), issued.clone()),
        ] {
            assert!(matches!(made, Err(IdentityError::Issued(_))), "{made:?}");
        }
    }

    #[test]
    fn a_node_goes_over_to_another_authority_in_steps() {
        let [old, new] = {
            let cluster = draw_cluster_id();
            [Authority::create(cluster).unwrap(), Authority::create(cluster).unwrap()]
        };
        let of = |authority: &Authority| authority.certificate().to_vec();
        let by = |authority: &Authority, own: &NodeIdentity| {
            authority.issue(&own.request().unwrap(), ClusterEpoch::FIRST, own.node).unwrap()
        };
        let (first, clock) = (old.identify(NodeId(1)).unwrap(), Clock::default());
        let reissued = |own: &NodeIdentity, authorities, certificate| {
            own.reissued(Issued { authorities, certificate }, clock).map_err(|_| "refused")
        };
        let old_one = first.issued.certificate.clone();
        assert!(first.renewed(by(&new, &first), clock).is_err(), "it doesn't trust that one yet");
        let both = reissued(&first, vec![of(&old), of(&new)], old_one.clone()).unwrap();
        assert_eq!(reissued(&both, vec![of(&new), of(&old)], old_one.clone()), Err("refused"));
        let next_one = by(&new, &both);
        let next = reissued(&both, vec![of(&new), of(&old)], next_one.clone()).unwrap();
        assert_eq!(both.renewed(next_one.clone(), clock).unwrap(), next, "the issuer is the first");
        let last = reissued(&next, vec![of(&new)], next_one.clone()).unwrap();
        for (own, vouches) in [(&first, [true, false]), (&both, [true; 2]), (&next, [true; 2]), (&last, [false, true])]
        {
            assert_eq!([&old_one, &next_one].map(|certificate| own.vouches_for(certificate)), vouches);
        }
    }
}
