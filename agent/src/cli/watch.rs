//! Waiting for something that the cluster does, with a line whenever what is left of it changes.

use std::path::Path;
use std::process::ExitCode;

use tokio_stream::StreamExt as _;

use super::ask::{AskError, Asked, print, write_out};
use super::client::Client;
use crate::api::proto;

/// How far it has come.
pub enum Left {
    Nothing,
    /// What it waits for.
    Still(String),
    /// Why it won't come to that any more.
    Never(String),
}

/// Watches the cluster from now on and says what is `left`, until that is nothing; then says `done`.
pub async fn watch(left: impl Fn(&proto::StatusReply) -> Left, mut client: Client, socket: &Path, done: &str) -> Asked {
    let request = proto::StatusRequest { freshness: proto::Freshness::Linearizable.into() };
    let mut replies = client.watch_status(request).await.map_err(AskError::Refused)?.into_inner();
    let mut said = String::new();
    while let Some(reply) = replies.next().await {
        let now = match left(&reply.map_err(AskError::Refused)?) {
            Left::Nothing => return print(&format!("{done}\n")),
            Left::Never(why) => return Err(AskError::Overtaken(why)),
            Left::Still(now) => now,
        };
        if now != said && write_out(&format!("{now}\n"))?.is_break() {
            return Ok(ExitCode::SUCCESS);
        }
        said = now;
    }
    Err(AskError::Ended { path: socket.to_owned() })
}
