//! Questions to the local API of a host that is no server, passed on to one that is; it answers as to its own.

use blixard_core::types::NodeId;
use http_body_util::Full;
use hyper::body::Bytes;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use super::connect;
use crate::error_chain;

/// What the paths of the local API's calls begin with.
pub(super) const API_PATH: &str = "/blixard.api.v1.Api/";
/// A header of an answer that says that another server is to be asked: this one has not looked at the question.
pub const NOT_HERE: &str = "blixard-not-here";

/// A question to a host's API, and what it answers.
pub type ApiRequest = http::Request<Body>;
pub type ApiResponse = http::Response<Body>;
/// A question that can be asked of one server after the other.
pub type WholeRequest = http::Request<Bytes>;

/// Why a server has not answered what was passed on to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    #[error("node {to} can't be asked: {reason}")]
    NotAsked { to: NodeId, reason: String },
    #[error("node {to} was asked, and the connection broke before it answered: {reason}")]
    NoAnswer { to: NodeId, reason: String },
}

/// The answer of `to`, which may be a stream.
pub(super) async fn pass_on(
    channel: Option<Channel>,
    to: NodeId,
    question: WholeRequest,
) -> Result<ApiResponse, PassError> {
    let not_asked = |reason: String| PassError::NotAsked { to, reason };
    let channel = channel.ok_or_else(|| not_asked("it is not in the directory of servers".to_owned()))?;
    match channel.oneshot(question.map(|bytes| Body::new(Full::new(bytes)))).await {
        Ok(answer) if answer.headers().contains_key(NOT_HERE) => {
            let status = tonic::Status::from_header_map(answer.headers());
            Err(not_asked(status.map_or_else(String::new, |status| status.message().to_owned())))
        }
        Ok(answer) => Ok(answer),
        Err(error) if connect::had_connection(&error) => Err(PassError::NoAnswer { to, reason: error_chain(&error) }),
        Err(error) => Err(not_asked(error_chain(&error))),
    }
}
