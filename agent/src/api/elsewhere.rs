//! What the local socket's clients reach: this host's own API, or, where it is no server, that of one which is; the
//! leader's first.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, FutureExt as _};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::proto::api_server::ApiServer;
use super::{Api, MAX_REQUEST_BYTES, Service, Stage};
use crate::node::{Handle, PATIENCE};
use crate::transport::{ApiRequest, ApiResponse, NOT_HERE, PassError, WholeRequest};

/// What only proposes something: the node's handle does that from anywhere, and once whatever breaks on the way.
const PROPOSALS: &[&str] = &[
    "Apply",
    "CreateToken",
    "PutVm",
    "RemoveVm",
    "ResumeTakeover",
    "RevokeToken",
    "RollBackManifest",
    "RotateAuthority",
    "RunTask",
    "SetVmRunning",
];
/// What changes nothing.
const READS: &[&str] =
    &["Backup", "Events", "Explain", "ListManifests", "ListTasks", "ListTokens", "Plan", "Status", "WatchStatus"];

/// What only the leader does.
const OF_LEADERS: &[&str] = &["TransferLeader"];

fn is_one(verbs: &[&str], question: &WholeRequest) -> bool {
    question.uri().path().rsplit('/').next().is_some_and(|verb| verbs.contains(&verb))
}

/// What the socket's clients reach.
#[derive(Clone)]
pub struct Front {
    stage: watch::Receiver<Stage>,
    here: Service,
}

impl Front {
    pub fn new(here: Service) -> Self {
        Self { stage: here.stage.clone(), here }
    }
}

impl NamedService for Front {
    const NAME: &'static str = ApiServer::<Api>::NAME;
}

impl tower::Service<ApiRequest> for Front {
    type Response = ApiResponse;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, question: ApiRequest) -> Self::Future {
        let front = self.clone();
        async move { Ok(front.answer(question).await.unwrap_or_else(Status::into_http)) }.boxed()
    }
}

impl Front {
    /// Where this host becomes a server, or ceases to be one, the question waits until it has.
    async fn answer(mut self, question: ApiRequest) -> Result<ApiResponse, Status> {
        let deadline = Instant::now() + PATIENCE;
        let (head, body) = question.into_parts();
        let body = Limited::new(body, MAX_REQUEST_BYTES).collect().await;
        let body = body.map_err(|error| Status::out_of_range(error.to_string()))?.to_bytes();
        loop {
            let stage = self.stage.borrow_and_update().clone();
            let question = http::Request::from_parts(head.clone(), body.clone());
            let answered = match &stage {
                Stage::Follower(handle) if !is_one(PROPOSALS, &question) => pass_on(handle, question).await?,
                Stage::Member(handle) if is_one(OF_LEADERS, &question) && !handle.leads() => {
                    pass_on(handle, question).await?
                }
                _ => self.here.answer(question.map(whole)).await,
            };
            let may_change = matches!(stage, Stage::Member(_) | Stage::Follower(_) | Stage::Changing);
            if !may_change || !answered.headers().contains_key(NOT_HERE) {
                return Ok(answered);
            }
            match tokio::time::timeout_at(deadline, self.stage.changed()).await {
                Ok(Ok(())) => {}
                // The agent ends, or that takes too long.
                Ok(Err(_)) | Err(_) => return Ok(answered),
            }
        }
    }
}

fn whole(bytes: Bytes) -> Body {
    Body::new(Full::new(bytes))
}

async fn pass_on(handle: &Handle, question: WholeRequest) -> Result<ApiResponse, Status> {
    let mut reasons = Vec::new();
    for server in handle.servers() {
        match handle.pass_on(server, question.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(error @ PassError::NotAsked { .. }) => reasons.push(error.to_string()),
            // To ask again changes nothing.
            Err(error @ PassError::NoAnswer { .. }) if is_one(READS, &question) => reasons.push(error.to_string()),
            Err(error @ PassError::NoAnswer { .. }) => {
                let unknown = "the outcome is unknown, so look before you try again";
                return Err(Status::deadline_exceeded(format!("{error}: {unknown}")));
            }
        }
    }
    let reasons = if reasons.is_empty() { "it knows none".to_owned() } else { reasons.join("; ") };
    Err(Status::unavailable(format!("this host can't answer that itself, and no server that can does: {reasons}")))
}

/// What a host says that can't answer; another one may.
pub fn not_here(reason: String) -> Status {
    let mut status = Status::unavailable(reason);
    status.metadata_mut().insert(NOT_HERE, tonic::metadata::MetadataValue::from_static("1"));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_verb_it_is_known_whether_it_may_be_asked_twice() {
        let proto = include_str!("../../proto/api.proto");
        let verbs = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        // These look something up first, and propose it then.
        let known = [PROPOSALS, READS, OF_LEADERS].concat();
        let others: Vec<_> = verbs.filter(|verb| !known.contains(verb)).collect();
        assert_eq!(others, ["AcceptManifest", "RemoveNode", "SetAvailability", "Move", "ConfirmDead", "RotateSecret"]);
    }
}
