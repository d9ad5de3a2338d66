//! Whose certificate is accepted; that its holder has the key to it is proved in every handshake.

use std::sync::Arc;

use blixard_core::types::{ClusterEpoch, ClusterId, TrustAnchor};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use super::tls::{Expected, PeerError, key_of, name_in, peer_of, provider, refused, roots};

/// Which server a client talks to.
#[derive(Debug)]
pub enum ServerVerifier {
    /// One whose certificate an authority of the cluster has issued, is valid now, and has the name of the member that was
    /// called.
    Member { roots: Arc<RootCertStore>, cluster: ClusterId, epoch: ClusterEpoch, expected: Expected },
    /// Any member of this cluster, which shows this authority beside its certificate.
    ByAuthority(TrustAnchor),
    /// Anybody: what proves who it is follows, and is bound to the certificate.
    Anybody,
}

impl ServerVerifier {
    pub fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), PeerError> {
        // The name comes first: to a person, "another cluster" says more than "unknown issuer".
        match self {
            Self::Member { roots, cluster, epoch, expected } => {
                let found = peer_of(certificate, *cluster, *epoch)?;
                check_chain(certificate, intermediates, roots, now)?;
                match *expected {
                    Expected::Node(expected) if expected != found => Err(PeerError::OtherNode { found, expected }),
                    Expected::Node(_) | Expected::AnyMember => Ok(()),
                }
            }
            Self::ByAuthority(TrustAnchor { cluster, authority }) => {
                let (found, ..) = name_in(certificate)?;
                if found != *cluster {
                    return Err(PeerError::OtherCluster { found, own: *cluster });
                }
                let is_named = |shown: &&CertificateDer<'_>| key_of(shown).is_ok_and(|key| key == *authority);
                let shown = intermediates.iter().find(is_named).ok_or(PeerError::OtherAuthority)?;
                let roots = roots([shown]).map_err(|_| PeerError::Read)?;
                check_chain(certificate, intermediates, &roots, now)
            }
            Self::Anybody => Ok(()),
        }
    }
}

/// Whether one of `roots` has issued a certificate that holds `now`.
pub fn check_chain(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), PeerError> {
    let parsed = rustls::server::ParsedCertificate::try_from(certificate).map_err(PeerError::Chain)?;
    let algorithms = provider().signature_verification_algorithms.all;
    rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
        .map_err(PeerError::of_chain)
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The chain by rustls, then the cluster and its epoch in the name.
#[derive(Debug)]
pub struct ClientVerifier {
    pub inner: Arc<dyn ClientCertVerifier>,
    pub cluster: ClusterId,
    pub epoch: ClusterEpoch,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        peer_of(end_entity, self.cluster, self.epoch).map_err(refused)?;
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        verified.map_err(|error| refused(PeerError::of_chain(error)))
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
