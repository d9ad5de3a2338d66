//! The verbs about nodes.

use std::path::Path;

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
        name: String,
        #[command(flatten)]
        reading: Reading,
    },
    /// Take a node out of the cluster, and wait until it is gone
    ///
    /// What it runs is stopped there and started elsewhere; then it loses its vote, and its agent ends. Its name is free
    /// then: a host that joins under it is a new node.
    Remove(RemoveArgs),
}

#[derive(Args, Debug)]
pub struct RemoveArgs {
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

pub async fn ask(verb: NodeVerb) -> Asked {
    match verb {
        NodeVerb::Ls { reading } => print(&show::nodes(&get_status(&reading).await?.nodes, look())),
        NodeVerb::Show { name, reading } => show_one(&reading, &name).await,
        NodeVerb::Remove(args) => remove(&args).await,
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
    let reply = client.remove_node(request).await.map_err(AskError::Refused)?.into_inner();
    if *no_wait {
        return print(&format!("{name} is being removed\n"));
    }
    until_gone(client, reply.node, name, &socket.socket).await?;
    print(&format!("{name} is removed\n"))
}

/// Watches until no node has this id, and says what it waits for.
async fn until_gone(
    mut client: proto::api_client::ApiClient<tonic::transport::Channel>,
    node: u64,
    name: &NodeName,
    socket: &Path,
) -> Result<(), AskError> {
    let request = proto::StatusRequest { freshness: proto::Freshness::Stale.into() };
    let mut replies = client.watch_status(request).await.map_err(AskError::Refused)?.into_inner();
    let mut said = String::new();
    while let Some(reply) = replies.next().await {
        let reply = reply.map_err(AskError::Refused)?;
        let Some(member) = reply.nodes.iter().find(|member| member.id == node) else { return Ok(()) };
        let left = reply.instances.iter().filter(|instance| instance.node == member.name).count();
        let waits = if left > 0 {
            format!("{name} still has {}\n", show::count(left, "instance"))
        } else {
            format!("{name} has no instance any more, and is {}\n", member.role)
        };
        if waits != said && write_out(&waits)?.is_break() {
            return Ok(());
        }
        said = waits;
    }
    Err(AskError::Ended { path: socket.to_owned() })
}
