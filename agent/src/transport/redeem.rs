//! Joining with a token: the host knows the cluster by the key of its authority, and shows its secret to nobody else.

use std::sync::Arc;

use blixard_core::types::{Hash, Level, Server, Timestamp, TokenId};
use tonic::{Request, Response, Status};

use super::connect;
use super::door::{ADMIT_TIMEOUT, Door, caller, encode_role, invalid, role_of};
use super::join::{AskError, Asking, Connection, HELLO_TIMEOUT, JoinError, Joined, MAX_ADMITTED, not_found};
use super::link::describe;
use super::proto::admit_reply::Result as Reply;
use super::proto::join_client::JoinClient;
use super::proto::{AdmitReply, RedeemRequest};
use super::{Candidate, Credential, Tasks};
use crate::error_chain;
use crate::identity::{JoinToken, joining_client};

/// Becomes a member of the token's cluster by way of `server`.
///
/// # Errors
/// Nothing is left half-done on this side after any of them. After `TimedOut` the token may be used up; asking again with
/// the same `key` gets the same node id.
pub async fn redeem(server: &Server, token: &JoinToken, asking: &Asking) -> Result<Joined, JoinError> {
    let Asking { own, key, was_in, understands, role } = asking;
    let server = || server.clone();
    let asked = |source| not_found(&server(), "the token in cluster.token_file", source);
    let stream = connect::connect(&server().address, Arc::new(joining_client(token.anchor))).await;
    let stream = stream.map_err(|error| asked(AskError::Connect(error)))?;
    let tasks = Connection(Tasks::default());
    let request = RedeemRequest {
        token: token.id.0,
        secret: token.secret.as_bytes().to_vec(),
        expires: token.expires.0,
        name: own.name.to_string(),
        address: own.address.to_string(),
        request: key.request().map_err(|source| JoinError::Identity { server: server(), source })?,
        understands: understands.0,
        was_in: was_in.map(|epoch| epoch.to_string()),
        role: encode_role(*role).into(),
    };
    let call = async {
        let channel = connect::over(stream, &tasks.0).await.map_err(|error| error_chain(&error))?;
        let mut client = JoinClient::new(channel).max_decoding_message_size(MAX_ADMITTED);
        client.redeem(request).await.map_err(|status| describe(&status))
    };
    let timed_out = |_| JoinError::TimedOut { server: server() };
    let reply = tokio::time::timeout(ADMIT_TIMEOUT + HELLO_TIMEOUT, call).await.map_err(timed_out)?;
    let reply = reply.map_err(|reason| asked(AskError::Call { server: server(), reason }))?;
    Joined::of(&server(), token.anchor.cluster, key, reply.into_inner())
}

impl Door {
    pub(super) async fn take_token(&self, request: Request<RedeemRequest>) -> Result<Response<AdmitReply>, Status> {
        let caller = caller(&request);
        self.try_join(&caller)?;
        let request = request.into_inner();
        let role = role_of(request.role());
        let RedeemRequest { token, secret, expires, name, address, request, understands, was_in, .. } = request;
        let credential =
            Credential::Token { id: TokenId(token), secret: Hash::of(&secret), expires: Timestamp(expires) };
        let name = name.parse().map_err(|error| invalid(&error))?;
        let address = address.parse().map_err(|error| invalid(&error))?;
        let was_in = was_in.map(|epoch| epoch.parse()).transpose().map_err(|error| invalid(&error))?;
        let understands = Level(understands);
        let candidate = Candidate { name, address, request, understands, role, was_in, credential };
        let reply = self.decide(candidate).await;
        if matches!(reply, Reply::Admitted(_)) {
            self.forgive(&caller);
        }
        Ok(Response::new(AdmitReply { result: Some(reply) }))
    }
}
