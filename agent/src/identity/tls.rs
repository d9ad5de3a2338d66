//! TLS between nodes: version 1.3 only, members checked by the URI in their certificate instead of a DNS name.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::types::{ClusterEpoch, ClusterId, Hash, NodeId, TrustAnchor};
use rcgen::KeyPair;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::certificate::BasicExtension;
use x509_parser::extensions::{GeneralName, KeyUsage};

use super::verify::{ClientVerifier, ServerVerifier, check_chain};
use super::{Clock, NodeIdentity, authority};

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot make a temporary certificate")]
    Temporary(#[source] rcgen::Error),
    #[error("cannot use the cluster CA's certificate: the data directory is damaged")]
    Root(#[source] rustls::Error),
    #[error("cannot check clients against the cluster CA's certificate")]
    ClientVerifier(#[source] rustls::server::VerifierBuilderError),
    #[error("cannot use this node's certificate and key: the data directory is damaged")]
    Own(#[source] rustls::Error),
}

/// Why a certificate isn't that of the peer it was taken for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PeerError {
    #[error("the certificate cannot be read")]
    Read,
    #[error("the certificate names no node: a URI blixard://CLUSTER/epoch/EPOCH/node/NUMBER is missing in it")]
    NoNode,
    #[error("the certificate is of cluster {found}, and this is cluster {own}: check cluster.servers")]
    OtherCluster { found: ClusterId, own: ClusterId },
    #[error(
        "the certificate is of epoch {found} of this cluster, and this host is in epoch {own}: the cluster was recovered \
         or restored in between; on the host that is in the earlier one, stop the agent and run `blixard cluster rejoin`"
    )]
    OtherEpoch { found: ClusterEpoch, own: ClusterEpoch },
    #[error(
        "the certificate is node {found}'s, and node {expected} was called: check the addresses in cluster.servers"
    )]
    OtherNode { found: NodeId, expected: NodeId },
    #[error(
        "the certificate was not issued by this cluster's authority, or does not hold yet: check this host's clock"
    )]
    Chain(#[source] rustls::Error),
    #[error(
        "the certificate has expired: if this host's clock is right, the agent that shows it has to reach one that has \
         the cluster secret, and then renews it by itself; its journal says what keeps it from that"
    )]
    Expired,
    #[error(
        "it shows no certificate of the authority by which this host knows the cluster, which may have another one by now: \
         make a new token with `blixard token create`, or set cluster.authority to what `blixard cluster authority` prints"
    )]
    OtherAuthority,
}

/// Which member is to answer a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Node(NodeId),
    AnyMember,
}

/// A server's side of TLS, and the SHA-256 of the certificate that it shows, to which the join proofs are bound.
#[derive(Debug, Clone)]
pub struct ServerSide {
    pub config: Arc<ServerConfig>,
    pub leaf: Hash,
}

impl ServerSide {
    /// This one, by another clock than the system's.
    #[must_use]
    pub fn at(self, clock: Clock) -> Self {
        let mut config = (*self.config).clone();
        config.time_provider = Arc::new(clock);
        Self { config: Arc::new(config), ..self }
    }
}

impl PeerError {
    /// Why rustls didn't take a certificate.
    pub(super) fn of_chain(error: rustls::Error) -> Self {
        use rustls::CertificateError::{Expired, ExpiredContext};
        match error {
            rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => Self::Expired,
            error => Self::Chain(error),
        }
    }
}

/// A member's client side: shows its own certificate, and accepts only the expected member of its cluster.
///
/// # Errors
/// `Root` or `Own` if the identity is damaged.
pub fn member_client(identity: &NodeIdentity, expected: Expected) -> Result<ClientConfig, TlsError> {
    let mut config = client_builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(member_verifier(identity, expected)?))
        .with_client_auth_cert(identity.chain(), identity.private_key())
        .map_err(TlsError::Own)?;
    finish_client(&mut config);
    Ok(config)
}

/// A member's server side: a client needs no certificate, but one that it shows must be of a member of the cluster.
///
/// # Errors
/// `Root`, `ClientVerifier` or `Own` if the identity is damaged.
pub fn member_server(identity: &NodeIdentity) -> Result<ServerSide, TlsError> {
    let inner = WebPkiClientVerifier::builder_with_provider(roots(&identity.issued.authorities)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::ClientVerifier)?;
    let verifier = Arc::new(ClientVerifier { inner, cluster: identity.cluster, epoch: identity.epoch });
    let config = server_builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.private_key())
        .map_err(TlsError::Own)?;
    Ok(finish_server(config, &identity.issued.certificate))
}

/// A client that takes any server's certificate, because a proof bound to that certificate follows.
pub fn stranger_client() -> ClientConfig {
    anonymous_client(ServerVerifier::Anybody)
}

/// The client of a host that knows no more of its cluster than this: accepts any member of it.
pub fn joining_client(anchor: TrustAnchor) -> ClientConfig {
    anonymous_client(ServerVerifier::ByAuthority(anchor))
}

/// The client of a node whose own certificate may have expired: accepts any other member of its cluster.
///
/// # Errors
/// `Root` if the identity is damaged.
pub fn renewing_client(identity: &NodeIdentity) -> Result<ClientConfig, TlsError> {
    member_verifier(identity, Expected::AnyMember).map(anonymous_client)
}

fn anonymous_client(verifier: ServerVerifier) -> ClientConfig {
    let verifier = Arc::new(verifier);
    let mut config = client_builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    finish_client(&mut config);
    config
}

/// A server with a temporary self-signed certificate: what a node without a cluster shows.
///
/// # Errors
/// `Temporary`.
pub fn stranger_server() -> Result<ServerSide, TlsError> {
    let key = KeyPair::generate().map_err(TlsError::Temporary)?;
    let certificate = authority::params("Blixard node", Clock::default(), authority::VALIDITY)
        .self_signed(&key)
        .map_err(TlsError::Temporary)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = server_builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .map_err(TlsError::Own)?;
    Ok(finish_server(config, certificate.der()))
}

/// The node that a certificate of this epoch of `cluster` names; the certificate's chain is the caller's to check.
///
/// # Errors
/// `Read`, `NoNode`, `OtherCluster` or `OtherEpoch`.
pub fn peer_of(certificate: &[u8], cluster: ClusterId, epoch: ClusterEpoch) -> Result<NodeId, PeerError> {
    let (found, of_epoch, node) = name_in(certificate)?;
    match (found == cluster, of_epoch == epoch) {
        (true, true) => Ok(node),
        (true, false) => Err(PeerError::OtherEpoch { found: of_epoch, own: epoch }),
        (false, _) => Err(PeerError::OtherCluster { found, own: cluster }),
    }
}

/// The name of a node in a certificate.
pub(super) fn name_in(certificate: &[u8]) -> Result<(ClusterId, ClusterEpoch, NodeId), PeerError> {
    let (rest, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| PeerError::Read)?;
    let names = parsed.subject_alternative_name().map_err(|_| PeerError::Read)?.ok_or(PeerError::NoNode)?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else { return Err(PeerError::NoNode) };
    if !rest.is_empty() {
        return Err(PeerError::Read);
    }
    parse_node_uri(uri).ok_or(PeerError::NoNode)
}

/// The name of a node in its certificate.
pub(super) fn node_uri(cluster: ClusterId, epoch: ClusterEpoch, node: NodeId) -> String {
    format!("blixard://{cluster}/epoch/{epoch}/node/{node}")
}

fn parse_node_uri(uri: &str) -> Option<(ClusterId, ClusterEpoch, NodeId)> {
    let (cluster, rest) = uri.strip_prefix("blixard://")?.split_once("/epoch/")?;
    let (epoch, node) = rest.split_once("/node/")?;
    let (cluster, epoch, node) = (cluster.parse().ok()?, epoch.parse().ok()?, NodeId(node.parse().ok()?));
    (node_uri(cluster, epoch, node) == uri).then_some((cluster, epoch, node))
}

/// The public key in a certificate (SPKI, DER).
pub(super) fn public_key_of(certificate: &[u8]) -> Result<Vec<u8>, PeerError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| PeerError::Read)?;
    Ok(parsed.public_key().raw.to_vec())
}

/// SHA-256 of the public key (SPKI, DER) in a certificate.
///
/// # Errors
/// `Read`.
pub fn key_of(certificate: &[u8]) -> Result<Hash, PeerError> {
    public_key_of(certificate).map(|key| Hash::of(&key))
}

/// From when until when a certificate holds, since 1970.
pub(super) fn validity(certificate: &[u8]) -> Result<(Duration, Duration), PeerError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| PeerError::Read)?;
    let since = |time: x509_parser::time::ASN1Time| Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0));
    Ok((since(parsed.validity().not_before), since(parsed.validity().not_after)))
}

/// Whether a certificate is an authority's.
pub(super) fn may_issue(certificate: &[u8]) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let is_for_that = |usage: Option<BasicExtension<&KeyUsage>>| usage.is_none_or(|usage| usage.value.key_cert_sign());
    parsed.is_ca() && parsed.key_usage().is_ok_and(is_for_that)
}

/// Whether an identity's certificate is what it says, by the first of the authorities that came with it.
pub(super) fn check_own(identity: &NodeIdentity, clock: Clock) -> Result<(), PeerError> {
    let NodeIdentity { cluster, epoch, node, ref issued, .. } = *identity;
    let roots = roots(issued.authorities.iter().take(1)).map_err(|_| PeerError::Read)?;
    let verifier = ServerVerifier::Member { roots, cluster, epoch, expected: Expected::Node(node) };
    let certificate = CertificateDer::from(issued.certificate.as_slice());
    verifier.check(&certificate, &[], UnixTime::since_unix_epoch(clock.unix()))
}

/// Whether one of these authorities has issued this certificate, whatever time it is.
pub(super) fn is_issued_by(authorities: impl IntoIterator<Item = impl AsRef<[u8]>>, certificate: &[u8]) -> bool {
    let (Ok(roots), Ok((from, _))) = (roots(authorities), validity(certificate)) else { return false };
    let certificate = CertificateDer::from(certificate);
    check_chain(&certificate, &[], &roots, UnixTime::since_unix_epoch(from)).is_ok()
}

fn member_verifier(identity: &NodeIdentity, expected: Expected) -> Result<ServerVerifier, TlsError> {
    let NodeIdentity { cluster, epoch, .. } = *identity;
    Ok(ServerVerifier::Member { roots: roots(&identity.issued.authorities)?, cluster, epoch, expected })
}

/// Why this side refused the other's certificate, if that is what made a handshake fail.
pub fn refusal(error: &std::io::Error) -> Option<PeerError> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
            other.0.downcast_ref::<PeerError>().cloned()
        }
        _ => None,
    }
}

pub(super) fn refused(error: PeerError) -> rustls::Error {
    rustls::Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(error))))
}

pub(super) fn roots(authorities: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(CertificateDer::from(authority.as_ref().to_vec())).map_err(TlsError::Root)?;
    }
    Ok(Arc::new(roots))
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

fn client_builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider has TLS 1.3")
}

fn server_builder() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider has TLS 1.3")
}

/// HTTP/2 only; no name is sent; no session is resumed, so each connection checks its peer anew.
fn finish_client(config: &mut ClientConfig) {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
}

fn finish_server(mut config: ServerConfig, certificate: &[u8]) -> ServerSide {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    ServerSide { config: Arc::new(config), leaf: Hash::of(certificate) }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;

    use super::super::{Authority, NodeKey, draw_cluster_id};
    use super::*;

    fn shake(client: ClientConfig, server: ServerSide) -> Result<(), rustls::Error> {
        let name = ServerName::try_from("blixard").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
        let mut server = rustls::ServerConnection::new(server.config)?;
        while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
        Ok(())
    }

    #[test]
    fn members_accept_each_other_and_nobody_else() {
        let authority = Authority::create(draw_cluster_id()).unwrap();
        let (one, two) = (authority.identify(NodeId(1)).unwrap(), authority.identify(NodeId(2)).unwrap());
        let foreign = Authority::create(draw_cluster_id()).unwrap().identify(NodeId(2)).unwrap();
        // Same cluster id, but another CA: somebody who forges the name.
        let forged = Authority::create(authority.cluster()).unwrap().identify(NodeId(2)).unwrap();
        let server = || member_server(&two).unwrap();
        shake(member_client(&one, Expected::Node(NodeId(2))).unwrap(), server()).unwrap();
        shake(member_client(&one, Expected::AnyMember).unwrap(), server()).unwrap();
        shake(stranger_client(), server()).unwrap();
        shake(stranger_client(), stranger_server().unwrap()).unwrap();

        let error = shake(member_client(&one, Expected::Node(NodeId(3))).unwrap(), server()).unwrap_err();
        let error = refusal(&std::io::Error::other(error)).unwrap();
        assert_eq!(error, PeerError::OtherNode { found: NodeId(2), expected: NodeId(3) });
        for server in [&foreign, &forged] {
            let server = member_server(server).unwrap();
            shake(member_client(&one, Expected::Node(NodeId(2))).unwrap(), server).unwrap_err();
        }
        for client in [&foreign, &forged] {
            // The client is ready to accept anybody: it is the server that must refuse.
            let mut config = stranger_client();
            config.client_auth_cert_resolver =
                member_client(client, Expected::AnyMember).unwrap().client_auth_cert_resolver;
            shake(config, server()).unwrap_err();
        }
        shake(member_client(&one, Expected::AnyMember).unwrap(), stranger_server().unwrap()).unwrap_err();
    }

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_ninety_days_and_refused_on_both_sides_after_them() {
        let day = |days: u64| Clock { ahead: Duration::from_secs(days * 24 * 3600) };
        let authority = Authority::create(draw_cluster_id()).unwrap();
        let (one, two) = (authority.identify(NodeId(1)).unwrap(), authority.identify(NodeId(2)).unwrap());
        let request = one.request().unwrap();
        assert!(!one.is_due(day(0)) && !one.is_due(day(58)) && one.is_due(day(61)));
        let meet = |client: &NodeIdentity, server: &NodeIdentity, clock: Clock| {
            let mut config = member_client(client, Expected::AnyMember).unwrap();
            config.time_provider = Arc::new(clock);
            let met = shake(config, member_server(server).unwrap().at(clock));
            met.map_err(|error| refusal(&std::io::Error::other(error)).unwrap())
        };
        assert_eq!(meet(&one, &two, day(89)), Ok(()));
        let certificate = authority.at(day(80)).issue(&request, ClusterEpoch::FIRST, NodeId(1)).unwrap();
        let renewed = one.renewed(certificate, day(80)).unwrap();
        assert!(one.is_same_node(&renewed) && !renewed.is_due(day(91)) && !one.is_same_node(&two));
        // Only the other one's has expired, whoever calls.
        assert_eq!(meet(&renewed, &two, day(91)), Err(PeerError::Expired));
        assert_eq!(meet(&two, &renewed, day(91)), Err(PeerError::Expired));
        assert!(PeerError::Expired.to_string().contains("cluster secret"));
        let foreign = two.renewed(renewed.issued.certificate.clone(), day(80));
        assert!(foreign.is_err(), "it is another node's");
    }

    #[test]
    fn who_joins_accepts_only_what_the_authority_has_issued_by_which_it_knows_the_cluster() {
        let authority = Authority::create(draw_cluster_id()).unwrap();
        let cluster = authority.cluster();
        let anchor = TrustAnchor { cluster, authority: key_of(authority.certificate()).unwrap() };
        let refused = |server: ServerSide| {
            let error = shake(joining_client(anchor), server).unwrap_err();
            refusal(&std::io::Error::other(error)).unwrap()
        };
        let member = authority.identify(NodeId(1)).unwrap();
        shake(joining_client(anchor), member_server(&member).unwrap()).unwrap();
        // Somebody who forges the name, and then shows the true authority beside it.
        let mut forged = Authority::create(cluster).unwrap().identify(NodeId(1)).unwrap();
        assert_eq!(refused(member_server(&forged).unwrap()), PeerError::OtherAuthority);
        forged.issued.authorities = vec![authority.certificate().to_vec()];
        assert!(matches!(refused(member_server(&forged).unwrap()), PeerError::Chain(_)));
        let foreign = Authority::create(draw_cluster_id()).unwrap().identify(NodeId(1)).unwrap();
        assert!(matches!(refused(member_server(&foreign).unwrap()), PeerError::OtherCluster { .. }));
        assert_eq!(refused(stranger_server().unwrap()), PeerError::NoNode);
    }

    #[test]
    fn a_certificate_of_another_cluster_or_epoch_names_no_peer() {
        let authority = Authority::create(draw_cluster_id()).unwrap();
        let identity = authority.identify(NodeId(7)).unwrap();
        let (found, first, second) = (authority.cluster(), ClusterEpoch::FIRST, ClusterEpoch::FIRST.next(7));
        assert_eq!(peer_of(&identity.issued.certificate, found, first), Ok(NodeId(7)));
        let own = draw_cluster_id();
        assert_eq!(peer_of(&identity.issued.certificate, own, first), Err(PeerError::OtherCluster { found, own }));
        let other = PeerError::OtherEpoch { found: first, own: second };
        assert_eq!(peer_of(&identity.issued.certificate, found, second), Err(other));
        assert_eq!(peer_of(authority.certificate(), found, first), Err(PeerError::NoNode));
        assert_eq!(peer_of(b"garbage", found, first), Err(PeerError::Read));
    }

    #[test]
    fn members_of_different_epochs_refuse_each_other() {
        let authority = Authority::create(draw_cluster_id()).unwrap();
        let of = |epoch, node| {
            let (key, node) = (NodeKey::generate().unwrap(), NodeId(node));
            let issued = authority.issue_alone(&key.request().unwrap(), epoch, node).unwrap();
            key.identify(authority.cluster(), epoch, node, issued).unwrap()
        };
        let first = ClusterEpoch::FIRST;
        let (second, another) = (first.next(7), first.next(8));
        let server = member_server(&of(second, 2)).unwrap();
        shake(member_client(&of(second, 1), Expected::AnyMember).unwrap(), server).unwrap();
        for (own, found) in [(first, second), (second, first), (second, another)] {
            let (own, found) = (of(own, 1), of(found, 2));
            let client = member_client(&own, Expected::AnyMember).unwrap();
            let error = shake(client, member_server(&found).unwrap()).unwrap_err();
            let expected = PeerError::OtherEpoch { found: found.epoch, own: own.epoch };
            assert_eq!(refusal(&std::io::Error::other(error)), Some(expected));
            // The client is ready to accept anybody: it is the server that must refuse.
            let mut config = stranger_client();
            config.client_auth_cert_resolver =
                member_client(&own, Expected::AnyMember).unwrap().client_auth_cert_resolver;
            shake(config, member_server(&found).unwrap()).unwrap_err();
        }
    }

    #[test]
    fn only_the_exact_form_of_a_name_is_read() {
        let (cluster, epoch) = (draw_cluster_id(), ClusterEpoch { number: 34, tag: 7 });
        let good = node_uri(cluster, epoch, NodeId(12));
        assert_eq!(parse_node_uri(&good), Some((cluster, epoch, NodeId(12))));
        for bad in [
            format!("{good}/"),
            good.replace("12", "012"),
            good.replace("12", "+12"),
            good.replace("12", ""),
            good.replace("34", "034"),
            good.replace("/epoch/34", ""),
            good.replace("blixard", "https"),
            good.replace("/node/", "/user/"),
        ] {
            assert_eq!(parse_node_uri(&bad), None, "{bad}");
        }
    }
}
