//! Tokens, the authority and the cluster secret: what is secret in them is drawn, or sealed, by the host that is asked.

use blixard_core::command::{Answer, Command, Reply, Resealed};
use blixard_core::state::State;
use blixard_core::types::{Hash, NodeRole, TokenId};
use tonic::Status;

use super::{Api, proto};
use crate::identity::{self, Authority, ClusterSecret, JoinToken, Secrets, TokenSecret, anchor_of};
use crate::transport::Certificate;

/// Shows the certificate of the node that answers, and whether a person should look at it.
pub(super) fn show_certificate(status: &mut proto::StatusReply, Certificate { expires, left, fault }: Certificate) {
    let Some(cluster) = &mut status.cluster else { return };
    cluster.certificate_expires = expires.0;
    let until = match left.as_secs() / 3600 {
        _ if left.is_zero() => "has expired".to_owned(),
        hours @ 0..72 => format!("expires in {hours} hours"),
        hours => format!("expires in {} days", hours / 24),
    };
    let name = &cluster.answered_by;
    let line = |fault| format!("the certificate of {name} {until}, and is not as it is to be: {fault}");
    status.problems.extend(fault.map(line));
}

impl Api {
    pub(super) async fn draw_token(
        &self,
        request: proto::CreateTokenRequest,
    ) -> Result<proto::CreateTokenReply, Status> {
        let anchor = self.read(|state, _| state.cluster().and_then(anchor_of))?;
        let anchor = anchor.ok_or_else(|| Status::unavailable("the cluster is being founded"))?;
        let (id, secret) = (TokenId(u64::from_be_bytes(identity::random())), TokenSecret::draw());
        let proto::CreateTokenRequest { ttl_ms, role } = request;
        let role = Some(role).filter(|role| !role.is_empty()).map(|role| role.parse::<NodeRole>());
        let role = role.transpose().map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Answer { index, reply } =
            self.propose(Command::CreateToken { token: id, secret: secret.hash(), ttl_ms, role }).await?;
        let Reply::Token { expires } = reply else {
            return Err(Status::internal(format!("an answer of another kind: {reply:?}")));
        };
        let token = JoinToken { anchor, id, secret, expires }.to_string();
        Ok(proto::CreateTokenReply { token, id: id.to_string(), expires: expires.0, index })
    }

    pub(super) async fn begin_rotation(
        &self,
        request: proto::RotateAuthorityRequest,
    ) -> Result<proto::RotateAuthorityReply, Status> {
        let secrets = self.secrets()?;
        let cluster = self.read(|state, _| state.cluster().map(|known| (known.id, known.secret())))?;
        let (cluster, secret) = cluster.ok_or_else(|| Status::unavailable("the cluster is being founded"))?;
        let secret = secrets.find(|known| secret == Some(known.id())).ok_or_else(|| {
            Status::failed_precondition(
                "the cluster has another secret than what is in cluster.secret_file here: ask on a host that has it",
            )
        })?;
        let authority = match request.given {
            None => Authority::create(cluster),
            Some(proto::GivenAuthority { certificate, key }) => Authority::of_pem(cluster, &certificate, &key),
        };
        let authority = authority.map_err(|error| Status::invalid_argument(crate::error_chain(&error)))?;
        let (certificate, sealed_key) = (authority.certificate().to_vec(), authority.seal(secret));
        let index = self.change(Command::RotateAuthority { certificate, sealed_key }).await?;
        Ok(proto::RotateAuthorityReply { index })
    }

    /// # Errors
    /// That there are none here.
    pub(super) fn secrets(&self) -> Result<&Secrets, Status> {
        self.secrets.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "this host has no cluster secret, with which the authority's key is sealed: ask on one that has",
            )
        })
    }

    /// By which the next secret takes the place of the current one.
    pub(super) fn reseal(&self) -> Result<Command, Status> {
        let read = |state: &State, node| (state.cluster().cloned(), state.name_of(node));
        let (cluster, own) = self.read(|state, standing| read(state, standing.node))?;
        let cluster = cluster.ok_or_else(|| Status::unavailable("the cluster is being founded"))?;
        let secrets = self.secrets()?;
        let is_done = |secret: &ClusterSecret| cluster.secret() == Some(secret.id());
        let Some(next) = secrets.next() else {
            return Err(Status::failed_precondition(format!(
                "{own} has no next cluster secret: set cluster.next_secret_file (services.blixard.nextClusterSecretFile) on \
                 every host that has the secret, to a file with a new one"
            )));
        };
        if is_done(next) {
            return Err(Status::failed_precondition(
                "that is done: only the next secret opens the authority's key by now; make it the current one",
            ));
        }
        let key = |sealed: &[u8]| {
            let resealed = Authority::reseal(sealed, secrets.current(), next);
            let failed = |error| Status::failed_precondition(format!("{own}: {}", crate::error_chain(&error)));
            Ok(Resealed { was: Hash::of(sealed), sealed: resealed.map_err(failed)? })
        };
        let keys = cluster.sealed_keys().into_iter().map(key).collect::<Result<_, Status>>()?;
        Ok(Command::Reseal { keys })
    }
}
