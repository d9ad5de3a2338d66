//! A member's next certificate, from a server that can sign: it is issued for the key that the member has joined with, so
//! whoever asks, only that member can use it. Hence one that has expired is no obstacle.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use blixard_core::types::{Address, Hash, Timestamp};
use tonic::{Request, Response, Status};

use super::connect::{self, ConnectError};
use super::door::{Door, caller};
use super::join::Connection;
use super::link::describe;
use super::proto::join_client::JoinClient;
use super::proto::renew_reply::Result as Reply;
use super::proto::{RenewReply, RenewRequest};
use super::{Tasks, Transport};
use crate::error_chain;
use crate::identity::{Clock, IdentityError, NodeIdentity, TlsError, renewing_client};

/// How long one server may take, beyond the connection.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a member has renewed no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("cannot ask for it")]
    Own(#[source] TlsError),
    #[error("cannot ask for it")]
    Request(#[source] IdentityError),
    #[error(transparent)]
    Connect(ConnectError),
    #[error("{address} does not answer within {} s", RENEW_TIMEOUT.as_secs())]
    TimedOut { address: Address },
    #[error("{address} refused it: {reason}")]
    Refused { address: Address, reason: String },
    #[error("cannot use what {address} has issued")]
    Issued { address: Address, source: IdentityError },
}

/// The certificate that a member shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub expires: Timestamp,
    /// For how long it holds yet.
    pub left: Duration,
    /// Why it is not as it is to be, if it isn't.
    pub fault: Option<String>,
}

impl Transport {
    /// The certificate that this node shows; nothing where it is no member.
    pub fn certificate(&self) -> Option<Certificate> {
        let expires = self.shared.identity.borrow().as_ref()?.expires()?;
        let until = UNIX_EPOCH + Duration::from_millis(expires.0);
        let left = until.duration_since(self.shared.clock.now()).unwrap_or_default();
        Some(Certificate { expires, left, fault: self.shared.certificate_fault.borrow().clone() })
    }

    /// Whoever sees to the certificate says why it isn't as it is to be, or that it is.
    pub fn set_certificate_fault(&self, fault: Option<String>) {
        self.shared.certificate_fault.send_replace(fault);
    }
}

/// The certificate (DER) that the member at `address` has issued for `identity`.
///
/// # Errors
/// Nothing is left half-done after any of them.
pub async fn renew(
    address: &Address,
    identity: &NodeIdentity,
    issuer: Hash,
    clock: Clock,
) -> Result<Vec<u8>, RenewError> {
    let mut config = renewing_client(identity).map_err(RenewError::Own)?;
    config.time_provider = Arc::new(clock);
    let refused = |reason| RenewError::Refused { address: address.clone(), reason };
    let request = identity.request().map_err(RenewError::Request)?;
    let request = RenewRequest { request, issuer: issuer.to_bytes().to_vec() };
    let stream = connect::connect(address, Arc::new(config)).await.map_err(RenewError::Connect)?;
    let tasks = Connection(Tasks::default());
    let call = async {
        let channel = connect::over(stream, &tasks.0).await.map_err(|error| error_chain(&error))?;
        JoinClient::new(channel).renew(request).await.map_err(|status| describe(&status))
    };
    let timed_out = |_| RenewError::TimedOut { address: address.clone() };
    let reply = tokio::time::timeout(RENEW_TIMEOUT, call).await.map_err(timed_out)?.map_err(refused)?;
    match reply.into_inner().result {
        Some(Reply::Certificate(certificate)) => Ok(certificate),
        Some(Reply::Refused(reason)) => Err(refused(reason)),
        None => Err(refused("it gave no reason".to_owned())),
    }
}

impl Door {
    pub(super) fn renew_certificate(&self, request: &Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let caller = caller(request);
        self.try_join(&caller)?;
        let RenewRequest { request, issuer } = request.get_ref();
        let issuer = issuer.as_slice().try_into().map(Hash::from_bytes);
        let issuer = issuer.map_err(|_| Status::invalid_argument("the issuer is no SHA-256"))?;
        let result = match self.shared.inbound.renew(request, issuer) {
            Ok(certificate) => {
                self.forgive(&caller);
                Reply::Certificate(certificate)
            }
            Err(refusal) => Reply::Refused(refusal.0),
        };
        Ok(Response::new(RenewReply { result: Some(result) }))
    }
}
