//! A member's next certificate, from a server that can sign: it is issued for the key that the member has joined with, so
//! whoever asks, only that member can use it. Hence one that has expired is no obstacle.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::types::Address;
use tonic::{Request, Response, Status};

use super::connect::{self, ConnectError};
use super::door::{Door, caller};
use super::join::Connection;
use super::link::describe;
use super::proto::join_client::JoinClient;
use super::proto::renew_reply::Result as Reply;
use super::proto::{RenewReply, RenewRequest, Renewed};
use super::{Renewal, Tasks};
use crate::error_chain;
use crate::identity::{Clock, IdentityError, NodeIdentity, TlsError, renewing_client};

/// How long one server may take, beyond the connection.
const RENEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a member has renewed no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("cannot ask for it")]
    Own(#[source] TlsError),
    #[error(transparent)]
    Connect(ConnectError),
    #[error("{address} does not answer within {} s", RENEW_TIMEOUT.as_secs())]
    TimedOut { address: Address },
    #[error("{address} refused it: {reason}")]
    Refused { address: Address, reason: String },
    #[error("cannot use what {address} has issued")]
    Issued { address: Address, source: IdentityError },
}

/// `identity` with the certificate that the member at `address` has issued for it.
///
/// # Errors
/// Nothing is left half-done after any of them.
pub async fn renew(address: &Address, identity: &NodeIdentity, clock: Clock) -> Result<NodeIdentity, RenewError> {
    let mut config = renewing_client(identity).map_err(RenewError::Own)?;
    config.time_provider = Arc::new(clock);
    let unusable = |source| RenewError::Issued { address: address.clone(), source };
    let refused = |reason| RenewError::Refused { address: address.clone(), reason };
    let request = RenewRequest { request: identity.request().map_err(unusable)? };
    let stream = connect::connect(address, Arc::new(config)).await.map_err(RenewError::Connect)?;
    let tasks = Connection(Tasks::default());
    let call = async {
        let channel = connect::over(stream, &tasks.0).await.map_err(|error| error_chain(&error))?;
        JoinClient::new(channel).renew(request).await.map_err(|status| describe(&status))
    };
    let timed_out = |_| RenewError::TimedOut { address: address.clone() };
    let reply = tokio::time::timeout(RENEW_TIMEOUT, call).await.map_err(timed_out)?.map_err(refused)?;
    match reply.into_inner().result {
        Some(Reply::Renewed(Renewed { authority, certificate })) => {
            identity.renewed(authority, certificate, clock).map_err(unusable)
        }
        Some(Reply::Refused(reason)) => Err(refused(reason)),
        None => Err(refused("it gave no reason".to_owned())),
    }
}

impl Door {
    pub(super) fn renew_certificate(&self, request: &Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let caller = caller(request);
        self.try_join(&caller)?;
        let result = match self.shared.inbound.renew(&request.get_ref().request) {
            Ok(Renewal { authority, certificate }) => {
                self.forgive(&caller);
                Reply::Renewed(Renewed { authority, certificate })
            }
            Err(refusal) => Reply::Refused(refusal.0),
        };
        Ok(Response::new(RenewReply { result: Some(result) }))
    }
}
