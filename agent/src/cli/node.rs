//! The verbs about nodes.

use std::path::Path;
use std::process::ExitCode;

use blixard_core::types::NodeName;
use clap::{Args, Subcommand};
use tokio_stream::StreamExt as _;

use super::ask::{AskError, Asked, get_status, look, print, write_out};
use super::client::connect;
use super::{Reading, Socket, show};
use crate::api::proto;

#[derive(Subcommand, Debug)]
pub enum NodeVerb {
    /// List all
    Ls {
        #[command(flatten)]
        reading: Reading,
    },
    /// Show everything about one
    Show {
        /// The node's name
        name: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Take a node out of the cluster, and wait until it is gone
    ///
    /// What it runs is stopped there and started elsewhere; then it loses its vote, and its agent ends. Its name is free
    /// then: a host that joins under it is a new node.
    Remove(RemoveArgs),
    /// Let a host that was made anew take the place of the old one, and wait until it has
    ///
    /// The old one is removed as a dead one is: nothing of it runs any more, and what it ran is started elsewhere at once.
    /// Nobody checks that, but that it does not answer. The new one is a new node with the same name.
    Replace(ReplaceArgs),
}

#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The node's name
    name: NodeName,
    /// It is gone for good, and nothing runs on it any more: what it ran is started elsewhere at once
    ///
    /// Nobody checks that. If it isn't so, its VMs run twice.
    #[arg(long)]
    dead: bool,
    /// Give up the volumes that it has
    #[arg(long)]
    abandon_volumes: bool,
    /// Don't wait
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args, Debug)]
pub struct ReplaceArgs {
    /// The name of both
    name: NodeName,
    /// Give up the volumes that the old one had
    #[arg(long)]
    abandon_volumes: bool,
    #[command(flatten)]
    socket: Socket,
}

pub async fn ask(verb: NodeVerb) -> Asked {
    match verb {
        NodeVerb::Ls { reading } => print(&show::nodes(&get_status(&reading).await?.nodes, look())),
        NodeVerb::Show { name, reading } => show_one(&reading, &name).await,
        NodeVerb::Remove(args) => remove(&args).await,
        NodeVerb::Replace(args) => replace(&args).await,
    }
}

async fn show_one(reading: &Reading, name: &str) -> Asked {
    let reply = get_status(reading).await?;
    let node = reply.nodes.iter().find(|node| node.name == name);
    let node = node.ok_or_else(|| AskError::Unknown { kind: "node", name: name.to_owned() })?;
    print(&show::node(node, &reply.instances, look()))
}

async fn remove(args: &RemoveArgs) -> Asked {
    let RemoveArgs { name, dead, abandon_volumes, no_wait, socket } = args;
    let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
    let request = proto::RemoveNodeRequest { name: name.to_string(), dead: *dead, abandon_volumes: *abandon_volumes };
    let node = client.remove_node(request).await.map_err(AskError::Refused)?.into_inner().node;
    if *no_wait {
        return print(&format!("{name} is being removed\n"));
    }
    let left = |status: &proto::StatusReply| {
        let member = status.nodes.iter().find(|member| member.id == node)?;
        let instances = status.instances.iter().filter(|instance| instance.node == member.name).count();
        Some(if instances > 0 {
            format!("{name} still has {}", show::count(instances, "instance"))
        } else {
            format!("{name} has no instance any more, and is {}", member.role)
        })
    };
    watch_until_nothing_is(left, client, &socket.socket, &format!("{name} is removed")).await
}

async fn replace(args: &ReplaceArgs) -> Asked {
    let ReplaceArgs { name, abandon_volumes, socket } = args;
    let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
    let request = proto::RemoveNodeRequest { name: name.to_string(), dead: true, abandon_volumes: *abandon_volumes };
    let old = client.remove_node(request).await.map_err(AskError::Refused)?.into_inner().node;
    let left = |status: &proto::StatusReply| {
        let new = status.nodes.iter().find(|member| member.name == name.as_str() && member.id != old);
        match new.map(|member| &member.worker) {
            None => Some(format!("the old {name} is removed; its agent on the new host is waited for")),
            Some(None) => Some(format!("the new {name} has joined, and has not registered yet")),
            Some(Some(_)) => None,
        }
    };
    watch_until_nothing_is(left, client, &socket.socket, &format!("{name} is replaced")).await
}

/// Watches the cluster and says what is still `left` to happen, until that is nothing; then says `done`.
async fn watch_until_nothing_is(
    left: impl Fn(&proto::StatusReply) -> Option<String>,
    mut client: proto::api_client::ApiClient<tonic::transport::Channel>,
    socket: &Path,
    done: &str,
) -> Asked {
    let request = proto::StatusRequest { freshness: proto::Freshness::Stale.into() };
    let mut replies = client.watch_status(request).await.map_err(AskError::Refused)?.into_inner();
    let mut said = None;
    while let Some(reply) = replies.next().await {
        let now = left(&reply.map_err(AskError::Refused)?);
        let Some(waits) = &now else { return print(&format!("{done}\n")) };
        if now != said && write_out(&format!("{waits}\n"))?.is_break() {
            return Ok(ExitCode::SUCCESS);
        }
        said = now;
    }
    Err(AskError::Ended { path: socket.to_owned() })
}
