//! The cluster's certificate authority: made once, when the cluster is founded; its key travels only sealed.

use std::fmt;
use std::time::Duration;

use blixard_core::state::Cluster;
use blixard_core::types::{ClusterEpoch, ClusterId, Hash, NodeId, TrustAnchor};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::{Clock, ClusterSecret, IdentityError, Issued, NodeIdentity, NodeKey, SecretError, Secrets, tls};

/// How long a node's certificate holds; it is renewed when two thirds of that are over.
pub(super) const VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long the authority's own says that it holds: members know it by its key, and replace it when a person says so.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far a certificate's start lies in the past, so that a host whose clock is behind accepts it.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);
/// What the secret's sealing key is derived for.
const PURPOSE: &str = "the key of the cluster's certificate authority";

/// Why the cluster's CA could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot make a certificate authority for cluster {cluster}")]
    Create { cluster: ClusterId, source: rcgen::Error },
    #[error("cannot issue a certificate for node {node}: its request is not one, or not signed by its own key")]
    ReadRequest { node: NodeId, source: rcgen::Error },
    #[error("cannot read a host's request for a certificate: it is not one, or not signed by its own key")]
    ReadKeyRequest(#[source] rcgen::Error),
    #[error("cannot issue a certificate for node {node}")]
    Issue { node: NodeId, source: rcgen::Error },
    #[error("cannot unseal the cluster's certificate authority")]
    Unseal(#[source] SecretError),
    #[error("cannot decode the cluster's certificate authority: it was written by a newer agent")]
    Decode(#[source] postcard::Error),
    #[error("cannot read the key of the cluster's certificate authority")]
    ReadKey(#[source] rcgen::Error),
    #[error("cannot make the first node's identity")]
    Identify(#[source] IdentityError),
    #[error("cannot read the authority's certificate: it has to be X.509, as PEM")]
    ReadGivenCertificate,
    #[error("cannot read the authority's key: it has to be a private key that isn't encrypted, as PEM")]
    ReadGivenKey,
    #[error(
        "the certificate is no authority's: it has to say CA:TRUE, and, where it says so, for signing certificates"
    )]
    NoAuthority,
    #[error("the authority's certificate holds for less than 90 days from now: make one that holds longer")]
    Short,
    #[error("what this authority issues is not accepted: do its certificate and its key belong together?")]
    Useless(#[source] IdentityError),
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    cluster: ClusterId,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// A cluster's CA with its private key.
pub struct Authority {
    cluster: ClusterId,
    certificate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    clock: Clock,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new CA, which the founder of a cluster makes once.
    ///
    /// # Errors
    /// `Create`.
    pub fn create(cluster: ClusterId) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::Create { cluster, source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params(&format!("Blixard cluster {cluster}"), Clock::default(), AUTHORITY_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?.der().to_vec();
        Ok(Self { cluster, certificate, issuer: Issuer::new(params, key), clock: Clock::default() })
    }

    /// The authority of this certificate and its key, as a person gives them, PEM.
    ///
    /// # Errors
    /// Why it can't be a cluster's.
    pub fn of_pem(cluster: ClusterId, certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let clock = Clock::default();
        let certificate =
            CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| AuthorityError::ReadGivenCertificate)?;
        let (_, until) = tls::validity(&certificate).map_err(|_| AuthorityError::ReadGivenCertificate)?;
        if !tls::may_issue(&certificate) {
            return Err(AuthorityError::NoAuthority);
        }
        if until < clock.unix() + VALIDITY {
            return Err(AuthorityError::Short);
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| AuthorityError::ReadGivenKey)?;
        let key = KeyPair::try_from(&key).map_err(|_| AuthorityError::ReadGivenKey)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| AuthorityError::ReadGivenCertificate)?;
        let given = Self { cluster, certificate: certificate.to_vec(), issuer, clock };
        // Whatever else is in it, members have to accept what it issues.
        match given.identify(NodeId(1)) {
            Ok(_) => Ok(given),
            Err(AuthorityError::Identify(error)) => Err(AuthorityError::Useless(error)),
            Err(error) => Err(error),
        }
    }

    /// This one, by another clock than the system's.
    #[must_use]
    pub fn at(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The CA's own certificate, DER: what members check each other against.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// SHA-256 of the public key (SPKI, DER) in a request, which tells one host from another of the same name.
    ///
    /// # Errors
    /// `ReadKeyRequest` unless `request` is a PKCS#10 request that its own key signed.
    pub fn key_of(request: &[u8]) -> Result<Hash, AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(AuthorityError::ReadKeyRequest)?;
        Ok(Hash::of(&request.public_key.subject_public_key_info()))
    }

    /// A certificate (DER) that names the holder of the key in `request` as `node` of this epoch of the cluster.
    ///
    /// Of the request (PKCS#10, DER, at most a few hundred bytes) only the public key is used.
    ///
    /// # Errors
    /// `ReadRequest` if the request isn't one or its signature is wrong; `Issue`.
    pub fn issue(&self, request: &[u8], epoch: ClusterEpoch, node: NodeId) -> Result<Vec<u8>, AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|source| AuthorityError::ReadRequest { node, source })?;
        let failed = |source| AuthorityError::Issue { node, source };
        let mut params = params(&format!("Blixard node {node}"), self.clock, VALIDITY);
        let name = tls::node_uri(self.cluster, epoch, node).try_into().map_err(failed)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(failed)?;
        Ok(certificate.der().to_vec())
    }

    /// The same for a member of a cluster that has no other authority.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_alone(&self, request: &[u8], epoch: ClusterEpoch, node: NodeId) -> Result<Issued, AuthorityError> {
        let certificate = self.issue(request, epoch, node)?;
        Ok(Issued { authorities: vec![self.certificate.clone()], certificate })
    }

    /// An identity with a fresh key: the founder's own.
    ///
    /// # Errors
    /// `Identify` or `Issue`.
    pub fn identify(&self, node: NodeId) -> Result<NodeIdentity, AuthorityError> {
        let key = NodeKey::generate().map_err(AuthorityError::Identify)?;
        let request = key.request().map_err(AuthorityError::Identify)?;
        let issued = self.issue_alone(&request, ClusterEpoch::FIRST, node)?;
        key.identify(self.cluster, ClusterEpoch::FIRST, node, issued).map_err(AuthorityError::Identify)
    }

    /// The CA with its key, readable only with the cluster secret; this form may be replicated and stored.
    pub fn seal(&self, secret: &ClusterSecret) -> Vec<u8> {
        let sealed = Sealed {
            cluster: self.cluster,
            certificate: self.certificate.clone(),
            key: self.issuer.key().serialize_der(),
        };
        secret.seal(PURPOSE, &postcard::to_stdvec(&sealed).expect("it is plain data"))
    }

    /// What [`Self::seal`] was called on.
    ///
    /// # Errors
    /// `Unseal` if it was sealed with none of these secrets; `Decode`, `ReadKey`.
    pub fn unseal(sealed: &[u8], secrets: &Secrets) -> Result<Self, AuthorityError> {
        let plain = secrets.open(PURPOSE, sealed).map_err(AuthorityError::Unseal)?;
        let Sealed { cluster, certificate, key } = postcard::from_bytes(&plain).map_err(AuthorityError::Decode)?;
        let key = KeyPair::try_from(key).map_err(AuthorityError::ReadKey)?;
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(certificate.as_slice()), key)
            .map_err(AuthorityError::ReadKey)?;
        Ok(Self { cluster, certificate, issuer, clock: Clock::default() })
    }

    /// What [`Self::seal`] has returned for the secret `from`, for the secret `to`.
    ///
    /// # Errors
    /// `Unseal`.
    pub fn reseal(sealed: &[u8], from: &ClusterSecret, to: &ClusterSecret) -> Result<Vec<u8>, AuthorityError> {
        Ok(to.seal(PURPOSE, &from.open(PURPOSE, sealed).map_err(AuthorityError::Unseal)?))
    }
}

/// By what a host that joins knows this cluster; nothing where its authority's certificate can't be read.
pub fn anchor_of(cluster: &Cluster) -> Option<TrustAnchor> {
    let authority = tls::key_of(&cluster.ca_certificate).ok()?;
    Some(TrustAnchor { cluster: cluster.id, authority })
}

/// What every certificate of this product has in common.
pub(super) fn params(name: &str, clock: Clock, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = clock.unix();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + validity;
    params
}

#[cfg(test)]
mod tests {
    use super::super::draw_cluster_id;
    use super::super::secret::tests::in_file;
    use super::*;

    fn secrets(byte: u8) -> Secrets {
        Secrets::read(in_file(&[byte; 32]).path(), None).unwrap()
    }

    #[test]
    fn an_unsealed_authority_issues_what_the_sealed_one_vouches_for() {
        let made = Authority::create(draw_cluster_id()).unwrap();
        let sealed = made.seal(secrets(1).current());
        let read = Authority::unseal(&sealed, &secrets(1)).unwrap();
        assert_eq!((read.cluster(), read.certificate()), (made.cluster(), made.certificate()));
        let key = NodeKey::generate().unwrap();
        let mut issued = read.issue_alone(&key.request().unwrap(), ClusterEpoch::FIRST, NodeId(9)).unwrap();
        issued.authorities = vec![made.certificate().to_vec()];
        key.identify(made.cluster(), ClusterEpoch::FIRST, NodeId(9), issued).unwrap();
    }

    #[test]
    fn another_secret_does_not_unseal_the_authority_and_the_error_names_the_file() {
        let sealed = Authority::create(draw_cluster_id()).unwrap().seal(secrets(1).current());
        let error = Authority::unseal(&sealed, &secrets(2)).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("another cluster secret") && cause.contains("cluster.secret_file"), "{cause}");
    }

    #[test]
    fn what_is_sealed_anew_opens_with_the_next_secret_alone() {
        let made = Authority::create(draw_cluster_id()).unwrap();
        let (old, new) = (secrets(1), secrets(2));
        let sealed = Authority::reseal(&made.seal(old.current()), old.current(), new.current()).unwrap();
        assert_eq!(Authority::unseal(&sealed, &new).unwrap().certificate(), made.certificate());
        assert!(matches!(Authority::unseal(&sealed, &old), Err(AuthorityError::Unseal(SecretError::Other { .. }))));
        assert!(Authority::reseal(&sealed, old.current(), new.current()).is_err(), "it is done already");
    }

    #[test]
    fn a_request_that_its_own_key_did_not_sign_is_refused() {
        let authority = Authority::create(draw_cluster_id()).unwrap();
        let mut request = NodeKey::generate().unwrap().request().unwrap();
        *request.last_mut().unwrap() ^= 1;
        assert!(matches!(
            authority.issue(&request, ClusterEpoch::FIRST, NodeId(1)),
            Err(AuthorityError::ReadRequest { .. })
        ));
        assert!(authority.issue(b"garbage", ClusterEpoch::FIRST, NodeId(1)).is_err());
    }

    /// An authority as another tool makes it, and its key; `change` is made to it first.
    fn given(change: impl FnOnce(&mut CertificateParams)) -> (String, KeyPair) {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = params("Example Corp", Clock::default(), AUTHORITY_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        change(&mut params);
        (params.self_signed(&key).unwrap().pem(), key)
    }

    #[test]
    fn an_authority_that_a_person_gives_issues_and_is_sealed_like_one_that_was_made() {
        let (certificate, key) = given(|_| {});
        let given = Authority::of_pem(draw_cluster_id(), &certificate, &key.serialize_pem()).unwrap();
        let read = Authority::unseal(&given.seal(secrets(1).current()), &secrets(1)).unwrap();
        assert_eq!(read.certificate(), given.certificate());
        read.identify(NodeId(7)).unwrap();
    }

    #[test]
    fn what_can_be_no_authority_is_refused_and_why_is_said() {
        let (good, key) = given(|_| {});
        let key = key.serialize_pem();
        let refused = |certificate: &str, key: &str| {
            let error = Authority::of_pem(draw_cluster_id(), certificate, key).unwrap_err();
            crate::error_chain(&error)
        };
        let (leaf, leaf_key) = given(|params| params.is_ca = IsCa::ExplicitNoCa);
        let (unfit, unfit_key) = given(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
        let (short, short_key) = given(|params| params.not_after = date_time_ymd(2020, 1, 1));
        for (certificate, key, says) in [
            ("", key.as_str(), "X.509, as PEM"),
            (&key, &key, "X.509, as PEM"),
            (&good, "", "as PEM"),
            (&good, &good, "private key"),
            (&leaf, &leaf_key.serialize_pem(), "CA:TRUE"),
            (&unfit, &unfit_key.serialize_pem(), "CA:TRUE"),
            (&short, &short_key.serialize_pem(), "90 days"),
            (&good, &leaf_key.serialize_pem(), "belong together"),
        ] {
            let error = refused(certificate, key);
            assert!(error.contains(says), "{error}");
        }
    }
}
